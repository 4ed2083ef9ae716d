"""Masks beside those of the peers: the same model, calibration ids and held-out ids, one run.

    python -m benchmarks.masks.run --quick                        # under 10 minutes on 2 cores
    benchmarks/peers/make.sh ENVIRONMENTS                         # once, 9 GB
    python -m benchmarks.masks.run --peers ENVIRONMENTS           # all; kill it and run it again, it goes on
    python -m benchmarks.masks.run --case demo                    # the demo model instead of the byte-level fixture
    python -m benchmarks.masks.run --case NAME --model FOLDER --text train.jsonl --evaluation valid.jsonl
    python -m benchmarks.masks.run --report                       # only the tables, from what is finished

Each finished cell is one line of results/<case>.jsonl; results/<case>.md holds the tables.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import _beside, _cases, _score, _tools
from benchmarks._ledger import Results, Row
from benchmarks.masks import report, trained
from benchmarks.masks.ours import FROM_DISK, METHODS

RESULTS = Path(__file__).parent / "results"
PATTERNS = ("50%", "2:4")
QUICK = ("magnitude", "wanda", "ria", "sparsegpt")
# Peer -> what it can do.
PEERS = {
    "llm-compressor": (("sparsegpt", "50%"), ("sparsegpt", "2:4"), ("wanda", "50%"), ("wanda", "2:4")),
    "modelopt": (("sparsegpt", "2:4"), ("magnitude", "2:4")),
    "torchao": (("wanda", "50%"), ("wanda", "2:4")),
    "nncf": (("magnitude", "50%"), ("global", "50%")),
}


@dataclass(frozen=True)
class Cell:
    """One method of one tool at one pattern."""

    tool: str
    method: str
    pattern: str

    @property
    def key(self) -> str:
        """Return the cell's name in the results."""
        return f"{self.tool}/{self.method}/{self.pattern}"


def cells(peers: Path | None, quick: bool) -> Iterator[Cell]:
    """Yield what is to be run."""
    for pattern in PATTERNS:
        unable = ("permute" if pattern == "50%" else "global", FROM_DISK)
        wanted = QUICK if quick else [m for m in METHODS if not m.endswith(unable)]
        yield from (Cell("compress", method, pattern) for method in wanted)
    if peers:
        yield from (Cell(tool, *what) for tool, able in PEERS.items() for what in able)


def pruned(cell: Cell, case: Path, peers: Path | None, out: Path) -> Row:
    """Run one tool in a process of its own; return its time and memory, or why it failed."""
    ours = "benchmarks.masks.ours"
    return _tools.call(cell.tool, ours, peers, case=case, method=cell.method, form=cell.pattern, out=out)


def finish(results: Results, cell: Cell, case: Path, peers: Path | None) -> None:
    """Run a cell that is not finished yet."""
    if cell.key in results.rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pruned.safetensors"
        row = {"key": cell.key, **asdict(cell), **pruned(cell, case, peers, out)}
        if "failed" not in row:
            model = _score.open_model(case)
            _score.put_(model, out)
            row["losses"] = [round(v, 6) for v in _score.window_losses(model, _cases.ids_of(case)["evaluation"])]
            row["zeros"], row["two_of_four"] = _score.zeros(model)
    results.add(row)
    shown = row.get("failed") or f"perplexity {_score.perplexity(row['losses']):.4f} ({row['seconds']:.1f} s)"
    print(f"{cell.key}: {shown}", flush=True)


def work(given: Any, results: Results, case: Path) -> None:
    """Run what is not finished."""
    for cell in cells(given.peers, given.quick):
        finish(results, cell, case, given.peers)
    trained.run(results, case, quick=given.quick)


if __name__ == "__main__":
    _beside.run(
        _beside.parser(__doc__, Path("runs/masks"), "few methods, few training steps"), RESULTS, work, report.render
    )
