"""Tables from the results of a run: Markdown, with bootstrap intervals over the evaluation windows.

Every figure compares methods on the same windows, so all intervals are paired: windows are drawn with replacement and
each method is taken on the windows drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks._ledger import Row
from benchmarks.perp.cells import LORAS, MIDDLE, RANK, RANKS, WIDER, Cell

Reals = NDArray[np.float64]
GOAL = 0.95
SHOWN = ("50%", "60%", "70%", "2:4")  # the order of columns
_DRAWS = 10_000


def tried(rows: Mapping[str, Row], cell: Cell) -> dict[float, float]:
    """Return the tuning loss by learning rate of all that was tried for a cell with seed 0, lowest rate first."""
    wanted = {**_fields(cell), "seed": 0}
    same = [r for r in rows.values() if "tuning" in r and all(r[f] == v for f, v in wanted.items() if f != "lr")]
    return {r["lr"]: r["tuning"] for r in sorted(same, key=lambda r: r["lr"] or 0.0)}


def best_rate(rows: Mapping[str, Row], cell: Cell) -> float | None:
    """Return the learning rate of least tuning loss; the lower of equals, None before anything was tried."""
    losses = tried(rows, cell)
    return min(losses, key=lambda lr: losses[lr]) if losses else None


class Table:
    """The finished cells of one run, by what they are; seeds together."""

    def __init__(self, setup: Row, rows: Mapping[str, Row]) -> None:
        self.setup, self.rows = setup, rows
        draws = np.random.default_rng(0).integers
        count = next(len(r["losses"]) for r in rows.values() if "losses" in r)
        self._drawn = draws(count, size=(_DRAWS, count))

    def seeds(self, cell: Cell) -> list[Row]:
        """Return the finished seeds of a cell at its tuned learning rate."""
        lr = best_rate(self.rows, cell) if cell.trains else None
        keys = (Cell(**{**_fields(cell), "seed": s, "lr": lr}).key for s in range(3))
        return [self.rows[k] for k in keys if k in self.rows and self.rows[k].get("losses")]

    def losses(self, cell: Cell) -> Reals | None:
        """Return the loss per window in nats a token, averaged over seeds; None if the cell is not finished."""
        found = self.seeds(cell)
        return np.mean([r["losses"] for r in found], axis=0) if found else None

    def interval(self, values: Sequence[Reals], formula: str) -> str:
        """Return the 95 % interval of `difference` a - b, or of the share `regained` (a - b) / (a - c)."""
        a, *others = (v[self._drawn].mean(axis=1) for v in values)
        drawn = a - others[0] if formula == "difference" else 100 * (a - others[0]) / (a - others[1])
        low, high = np.percentile(drawn, [2.5, 97.5])
        return f"{low:+.3f} … {high:+.3f}" if formula == "difference" else f"{low:.1f} … {high:.1f}"

    def regained(self, cell: Cell) -> tuple[float, str] | None:
        """Return what share of full retraining's gain the cell has, with its interval, in percent."""
        parts = [self.losses(c) for c in (Cell(pattern=cell.pattern), cell, Cell(pattern=cell.pattern, form="full"))]
        if any(p is None for p in parts):
            return None
        known = [p for p in parts if p is not None]
        pruned, ours, full = (float(p.mean()) for p in known)
        return 100 * (pruned - ours) / (pruned - full), self.interval(known, "regained")


def render(setup: Row, rows: Mapping[str, Row]) -> str:
    """Return the whole report as Markdown."""
    if not any("losses" in r for r in rows.values()):
        return "No cell is finished."
    table = Table(setup, rows)
    parts = [_setup(table), _headline(table), _forms(table), _ranks(table), _rates(table), _shares(table), _clock(rows)]
    return "\n\n".join(p for p in parts if p) + "\n"


def _setup(table: Table) -> str:
    facts = "; ".join(f"{k} {v}" for k, v in table.setup.items())
    done = sum(r.get("seconds", 0) for r in table.rows.values()) / 60
    return f"Setup: {facts}. {len(table.rows)} cells in {done:.0f} minutes."


