"""Pruned, then trained further; and the dense model trained as long on the same text, which is what to compare with."""

from __future__ import annotations

from pathlib import Path

from benchmarks._ledger import Results


def run(results: Results, case: Path, *, quick: bool) -> None:
    """Finish the trained cells."""
