"""Time and memory of SparseGPT beside llm-compressor's: a Llama of 135 M random parameters, one thread, interleaved.

python -m benchmarks.masks.cost --peers ENVIRONMENTS          # some minutes a round
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks import _cases
from benchmarks._ledger import Row
from benchmarks.masks import run
from benchmarks.masks.ours import METHODS
from benchmarks.masks.run import Cell

PEER = Cell("llm-compressor", "sparsegpt", "2:4")
OURS = [Cell("compress", m, "2:4") for m in reversed(METHODS) if m.startswith("sparsegpt")]
FIGURES = ("seconds", "cpu_seconds", "added_mib")
RESULT = run.RESULTS / "cost.md"


def main() -> None:
    """Measure in turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the folder of the peers' environments")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turns")
    parser.add_argument("--work", type=Path, default=Path("runs/masks"), help="where the model is kept")
    given = parser.parse_args()
    case = given.work / "geometry"
    if not (case / _cases.IDS).exists():
        _cases.geometry(case)
    measured: dict[Cell, list[Row]] = {cell: [] for cell in (PEER, *OURS)}
    for _ in range(given.rounds):
        for cell, rows in measured.items():
            with tempfile.TemporaryDirectory() as folder:
                row = run.pruned(cell, case, given.peers, Path(folder) / "pruned.safetensors")
            if "failed" in row:
                raise SystemExit(f"error: {cell.key}: {row['failed']}")
            took = f"{row['seconds']:.1f} s ({row['cpu_seconds']:.1f} of the processor)"
            print(f"{cell.key}: {took}, {row['added_mib']:.0f} MiB above what was imported", flush=True)
            rows.append(row)
        RESULT.write_text(table(measured))
    print(f"\n{table(measured)}")


def table(measured: Mapping[Cell, list[Row]]) -> str:
    """Return medians, and ours as shares of the peer's."""
    found = {c: {k: median(r[k] for r in rows) for k in FIGURES} for c, rows in measured.items()}
    peer = found[PEER]
    lines = [
        f"SparseGPT 2:4, 135 M random parameters, {_cases.CALIBRATION} windows of {_cases.LENGTH} tokens, "
        f"one thread, medians of {len(measured[PEER])} in turns, Python {platform.python_version()}.\n",
        "| tool | method | seconds | x peer | of the processor | x peer | MiB above what was imported | x peer |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for cell, figures in found.items():
        shown = (f"{value:.0f} | {value / peer[key]:.2f}" for key, value in figures.items())
        lines.append(f"| {cell.tool} | {cell.method} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
