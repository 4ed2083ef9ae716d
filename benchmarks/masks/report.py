"""The tables of a results file."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import _score
from benchmarks._ledger import Row
from benchmarks.masks import trained


def render(setup: Row, rows: Mapping[str, Row]) -> str:
    """Return the page."""
    told = "; ".join(f"{k} {v}" for k, v in setup.items())
    dense = rows["dense"]["losses"]
    parts = [f"Setup: {told}. Dense perplexity {_score.perplexity(dense):.4f} on {len(dense)} windows."]
    for pattern in ("50%", "2:4"):
        parts += [f"\n## {pattern}\n", *_pattern(rows, pattern)]
    if trained.best(rows):
        parts += ["\n## Trained further, beside the dense model trained as long on the same text\n", *_trained(rows)]
    return "\n".join(parts) + "\n"


def _pattern(rows: Mapping[str, Row], pattern: str) -> list[str]:
    """Return one line per tool and method, best first, each beside the best peer with the same method."""
    found = [r for r in rows.values() if r.get("pattern") == pattern and "losses" in r]
    lines = [
        "| tool | method | perplexity | minus dense | minus the best peer's (95 %) | zeros | 2:4 | s | MiB |",
        "|---|---|--:|--:|--:|--:|---|--:|--:|",
    ]
    dense = _score.perplexity(rows["dense"]["losses"])
    for row in sorted(found, key=lambda r: sum(r["losses"])):
        own = _score.perplexity(row["losses"])
        cells = [row["tool"], row["method"], f"{own:.4f}", f"{own - dense:+.4f}", _beside(row, found)]
        kept = "yes" if row["two_of_four"] else ""
        cells += [f"{row['zeros']:.2%}", kept, f"{row['seconds']:.1f}", f"{row['added_mib']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    failed = [r for r in rows.values() if r.get("pattern") == pattern and "failed" in r]
    return [*lines, *(f"\n{r['tool']} {r['method']} failed: {r['failed']}" for r in failed)]


def _beside(row: Row, found: list[Row]) -> str:
    family = row["method"].partition(" ")[0].rstrip(",")
    peers = [r for r in found if r["tool"] != "compress" and r["method"] == family]
    if row["tool"] != "compress" or not peers:
        return ""
    best = min(peers, key=lambda r: sum(r["losses"]))
    value, low, high = _score.difference(row["losses"], best["losses"])
    return f"{value:+.4f} ({low:+.4f} … {high:+.4f}) {best['tool']}"


def _trained(rows: Mapping[str, Row]) -> list[str]:
    lines = [
        "| trained | steps | lr | dense, trained too | 2:4, trained | share of the one-shot loss left (95 %) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    found = trained.best(rows)
    controls = {row["steps"]: row for row in found if row["name"] == trained.CONTROL}
    before = {"pruned": rows["compress/sparsegpt/2:4"]["losses"], "dense": rows["dense"]["losses"]}
    for row in (r for r in found if r["name"] != trained.CONTROL):
        control = controls[row["steps"]]["losses"]
        left, low, high = _score.share_lost({"recovered": row["losses"], "control": control, **before})
        figures = f"{_score.perplexity(control):.4f} | {_score.perplexity(row['losses']):.4f}"
        told = f"{row['name']} | {row['steps']} | {row['lr']:g}"
        lines.append(f"| {told} | {figures} | {left:.1%} ({low:.1%} … {high:.1%}) |")
    return lines
