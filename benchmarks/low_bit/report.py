"""The tables of a results file."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import _score, _tools
from benchmarks._ledger import Row
from benchmarks.low_bit.oneshot import GRIDS


def render(setup: Row, rows: Mapping[str, Row]) -> str:
    """Return the page."""
    told = "; ".join(f"{k} {v}" for k, v in setup.items())
    dense = rows["dense"]["losses"]
    parts = [f"Setup: {told}. Dense perplexity {_score.perplexity(dense):.4f} on {len(dense)} windows."]
    for grid in GRIDS:
        found = [r for r in rows.values() if r["key"].startswith("oneshot/") and r["grid"] == grid]
        if found:
            parts += [f"\n## {grid}, without training\n", *_oneshot(found, rows["dense"])]
    return "\n".join(parts) + "\n"


def _oneshot(rows: list[Row], dense: Row) -> list[str]:
    """Return one line per tool and method, nearest to the dense model first, ours beside the best peer of all."""
    found = sorted((r for r in rows if "losses" in r), key=lambda r: sum(r["kl"]))
    best = next((r for r in found if r["tool"] != _tools.OURS), None)
    lines = [
        "| tool | method | KL to dense | minus best peer's (95 %) | perplexity | minus dense (95 %) | CPU s | MiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        beside = (
            interval(_score.mean_difference(row["kl"], best["kl"]), 5) if best and row["tool"] == _tools.OURS else ""
        )
        cells = [
            row["tool"],
            row["method"],
            f"{_mean(row['kl']):.5f}",
            beside,
            f"{_score.perplexity(row['losses']):.4f}",
        ]
        cells += [interval(_score.difference(row["losses"], dense["losses"]), 4)]
        cells += [f"{row['cpu_seconds']:.1f}", f"{row['added_mib']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, *(f"\n{r['tool']} {r['method']} failed: {r['failed']}" for r in rows if "failed" in r)]


def interval(figure: tuple[float, float, float], digits: int) -> str:
    """Return a difference with its interval."""
    value, low, high = (f"{v:+.{digits}f}" for v in figure)
    return f"{value} ({low} … {high})"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
