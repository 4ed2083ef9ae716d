"""The tables of a results file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks._ledger import Row

GOALS = {("80 x 54", 2): 1.0, ("80 x 162", 3): 10.0}  # seconds


def render(setup: Row, rows: Mapping[str, Row]) -> str:
    """Return the page."""
    told = "; ".join(f"{k} {v}" for k, v in setup.items())
    told += ". Seconds are the processor's (wall in brackets), median … worst over seeds."
    parts = [f"Setup: {told}", "", *_sizes(rows)]
    if several := [r for r in rows.values() if r["way"] in ("front", "diverse")]:
        parts += ["", "## Several solutions of one problem, CBC", "", *_several(several)]
    if plain := [r for r in rows.values() if r["way"].startswith(("plain-", "hard:"))]:
        parts += ["", "## Without reductions, and where they help little", "", *_plain(plain)]
    return "\n".join(parts) + "\n"


def _sizes(rows: Mapping[str, Row]) -> list[str]:
    ways = [w for w in ("cbc", "highs") if any(r["way"] == w for r in rows.values())]
    lines = [
        f"| layers x options | budgets | proven | {' | '.join(f'{w} s (wall)' for w in ways)} | goal "
        "| greedy off by | Lagrangian off by | its bound below by |",
        "|---|--:|--:|" + "--:|" * len(ways) + "--:|--:|--:|--:|",
    ]
    for shape, budgets in dict.fromkeys((r["shape"], r["budgets"]) for r in rows.values()):
        same = [r for r in rows.values() if (r["shape"], r["budgets"]) == (shape, budgets)]
        exact = {w: [r for r in same if r["way"] == w] for w in ways}
        if not all(exact.values()):
            continue
        solved = [r for found in exact.values() for r in found]
        best = {r["seed"]: r["score"] for r in solved if r.get("proven")}
        goal = GOALS.get((shape, budgets))
        reached = goal and max(r["processor"] for r in solved) < goal
        cells = [shape, str(budgets), f"{sum(r.get('proven', False) for r in solved)} of {len(solved)}"]
        cells += [_seconds(exact[w]) for w in ways]
        cells += [f"< {goal:g} s: {'reached' if reached else 'missed'}" if goal else ""]
        cells += [_off(same, best, way, "score", 1) for way in ("greedy", "lagrangian")]
        cells += [_off(same, best, "lagrangian", "bound", -1)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _seconds(found: Sequence[Row]) -> str:
    shown = [
        f"{f([r['processor'] for r in found]):.2f} ({f([r['seconds'] for r in found]):.2f})" for f in (median, max)
    ]
    return " … ".join(shown)


def _off(same: Sequence[Row], best: Mapping[int, float], way: str, field: str, sign: int) -> str:
    """Return how far a score or a bound is from the optimum, median and worst, in percent of it."""
    found = [r for r in same if r["way"] == way and r["seed"] in best]
    off = [sign * 100 * (r[field] / best[r["seed"]] - 1) for r in found if field in r]
    failed = sum("failed" in r for r in found)
    shown = f"{median(off):.2f} … {max(off):.2f} %" if off else ""
    return shown + (f", {failed} not found" if failed else "")


def _several(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| layers x options | budgets | what | solutions | proven | s (wall) | scores |",
        "|---|--:|---|--:|---|--:|---|",
    ]
    for r in rows:
        scores = f"{r['scores'][0]:.4f} … {r['scores'][-1]:.4f}"
        lines.append(
            f"| {r['shape']} | {r['budgets']} | {r['way']} | {r['points']} | {'yes' if r['proven'] else 'no'} "
            f"| {r['processor']:.2f} ({r['seconds']:.2f}) | {scores} |"
        )
    return lines


def _plain(rows: Sequence[Row]) -> list[str]:
    lines = ["| layers x options | budgets | seed | what | proven | gap | s (wall) |", "|---|--:|--:|---|---|--:|--:|"]
    for r in rows:
        ended = ("no choice found" if "failed" in r else "yes" if r["proven"] else "no"), r.get("gap")
        gap = "" if ended[1] is None else f"{ended[1]:.2e}"
        lines.append(
            f"| {r['shape']} | {r['budgets']} | {r['seed']} | {r['way']} | {ended[0]} | {gap} "
            f"| {r['processor']:.2f} ({r['seconds']:.2f}) |"
        )
    return lines
