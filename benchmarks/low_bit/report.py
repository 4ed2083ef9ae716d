"""The tables of a results file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import mean, median

from benchmarks import _score, _tools
from benchmarks._ledger import Row
from benchmarks.low_bit import chain, cost, engines, trained
from benchmarks.low_bit.oneshot import GRIDS

Rows = Mapping[str, Row]


def render(setup: Row, rows: Rows) -> str:
    """Return the page."""
    told = "; ".join(f"{k} {v}" for k, v in setup.items())
    dense = rows["dense"]["losses"]
    parts = [f"Setup: {told}. Dense perplexity {_score.perplexity(dense):.4f} on {len(dense)} windows."]
    for grid in GRIDS:
        found = [r for r in of(rows, "oneshot/") if r["grid"] == grid]
        if found:
            parts += [f"\n## {grid}, without training\n", *_oneshot(found, rows["dense"])]
    for grid in trained.GRIDS:
        parts += _trained(rows, grid)
    parts += [*_chains(rows), *_cost(rows), *_engines(rows)]
    return "\n".join(parts) + "\n"


def of(rows: Rows, part: str) -> list[Row]:
    """Return the rows of a part."""
    return [r for key, r in rows.items() if key.startswith(part)]


def interval(figure: tuple[float, float, float], digits: int) -> str:
    """Return a difference with its interval."""
    value, low, high = (f"{v:+.{digits}f}" for v in figure)
    return f"{value} ({low} … {high})"


def table(head: str, lines: Iterable[Iterable[str]]) -> list[str]:
    """Return a table; columns whose name ends in a colon are of words."""
    names = head.split(" | ")
    rule = "|".join("---" if n.endswith(":") else "--:" for n in names)
    shown = " | ".join(n.rstrip(":") for n in names)
    return [f"| {shown} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)]


def _oneshot(rows: list[Row], dense: Row) -> list[str]:
    """Return one line per tool and method, nearest to the dense model first, ours beside the best peer of all."""
    found = sorted((r for r in rows if "losses" in r), key=lambda r: sum(r["kl"]))
    best = next((r for r in found if r["tool"] != _tools.OURS), None)

    def line(row: Row) -> Iterator[str]:
        ours = row["tool"] == _tools.OURS
        yield row["tool"]
        yield row["method"]
        yield f"{mean(row['kl']):.5f}"
        yield interval(_score.mean_difference(row["kl"], best["kl"]), 5) if ours and best else ""
        yield f"{_score.perplexity(row['losses']):.4f}"
        yield interval(_score.difference(row["losses"], dense["losses"]), 4)
        yield f"{row['cpu_seconds']:.1f}"
        yield f"{row['added_mib']:.0f}"

    head = "tool: | method: | KL to dense | minus best peer's (95 %) | perplexity | minus dense (95 %) | CPU s | MiB"
    return [*table(head, map(line, found)), *_failed(rows, "method")]


def _failed(rows: Iterable[Row], what: str) -> list[str]:
    return [f"\n{r.get('tool', '')} {r[what]} failed: {r['failed']}" for r in rows if "failed" in r]


def _trained(rows: Rows, grid: str) -> list[str]:
    """Return one line per training at its best rate, seeds averaged window by window, beside L4Q."""
    found = {}
    for steps in {r["steps"] for r in of(rows, "trained/")}:
        for method in trained.METHODS:
            same = trained.best(rows, trained.Cell(method, "" if method == trained.LORA else grid, steps))
            if same:
                found[method, steps] = same
    if not any(method in trained.OWN for method, _ in found):
        return []

    def losses(same: list[Row]) -> list[float]:
        return [mean(each) for each in zip(*(r["losses"] for r in same), strict=True)]

    def line(name: str, steps: int, same: list[Row]) -> Iterator[str]:
        each = [_score.perplexity(r["losses"]) for r in same]
        yield name
        yield str(steps if trained.trains(name) else 0)
        yield f"{same[0]['lr']:g}" if same[0]["lr"] else ""
        yield str(len(same))
        yield f"{_score.perplexity(losses(same)):.4f}"
        yield f"{min(each):.4f} … {max(each):.4f}" if len(each) > 1 else ""
        for own in trained.OWN:
            there = found.get((own, steps)) if own != name else None
            yield interval(_score.difference(losses(there), losses(same)), 4) if there else ""

    order = sorted(found.items(), key=lambda item: sum(losses(item[1])))
    beside = " | ".join(f"`{own}` minus it (95 %)" for own in trained.OWN)
    head = f"trained: | steps | lr | seeds | perplexity | over seeds | {beside}"
    lines = (line(name, steps, same) for (name, steps), same in order)
    return [f"\n## {grid}, trained\n", *table(head, lines)]


def _chains(rows: Rows) -> list[str]:
    """Return one line per chain at its best rate, beside the dense model as it is and trained as long."""
    found: dict[tuple[str, ...], Row] = {}
    for row in (r for r in of(rows, "chain/") if "losses" in r):
        place = row["tool"], row["chain"], row["pattern"]
        if place not in found or row.get("tuning", 0) < found[place].get("tuning", 0):
            found[place] = row
    control = next((r for r in found.values() if r["chain"] == chain.CONTROL), None)

    def line(row: Row) -> Iterator[str]:
        yield row["tool"]
        yield row["chain"]
        yield row["pattern"]
        yield f"{row['steps']} at {row['lr']:g}" if row.get("lr") else "0"
        yield f"{_score.perplexity(row['losses']):.4f}"
        yield interval(_score.difference(row["losses"], rows["dense"]["losses"]), 4)
        yield interval(_score.difference(row["losses"], control["losses"]), 4) if control and row["steps"] else ""
        yield _zeros(row)
        yield " / ".join(_zeros(p) for p in row["packed"].values()) if "packed" in row else ""

    order = sorted(found.values(), key=lambda r: (r["pattern"], sum(r["losses"])))
    head = (
        "tool: | chain: | pattern: | steps | perplexity | minus dense (95 %) | minus dense trained as long (95 %) | "
        "zeros | in the ONNX / compressed-tensors file"
    )
    failed = _failed(of(rows, "chain/"), "chain")
    return [f"\n## Zeros, then codes ({chain.GRID})\n", *table(head, map(line, order)), *failed] if found else []


def _zeros(row: Row) -> str:
    return f"{row['zeros']:.2%}{', 2:4' if row['two_of_four'] else ''}"


def _cost(rows: Rows) -> list[str]:
    """Return medians over the rounds, and as shares of LoRA's."""
    found = {m: [r for r in of(rows, "cost/") if r["method"] == m] for m in cost.METHODS}
    if not all(found.values()):
        return []
    figures = {m: {k: median(r[k] for r in same) for k in ("cpu_seconds", "added_mib")} for m, same in found.items()}
    lora = figures[cost.LORA]

    def line(method: str) -> Iterator[str]:
        yield method
        for key, digits in (("cpu_seconds", 3), ("added_mib", 0)):
            yield f"{figures[method][key]:.{digits}f}"
            yield f"{figures[method][key] / lora[key]:.2f}"
        yield f"{found[method][0]['kept_mib']:.1f}"
        yield str(found[method][0]["weights_kept"])

    head = (
        "trained: | CPU s a step | x LoRA | peak MiB above the model | x LoRA | MiB kept for the backward | "
        "tensors of a weight's shape among them"
    )
    rounds = len(found[cost.LORA])
    return [f"\n## What a step costs, medians of {rounds} rounds in turns\n", *table(head, map(line, cost.METHODS))]


