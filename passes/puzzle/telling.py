"""What was chosen and what it comes to, told in lines."""

from __future__ import annotations

from collections.abc import Sequence

from compress.budgets import TIMES, Limit, amount
from compress.context import Context
from compress.contracts import Target
from compress.sweep.clock import time_of
from passes.puzzle.costs import Prices
from passes.puzzle.pieces import Piece
from passes.puzzle.scoring import Scores
from passes.puzzle.solving import Chosen

_SHOWN = 6  # scores below 0 that are named


def tell_scores(scores: Scores, context: Context) -> None:
    """Record every score with its interval, and note those below 0."""
    for key, score in scores.shapes.items():
        context.report.record("scores", [key, score.mean, *score.interval(context.seed)])
    for kind, tables in (("codes", scores.precisions), ("zeros", scores.patterns)):
        for name, slots in tables.items():
            for slot, value in slots.items():
                context.report.record(kind, [slot, name, value])
    below = [key for key, score in scores.shapes.items() if score.mean < 0]
    if below:
        told = ", ".join(below[:_SHOWN]) + (", ..." if len(below) > _SHOWN else "")
        context.report.note(
            f"{len(below)} of {len(scores.shapes)} variants score below 0, better than the parent by chance or indeed, "
            f"and are taken as they are: {told}"
        )


def tell(chosen: Chosen, prices: Prices, limits: Sequence[Limit], target: Target, context: Context) -> None:
    """Note the choice layer by layer, its score, and what it comes to; record the figures."""
    for line in table(chosen.pieces):
        context.report.note(line)
    solution = chosen.solution
    dense = prices.dense | {each.cost: chosen.limits[each.cost] / each.share for each in limits if each.share}
    proof = "proven the least" if solution.proven else f"with a gap of {solution.gap:.3g}"
    context.report.note(f"its scores add up to {solution.score:.4g}, {proof} by {solution.solver.partition('/')[0]}")
    rows = [row for cost in solution.totals if (row := _row(cost, chosen, prices, limits))]
    context.report.tell(f"it comes to {'; '.join(rows)}, for target {target.name}")
    context.report.record("choice", {piece.slot: piece.name for piece in chosen.pieces})
    figures = {"score": solution.score, "gap": solution.gap, "bound": solution.bound, "seconds": solution.seconds}
    totals = {"predicted": dict(solution.totals), "dense": dense, "slack": dict(solution.slack)}
    context.report.record("solution", {**figures, **totals, "estimated": prices.costs.estimated})


def _row(cost: str, chosen: Chosen, prices: Prices, limits: Sequence[Limit]) -> str:
    """Return what a choice comes to in one cost, on the clock where it was taken.

    Nothing of times that are not limited, nor of keys where there are none.
    """
    limit = next((limit for limit in limits if limit.cost == cost), None)
    if cost in TIMES and limit is None:
        return ""
    value, whole, how = chosen.solution.totals[cost], prices.whole(cost), ""
    if cost in TIMES:
        how = " estimated" if prices.costs.estimated else " predicted"
        engines = chosen.closed.best.measurement.engines if chosen.closed and chosen.closed.best.measurement else ()
        if engines and (times := [t.ms for e in engines if (t := time_of(e, cost))]):
            whole, value, how = times[0], times[-1], " measured"
    if not whole:
        return ""
    told = f"{cost.removesuffix('_ms')} {amount(cost, value)}{how}, {value / whole:.3g}x"
    return told + (f" of {amount(cost, limit.of(whole))} allowed" if limit else "")


def table(pieces: Sequence[Piece]) -> list[str]:
    """Return the choice in lines, neighbouring blocks of the same options in one."""
    blocks: dict[int, list[str]] = {}
    for piece in pieces:
        blocks.setdefault(piece.variant.block, []).append(f"{piece.variant.part} {piece.name}")
    runs: list[tuple[int, int, str]] = []
    for index, parts in sorted(blocks.items()):
        told = "; ".join(parts)
        if runs and runs[-1][2] == told:
            runs[-1] = (runs[-1][0], index, told)
        else:
            runs.append((index, index, told))
    return [_line(*run) for run in runs]


def _line(first: int, last: int, told: str) -> str:
    return f"block {first}: {told}" if first == last else f"blocks {first} to {last}: {told}"