def _headline(table: Table) -> str:
    """Held-out loss of dense, pruned, retrained in full and mask_lora; the goal."""
    dense = table.losses(Cell(pattern="dense"))
    control = table.losses(Cell(pattern="dense", form="full"))
    lines = [
        "## Held-out loss, nats a token",
        "",
        f"| pruned | pruned only | full retraining | mask_lora r={RANK} + norms | minus full (95 %) "
        f"| minus dense (95 %) | regained % (95 %) | seeds | goal {GOAL:.0%} |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for pattern in SHOWN:
        ours = Cell(pattern=pattern, form="mask_lora", rank=RANK, norms=True)
        pruned, full, loss = (
            table.losses(c) for c in (Cell(pattern=pattern), Cell(pattern=pattern, form="full"), ours)
        )
        share = table.regained(ours)
        if pruned is None or full is None or loss is None or dense is None or share is None:
            continue
        lines.append(
            f"| {pattern} | {pruned.mean():.4f} | {_spread(table, Cell(pattern=pattern, form='full'))} "
            f"| {_spread(table, ours)} | {table.interval([loss, full], 'difference')} "
            f"| {table.interval([loss, dense], 'difference')} | {share[0]:.1f} ({share[1]}) "
            f"| {len(table.seeds(ours))} | {'reached' if share[0] >= 100 * GOAL else 'missed'} |"
        )
    if dense is not None:
        lines += ["", f"Dense: {dense.mean():.4f}."]
    if dense is not None and control is not None:
        lines[-1] += (
            f" Dense after the same steps of full training on the same text: {control.mean():.4f} "
            f"(difference {table.interval([control, dense], 'difference')}): what the text alone brings."
        )
    return "\n".join(lines)


def _forms(table: Table) -> str:
    """Every subset and form beside each other, per pattern: loss and regained share."""
    named = [("none", 0, False, ""), ("full", 0, False, ""), ("norms", 0, False, ""), ("biases", 0, False, "")]
    named += [("head", RANK, False, "")]
    named += [(f, RANK, n, "") for f in LORAS for n in (True, False)]
    named += [("mask_lora", RANK, True, w) for w in ("module", "block")]
    rows = []
    for form, rank, norms, window in named:
        cells = [Cell(pattern=p, form=form, rank=rank, norms=norms, window=window) for p in SHOWN]
        if any(table.losses(c) is not None for c in cells):
            rows.append(f"| {cells[0].title} | " + " | ".join(_entry(table, c) for c in cells) + " |")
    head = ["## Every form: loss, and the share of full retraining's gain", ""]
    head += [f"| trained | {' | '.join(SHOWN)} |", "|---|" + "--:|" * len(SHOWN)]
    return "\n".join(head + rows)


def _ranks(table: Table) -> str:
    """Loss by rank: each form at the middle sparsity, mask_lora at every pattern."""
    lines = []
    kinds = [(MIDDLE, f, n) for f in LORAS for n in (True, False)]
    kinds += [(p, "mask_lora", True) for p in SHOWN if p != MIDDLE]
    for pattern, form, norms in kinds:
        cells = [Cell(pattern=pattern, form=form, rank=r, norms=norms) for r in RANKS]
        if sum(table.losses(c) is not None for c in cells) > 1:
            name = f"{pattern} {form}{' + norms' if norms else ''}"
            lines.append(f"| {name} | " + " | ".join(_entry(table, c) for c in cells) + " |")
    head = ["## By rank", "", "| | " + " | ".join(f"r={r}" for r in RANKS) + " |", "|---|" + "--:|" * len(RANKS)]
    return "\n".join(head + lines) if lines else ""


def _rates(table: Table) -> str:
    """The learning rates tried, by tuning loss."""
    groups = {c.key: c for c in _trained(table.rows) if c.tuned_as() == c.at(None)}
    kept = {c.at(None).key: c for c in groups.values()}
    lines = ["## Learning rates, by loss on the tuning slice of the training text", "", "| cell | tried |", "|---|---|"]
    for cell in kept.values():
        losses, best = tried(table.rows, cell), best_rate(table.rows, cell)
        shown = ", ".join(f"**{lr:g}: {v:.4f}**" if lr == best else f"{lr:g}: {v:.4f}" for lr, v in losses.items())
        edge = " (edge of all rates)" if best in (WIDER[0], WIDER[-1]) else ""
        lines.append(f"| {cell.pattern} {cell.title} | {shown}{edge} |")
    return "\n".join(lines) if kept else ""


def _shares(table: Table) -> str:
    """Trainable parameters as counted, and by the closed formula."""
    lines = ["## Trainable parameters", "", "| trained | counted | formula | share of all |", "|---|--:|--:|--:|"]
    seen: dict[str, Row] = {}
    for cell in _trained(table.rows):
        row = table.rows[cell.key]
        if not cell.window and "trainable" in row:
            seen.setdefault(cell.title, row)
    for title, row in seen.items():
        share = 100 * row["trainable"] / row["parameters"]
        lines.append(f"| {title} | {row['trainable']:,} | {row['formula']:,} | {share:.3f} % |")
    return "\n".join(lines) if seen else ""


def _clock(rows: Mapping[str, Row]) -> str:
    """Seconds a step and peak memory, each in a process of its own."""
    timed = [r for r in rows.values() if "seconds_per_step" in r]
    lines = [
        "## Time and memory of a step",
        "",
        "| model | trained | s a step (quartiles) | x full | MiB above loaded | x full | glibc's default heap |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in timed:
        base = next((r for r in timed if r["model"] == row["model"] and r["title"] == "full"), None)
        time, memory = row["seconds_per_step"], row["added_mib"]
        faster = f"{time / base['seconds_per_step']:.2f}" if base else ""
        smaller = f"{memory / base['added_mib']:.2f}" if base and base["added_mib"] else ""
        low, high = row["quartiles"]
        lines.append(
            f"| {row['model']} | {row['title']} | {time:.3f} ({low:.3f} … {high:.3f}) | {faster} "
            f"| {memory:.0f} | {smaller} | {row['kept_mib']:.0f} |"
        )
    return "\n".join(lines) if timed else ""


def _entry(table: Table, cell: Cell) -> str:
    loss = table.losses(cell)
    if loss is None:
        lr = best_rate(table.rows, cell) if cell.trains else None
        return "diverged" if "diverged" in table.rows.get(cell.at(lr).key, {}) else ""
    share = table.regained(cell) if cell.trains else None
    return f"{loss.mean():.4f}" + (f" ({share[0]:.1f} %)" if share else "")


def _spread(table: Table, cell: Cell) -> str:
    means = [float(np.mean(r["losses"])) for r in table.seeds(cell)]
    around = f" ± {np.std(means, ddof=1):.4f}" if len(means) > 1 else ""
    return f"{np.mean(means):.4f}{around}"


def _trained(rows: Mapping[str, Row]) -> Iterator[Cell]:
    for row in rows.values():
        if "tuning" in row:
            cell = Cell(**{f: row[f] for f in Cell.__dataclass_fields__})
            if cell.trains:
                yield cell


def _fields(cell: Cell) -> Row:
    return {f: getattr(cell, f) for f in Cell.__dataclass_fields__}