def _engines(rows: Rows) -> list[str]:
    """Return times by width, then what the case's engines lose."""
    parts: list[str] = []
    timed = sorted((r for r in of(rows, "engines/")), key=lambda r: r["width"])
    if timed:
        lines = []
        for row in timed:
            for name, figures in row["rows"].items():
                shown = (f"{ms:.3f} | {1 / ratio:.2f} ({1 / high:.2f} … {1 / low:.2f})" for ms, ratio, low, high in
                         (figures["decode"], figures["prefill"]))  # fmt: skip
                lines.append((str(row["width"]), name, f"{figures['file_mib']:.2f}", *shown))
        head = "hidden | engine: | file MiB | decode ms | x fp32 | prefill of 128 ms | x fp32"
        parts += [f"\n## Engines, {timed[0]['clock']} time, one thread, int4 in groups of 128\n", *table(head, lines)]
    for row in of(rows, "engine quality/"):
        floats = row["rows"][engines.FP32]["losses"]
        lines = [
            (n, f"{f['file_mib']:.2f}", f"{_score.perplexity(f['losses']):.4f}",
             interval(_score.difference(f["losses"], floats), 4))
            for n, f in row["rows"].items()
        ]  # fmt: skip
        head = "engine: | folder MiB | perplexity of the engine | minus fp32 engine's (95 %)"
        parts += [f"\n## Engines of this model: int4 by {row['method']}, {row['grid']}; int8 by rtn\n"]
        parts += table(head, lines)
    return parts
