"""The tables of a results file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean

from benchmarks import _score
from benchmarks._ledger import Row
from benchmarks.low_bit.report import interval, table
from benchmarks.puzzle import slack
from benchmarks.puzzle.cells import ABLATIONS, ALL, BATCHES, CONTROL, PUZZLE, QUANTIZED, SINGLE, STRUCTURE, Cell
from benchmarks.puzzle.points import Interval, Point, Rows, dense_of, points, rivals
from compress.sweep.clock import HALF

TOLERANCE = 0.02  # how far over its budget the upper end of a time may be
PAPER = (2.17, 0.984)  # throughput and mean score, as shares of the parent's
TITLES = {
    STRUCTURE: "Shapes alone, all engines in fp32",
    ALL: "Shapes, codes and zeros",
    SINGLE: "One method alone, and the parent trained on the same tokens",
}
Found = Mapping[str, Point]


def render(setup: Row, rows: Rows) -> str:
    """Return the page."""
    told = "; ".join(f"{k} {v}" for k, v in setup.items())
    found = points(rows)
    parts = [f"Setup: {told}.", *_clock(rows)]
    if Cell(SINGLE, "dense").key in found:
        parts += [*_curves(found), *_beaten(found), *_budgets(found), *_ablations(found), *_paper(found)]
    failed = [f"{key.removeprefix('engine/')}: {row['failed']}" for key, row in rows.items() if "failed" in row]
    parts += _geometry([row for key, row in rows.items() if key.startswith("geometry/")])
    return "\n".join([*parts, *(["\n## Not made\n", *(f"- {f}" for f in failed)] if failed else [])]) + "\n"


def _clock(rows: Rows) -> list[str]:
    lines = []
    for row in {r["batch"]: r for k, r in rows.items() if k.startswith("clock/")}.values():
        told = f"{len(row['engines'])} engines in turns, {row['processes']} processes, {row['clock']}"
        flags = f"; {len(row['flags'])} cautions" if row["flags"] else ""
        lines.append(f"\nBatch {row['batch']}: {told}, load {row['load']:g}{flags}.")
    return lines


def _share(given: Interval | None) -> str:
    return f"{given[0]:.3f} ({given[1]:.3f} … {given[2]:.3f})" if given else ""


def _amount(cell: Cell) -> str:
    if not cell.amount:
        return ""
    return f"{cell.amount:g}x" if cell.chosen else f"{cell.amount:g} blocks"


def _curves(found: Found) -> list[str]:
    """Return one table a curve, slowest engine first."""
    dense, parts = dense_of(found), list[str]()

    def line(point: Point) -> Iterator[str]:
        yield point.cell.way
        yield _amount(point.cell)
        yield from (_share(point.share(batch)) for batch in BATCHES)
        yield _share(point.share(phase="prefill"))
        yield f"{point.loss:.4f}"
        yield interval(point.above(dense), 4)
        yield f"{mean(point.row['unhealed']):.4f}"
        yield f"{point.kept(dense):.1%}"
        yield f"{point.row['file_mib']:.2f}"

    head = (
        "way: | asked | decode, batch 1 | decode, batch 8 | prefill, batch 1 | loss, nats | minus dense (95 %) "
        "| before healing | right tokens kept | MiB"
    )
    for curve, title in TITLES.items():
        same = [p for p in found.values() if p.cell.curve == curve]
        order = sorted(same, key=lambda p: -(p.share() or (9.0, 0, 0))[0])
        parts += [f"\n## {title}\n", *table(head, map(line, order))]
    return [*parts, "\nTimes are shares of the dense engine's."]


def _beaten(found: Found) -> list[str]:
    """Return Puzzle's points beside the best engine of any other way that is as fast."""
    lines = []
    for point in (p for p in found.values() if p.cell.way == PUZZLE):
        curve = STRUCTURE if point.cell.curve == STRUCTURE else None
        for batch in BATCHES:
            if not (own := point.share(batch)):
                continue
            best = next(iter(rivals(point, found, batch, curve=curve)), None)
            against = point.above(best) if best else None
            verdict = (
                "alone" if against is None else "better" if against[2] < 0 else "worse" if against[1] > 0 else "even"
            )
            named = f"{best.cell.curve}: {best.cell.way} {_amount(best.cell)}".strip() if best else "none is as fast"
            told = interval(against, 4) if against else ""
            lines.append((point.cell.curve, _amount(point.cell), str(batch), _share(own), named, told, verdict))
    head = "curve: | budget | batch | decode | best other as fast: | Puzzle minus it, nats (95 %) | so it is:"
    return ["\n## Puzzle beside the best of all others at its speed\n", *table(head, lines)] if lines else []


