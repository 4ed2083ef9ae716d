"""Time and memory of SparseGPT beside llm-compressor's: a Llama of 135 M random parameters, one thread, interleaved.

python -m benchmarks.masks.cost --peers ENVIRONMENTS          # some minutes a round
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path
from statistics import median

from benchmarks._ledger import Row
from benchmarks.masks import cases, run
from benchmarks.masks.run import Cell

TOOLS = ("compress", "llm-compressor")
RESULT = run.RESULTS / "cost.md"


def main() -> None:
    """Measure in turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the folder of the peers' environments")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each tool, in turns")
    parser.add_argument("--pattern", default="2:4", choices=run.PATTERNS)
    parser.add_argument("--work", type=Path, default=Path("runs/masks"), help="where the model is kept")
    given = parser.parse_args()
    case = given.work / "geometry"
    if not (case / cases.IDS).exists():
        cases.geometry(case)
    measured: dict[str, list[Row]] = {tool: [] for tool in TOOLS}
    for _ in range(given.rounds):
        for tool in TOOLS:
            with tempfile.TemporaryDirectory() as folder:
                cell = Cell(tool, "sparsegpt", given.pattern)
                row = run.pruned(cell, case, given.peers, Path(folder) / "pruned.safetensors")
            if "failed" in row:
                raise SystemExit(f"error: {tool}: {row['failed']}")
            print(f"{tool}: {row['seconds']:.1f} s, {row['added_mib']:.0f} MiB above what was imported", flush=True)
            measured[tool].append(row)
    text = table(measured, given.pattern)
    RESULT.write_text(text)
    print(f"\n{text}")


def table(measured: dict[str, list[Row]], pattern: str) -> str:
    """Return medians, and ours as shares of the peer's."""
    rounds = len(measured[TOOLS[0]])
    found = {t: {k: median(r[k] for r in rows) for k in ("seconds", "added_mib")} for t, rows in measured.items()}
    ours, theirs = (found[t] for t in TOOLS)
    lines = [
        f"SparseGPT {pattern}, 135 M random parameters, {cases.CALIBRATION} windows of {cases.LENGTH} tokens, "
        f"one thread, medians of {rounds} in turns, Python {platform.python_version()}.\n",
        "| tool | seconds | MiB above what was imported |",
        "|---|--:|--:|",
        *(f"| {tool} | {f['seconds']:.1f} | {f['added_mib']:.0f} |" for tool, f in found.items()),
        f"| ratio | {ours['seconds'] / theirs['seconds']:.2f} | {ours['added_mib'] / theirs['added_mib']:.2f} |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
