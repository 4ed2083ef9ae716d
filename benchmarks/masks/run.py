"""Masks beside those of the peers: the same model, calibration ids and held-out ids, one run.

    python -m benchmarks.masks.run --quick                        # under 10 minutes on 2 cores
    benchmarks/masks/peers.sh ENVIRONMENTS                        # once, 6 GB
    python -m benchmarks.masks.run --peers ENVIRONMENTS           # all; kill it and run it again, it goes on
    python -m benchmarks.masks.run --case demo                    # the demo model instead of the byte-level fixture
    python -m benchmarks.masks.run --case NAME --model FOLDER --text train.jsonl --evaluation valid.jsonl
    python -m benchmarks.masks.run --report                       # only the tables, from what is finished

Each finished cell is one line of results/<case>.jsonl; results/<case>.md holds the tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._ledger import Results, Row, publish
from benchmarks.masks import cases, report, score, trained
from benchmarks.masks.ours import FROM_DISK, METHODS
from compress import files
from compress.errors import UserFault

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PATTERNS = ("50%", "2:4")
QUICK = ("magnitude", "wanda", "ria", "sparsegpt")
QUICK = ("magnitude", "wanda", "ria", "sparsegpt")
# Peer -> its environment, its script, and what it can do.
PEERS: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "llm-compressor": (
        "llmcompressor", "llm_compressor.py",
        (("sparsegpt", "50%"), ("sparsegpt", "2:4"), ("wanda", "50%"), ("wanda", "2:4")),
    ),
    "modelopt": ("modelopt", "model_optimizer.py", (("sparsegpt", "2:4"), ("magnitude", "2:4"))),
    "torchao": ("torchao", "ao.py", (("wanda", "50%"), ("wanda", "2:4"))),
    "nncf": ("nncf", "nncf_magnitude.py", (("magnitude", "50%"), ("global", "50%"))),
}  # fmt: skip


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
        yield from (Cell(tool, *what) for tool, (_, _, able) in PEERS.items() for what in able)


def pruned(cell: Cell, case: Path, peers: Path | None, out: Path) -> Row:
    """Run one tool in a process of its own; return its time and memory, or why it failed."""
    if cell.tool == "compress":
        command = [sys.executable, "-m", "benchmarks.masks.ours"]
    else:
        assert peers is not None
        environment, script, _ = PEERS[cell.tool]
        command = [str(peers / environment / "bin" / "python"), "-W", "ignore", str(HERE / "peers" / script)]
    command += [str(case), cell.method, cell.pattern, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=report.environment())
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"failed": lines[-1][:300]}
    found: Row = json.loads(out.with_suffix(".json").read_text())
    return found


def finish(results: Results, cell: Cell, case: Path, peers: Path | None) -> None:
    """Run a cell that is not finished yet."""
    if cell.key in results.rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pruned.safetensors"
        row = {"key": cell.key, **asdict(cell), **pruned(cell, case, peers, out)}
        if "failed" not in row:
            model = score.open_model(case)
            score.put_(model, out)
            row["losses"] = [round(v, 6) for v in score.window_losses(model, cases.ids_of(case)["evaluation"])]
            row["zeros"], row["two_of_four"] = score.zeros(model)
    results.add(row)
    shown = row.get("failed") or f"perplexity {score.perplexity(row['losses']):.4f} ({row['seconds']:.1f} s)"
    print(f"{cell.key}: {shown}", flush=True)


def case_of(given: Any, folder: Path) -> Path:
    """Return the folder of the case, made when absent."""
    case: Path = folder / given.case
    if not (case / cases.IDS).exists():
        print(f"making {case} ...", flush=True)
        if given.case == "fixture":
            cases.fixture(case)
        else:
            cases.of_model(case, given.model, given.text, given.evaluation or given.text, given.length)
    return case


def work(given: Any, path: Path) -> None:
    """Run what is not finished."""
    case = case_of(given, given.work)
    torch.set_num_threads(1)
    setup = {
        "case": given.case, "python": sys.version.split()[0], "torch": torch.__version__,
        "ids": files.sha256(case / cases.IDS)[:12], "weights": files.sha256(case / "model" / "model.safetensors")[:12],
    }  # fmt: skip
    results = Results(path, setup)
    if "dense" not in results.rows:
        losses = score.window_losses(score.open_model(case), cases.ids_of(case)["evaluation"])
        results.add({"key": "dense", "losses": [round(v, 6) for v in losses]})
    for cell in cells(given.peers, given.quick):
        finish(results, cell, case, given.peers)
    trained.run(results, case, quick=given.quick)


def arguments() -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="fixture", help="fixture, demo, or a name of yours together with --model")
    parser.add_argument("--model", help="a folder; by default the demo model")
    parser.add_argument("--text", default="python-source", help="training text: a built-in corpus, or a file")
    parser.add_argument("--evaluation", help="evaluation text; by default the held-out side of a built-in --text")
    parser.add_argument("--length", type=int, default=cases.LENGTH, help="tokens a window")
    parser.add_argument("--peers", type=Path, help="the folder of the peers' environments; without it, none is run")
    parser.add_argument("--work", type=Path, default=Path("runs/masks"), help="where cases are kept")
    parser.add_argument("--quick", action="store_true", help="few methods, few training steps")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the tables")
    given = parser.parse_args()
    given.model = given.model or ("demo" if given.case == "demo" else None)
    if given.case != "fixture" and given.model is None:
        parser.error("--case needs --model, a folder")
    return given


def main() -> None:
    """Run what is asked and write the tables."""
    given = arguments()
    path = RESULTS / f"{given.case}{'-quick' if given.quick else ''}.jsonl"
    try:
        if not given.report:
            work(given, path)
    except UserFault as error:
        sys.exit(f"error: {error}")
    publish(path, report.render)


if __name__ == "__main__":
    main()
