"""DSEE and PST on a decoder that learns to say things, beside full fine-tuning, LoRA, and pruning by magnitude.

    pip install sacrebleu                             # BLEU and chrF, for this benchmark only
    python -m benchmarks.nlg.run --data FOLDER --quick           # E2E alone, some 10 minutes on 2 cores
    python -m benchmarks.nlg.run --data FOLDER                   # hours; kill it and run it again, it goes on
    python -m benchmarks.nlg.run --data FOLDER --minutes 60      # starts no cell after an hour
    python -m benchmarks.nlg.run --report                        # only the tables, from what is finished

Each finished cell is one line of results/<name>.jsonl; results/<name>.md holds the tables.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._ledger import Results, conclude
from benchmarks._methods import Runner, cells, middle, recorded
from benchmarks.nlg import report, text
from benchmarks.nlg.cells import GRID, SEEDS, SPARSITIES, TASKS
from benchmarks.nlg.measure import Bench, Setup
from compress import loading
from compress.errors import UserFault

RESULTS = Path(__file__).parent / "results"


def arguments() -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", help="a folder with e2e and webnlg; train.jsonl (or dev.jsonl) and test.jsonl in each"
    )
    parser.add_argument("--model", default="demo", help="a folder with a decoder; by default the demo model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--name", help="of the results; by default demo, with -quick")
    parser.add_argument("--quick", action="store_true", help="e2e, one seed, one rate, few steps, 100 test inputs")
    parser.add_argument("--minutes", type=float, default=0, help="start no cell after so many; 0 = no limit")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), help="only these, for now")
    parser.add_argument("--steps", type=int, help="optimizer steps of every method; default 400, quick 80")
    parser.add_argument("--batch", type=int, help="pairs a step; default 16, quick 8")
    parser.add_argument("--length", type=int, default=384, help="tokens after which a pair is cut")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the tables")
    given = parser.parse_args()
    if not given.data and not given.report:
        parser.error("--data names the folder of the tasks")
    given.steps = given.steps or (80 if given.quick else 400)
    given.batch = given.batch or (8 if given.quick else 16)
    given.name = given.name or ("demo-quick" if given.quick else "demo")
    given.tasks = tuple(given.tasks or (("e2e",) if given.quick else TASKS))
    return given


def work(given: Any, path: Path) -> None:
    """Run what is not finished, until the time is up."""
    version, quick = text.library().__version__, given.quick
    setup = Setup(
        model=str(loading.locate(given.model)), data=given.data, steps=given.steps, batch=given.batch,
        length=given.length, held_out=32 if quick else 256, train=1000 if quick else 0, test=100 if quick else 0,
        references=2 if quick else 0, written=96,
    )  # fmt: skip
    results = Results(path, {**recorded(setup), "sacrebleu": version})
    deadline = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    runner = Runner(results, deadline, middle(GRID) if quick else GRID)
    with tempfile.TemporaryDirectory() as folder:
        benches = {task: Bench(setup, task, Path(folder)) for task in given.tasks}
        for task, bench in benches.items():
            keep(results, {"key": f"data/{task}", **bench.about})
        for cell in cells(given.tasks, SPARSITIES, 1 if quick else SEEDS):
            runner.run(benches[cell.task], cell)


def keep(results: Results, row: dict[str, Any]) -> None:
    """Keep what a task's data are.

    Raises:
        UserFault: the file holds results on others.
    """
    if row["key"] not in results.rows:
        results.add(row)
    elif results.rows[row["key"]] != row:
        raise UserFault(f"{results.path}: {row['key']} were others; give another --name")


def main() -> None:
    """Run what is asked and write the tables."""
    given = arguments()
    path = given.results / f"{given.name}.jsonl"
    conclude(path, report.render, None if given.report else lambda: work(given, path))


if __name__ == "__main__":
    main()