def _budgets(found: Found) -> list[str]:
    """Return what was asked, promised and measured of every chosen engine."""
    lines = []
    for point in (p for p in found.values() if p.row.get("rounds")):
        rounds, asked, own = point.row["rounds"], point.cell.amount, point.share()
        first, last = (r["figures"]["decode_ms"] for r in (rounds[0], slack.kept(point.row)))
        scale = asked / last["limit"]
        at, low, high = (last[k] * scale for k in ("measured", "low", "high"))
        told = verdict = ""
        if own:
            sure = (own[2] - own[1]) / (2 * own[0]) <= HALF
            kept = own[2] <= (1 + TOLERANCE) * asked
            told, verdict = f"{own[2] / asked:.3f}", "kept" if kept else "missed" if sure else "not resolvable here"
        fits = point.row.get("upgrades")
        lines.append((
            point.cell.curve, point.cell.way, f"{asked:g}", f"{first['predicted'] * asked / first['limit']:.3f}",
            _share((at, low, high)), _share(own), told, verdict, str(len(rounds)),
            "" if fits is None else f"{len(fits)}{'' if last['resolved'] else ', unsure'}",
        ))  # fmt: skip
    head = (
        "curve: | way: | budget | promised at first | in the loop | finished engine | upper end / budget "
        "| so it is: | rounds | better options that fit what is left"
    )
    return ["\n## Budgets, as shares of the dense engine's decode time\n", *table(head, lines)] if lines else []


def _ablations(found: Found) -> list[str]:
    """Return what becomes of Puzzle when one thing is other."""
    lines = []
    for own in (p for p in found.values() if p.cell.way == PUZZLE):
        curve, budget = own.cell.curve, own.cell.amount
        bare = _score.mean_difference(own.row["unhealed"], own.row["losses"])
        lines.append((curve, "without gkd", f"{budget:g}", f"{mean(own.row['unhealed']):.4f}", interval(bare, 4), ""))
        for way in ABLATIONS:
            if other := found.get(Cell(curve, way, budget).key):
                raw = _score.mean_difference(other.row["unhealed"], own.row["unhealed"])
                told = f"{other.loss:.4f}", interval(other.above(own), 4), interval(raw, 4)
                lines.append((curve, way, f"{budget:g}", *told))
    head = "curve: | Puzzle with: | budget | loss, nats | minus Puzzle's (95 %) | likewise, both before healing"
    return ["\n## What it is made of\n", *table(head, lines)] if lines else []


def _paper(found: Found) -> list[str]:
    """Return where the paper's point lies beside the curve of all options."""
    dense = dense_of(found)
    timed = [(share[0], p) for p in found.values() if (share := p.share())]
    if not timed:
        return []
    speed, kept = PAPER
    lines = [f"\n## The paper's point: {speed:g} x the throughput, {kept:.1%} of the mean score kept\n"]
    for curve in TITLES:
        same = [(share, p) for share, p in timed if p.cell.curve == curve and p.cell.way in (PUZZLE, *QUANTIZED)]
        fast = [(share, p) for share, p in same if share <= 1 / speed]
        good = [(share, p) for share, p in same if p.kept(dense) >= kept]
        best = max(fast, key=lambda e: e[1].kept(dense), default=None)
        quick = min(good, key=lambda e: e[0], default=None)
        told = f"{best[1].kept(dense):.1%} of the right tokens kept at {1 / best[0]:.2f} x" if best else "none so fast"
        other = f"{1 / quick[0]:.2f} x with {quick[1].kept(dense):.1%} kept" if quick else "none keeps so much"
        who = "Codes alone" if curve == SINGLE else f"Puzzle, {curve}"
        lines.append(f"- {who}: at that speed {told}; at that quality {other}.")
    parent = found.get(Cell(SINGLE, CONTROL).key)
    if parent:
        lines.append(f"- The parent, trained on the same tokens: {parent.kept(dense):.1%} at 1 x.")
    return [
        *lines,
        "\nThe paper's score is of benchmarks, ours the share of next tokens guessed right; decode, batch 1.",
    ]


def _geometry(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        for phase in ("prefill", "decode"):
            ms, low, high, before = row["promised"][f"{phase}_ms"]
            _, ratio, at, to = row["mixed"][phase]
            measured = row["mixed"][phase][0]
            lines.append((
                row["name"], phase, f"{row['dense'][phase][0]:.2f}", f"{before:.2f}", f"{measured:.2f}",
                f"{ms:.2f} ({low:.2f} … {high:.2f})", f"{ms / measured - 1:+.1%}",
                f"{1 / ratio:.2f} ({1 / to:.2f} … {1 / at:.2f})",
            ))  # fmt: skip
    head = "shapes: | phase: | dense ms | promised | mixed build ms | promised (95 %) | off by | x dense"
    told = "\nWeights are random: what such a build would keep of the quality is not measured."
    return ["\n## Speed alone, in the shapes of real models\n", *table(head, lines), told] if lines else []
