"""PERP on a real model: every subset and form beside full retraining, with the same steps and learning-rate grid.

    python -m benchmarks.perp.run --quick             # under 10 minutes on 2 cores
    python -m benchmarks.perp.run                     # under 3 hours; resumes where it stopped
    python -m benchmarks.perp.run --minutes 60        # starts no cell after an hour
    python -m benchmarks.perp.run --report            # only the tables, from what is finished
    python -m benchmarks.perp.run --model FOLDER --text train.jsonl --evaluation valid.jsonl --name tinystories

Each finished cell is one line of results/<name>.jsonl; results/<name>.md holds the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._ledger import Results, Row, conclude, surroundings
from benchmarks.perp import cells, clock, report
from benchmarks.perp.cells import GRID, QUICK_GRID, WIDER, Cell
from benchmarks.perp.measure import Bench, Setup
from compress import loading, tree
from compress.data import corpora

RESULTS = Path(__file__).parent / "results"


class Runner:
    """Runs cells that are not finished yet, tuning learning rates on the way.

    Args:
        bench: the model and its text.
        results: where finished cells are.
        deadline: `time.monotonic()` after which no cell starts.
        grid: learning rates that every form tries.
    """

    def __init__(self, bench: Bench, results: Results, deadline: float, grid: tuple[float, ...]) -> None:
        self.bench, self.results, self.deadline, self.grid = bench, results, deadline, grid

    def run(self, cell: Cell) -> None:
        """Finish the cell at its tuned learning rate."""
        if not cell.trains:
            self._finish(cell)
            return
        group = cell.tuned_as()
        for lr in self.grid:
            self._finish(group.at(lr))
        while (wider := self._beyond(group)) is not None:
            self._finish(group.at(wider))
        best = report.best_rate(self.results.rows, group) or self.grid[0]
        for lr in dict.fromkeys((best, cell.other_rate(best))):
            self._finish(cell.at(lr))

    def time(self, cell: Cell, model: str, cache: Path) -> None:
        """Finish the timing of the cell on a model."""
        name = Path(model).name
        key = f"time/{name}/{cell.key}"
        if key not in self.results.rows:
            self._in_time()
            row = {"key": key, "model": name, **clock.run(self.bench.setup, cell, model, cache)}
            self.results.add(row)
            print(
                f"{name} {cell.title}: {row['seconds_per_step']:.3f} s a step, {row['added_mib']:.0f} MiB", flush=True
            )

    def _beyond(self, group: Cell) -> float | None:
        """Return the next learning rate when the best one so far lies at an edge of what was tried."""
        tried = report.tried(self.results.rows, group)
        best = report.best_rate(self.results.rows, group)
        low, high = WIDER.index(min(tried)), WIDER.index(max(tried))
        if best == WIDER[low] and low > 0:
            return WIDER[low - 1]
        return WIDER[high + 1] if best == WIDER[high] and high + 1 < len(WIDER) else None

    def _finish(self, cell: Cell) -> None:
        if cell.key in self.results.rows:
            return
        self._in_time()
        row: Row = {"key": cell.key, **dataclasses.asdict(cell), "title": cell.title, **self.bench.run(cell)}
        self.results.add(row)
        shown = f"{sum(row['losses']) / len(row['losses']):.4f}" if "losses" in row else row["diverged"]
        rate = f" lr {cell.lr:g}" if cell.lr else ""
        print(f"{cell.pattern} {cell.title}{rate} seed {cell.seed}: {shown} ({row['seconds']:.0f} s)", flush=True)

    def _in_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeoutError


def cells_of(bench: Bench, quick: bool) -> Iterator[Cell]:
    """Yield the cells of the run, what matters most first."""
    facts = tree.facts(bench.dense.model, "causal-lm")
    yield from cells.quick(facts) if quick else cells.full(facts)


def arguments() -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a folder, or 'demo'")
    parser.add_argument("--text", default="python-source", help="training text: a built-in corpus, or a file")
    parser.add_argument("--evaluation", help="evaluation text; by default the held-out side of a built-in --text")
    parser.add_argument("--name", help="of the results; by default the model's, with -quick")
    parser.add_argument("--quick", action="store_true", help="few cells, few steps")
    parser.add_argument("--minutes", type=float, default=0, help="start no cell after so many; 0 = no limit")
    parser.add_argument(
        "--patterns", nargs="+", choices=("dense", *cells.PATTERNS), help="only cells of these, for now"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps of every training; default 128, quick 30")
    parser.add_argument("--batch", type=int, default=4, help="windows a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--windows", type=int, help="evaluation windows; default 128, quick 48")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the tables")
    parser.add_argument("--no-timing", action="store_true", help="leave out time and memory, as on a busy machine")
    given = parser.parse_args()
    if given.evaluation is None and given.text not in corpora.NAMES:
        parser.error("--text is a file, so --evaluation must name another one")
    given.steps = given.steps or (30 if given.quick else 128)
    given.windows = given.windows or (48 if given.quick else 128)
    given.name = given.name or Path(given.model).name + ("-quick" if given.quick else "")
    return given


def recorded(setup: Setup) -> Row:
    """Return what a results file keeps of the setup: names and digests in the place of paths, and the machine."""
    return {
        **dataclasses.asdict(setup),
        **{k: Path(getattr(setup, k)).name for k in ("model", "text", "evaluation")},
        **surroundings(loading.locate(setup.model)),
    }


def work(given: Any, path: Path) -> None:
    """Run what is not finished, until the time is up."""
    setup = Setup(
        model=given.model, text=given.text, evaluation=given.evaluation or given.text, steps=given.steps,
        batch=given.batch, length=given.length, windows=given.windows,
    )  # fmt: skip
    results = Results(path, recorded(setup))
    deadline = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(setup, Path(folder))
        runner = Runner(bench, results, deadline, QUICK_GRID if given.quick else GRID)
        if not given.no_timing:  # first, so that a run that is cut short has them
            for cell, model in clock.timed(setup.model, quick=given.quick):
                runner.time(cell, model, Path(folder))
        for cell in cells_of(bench, given.quick):
            if not given.patterns or cell.pattern in given.patterns:
                runner.run(cell)


def main() -> None:
    """Run what is asked and write the tables."""
    given = arguments()
    path = RESULTS / f"{given.name}.jsonl"
    conclude(path, report.render, None if given.report else lambda: work(given, path))


if __name__ == "__main__":
    main()
