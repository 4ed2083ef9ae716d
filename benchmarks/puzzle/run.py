"""Puzzle beside every simpler way to a faster engine, each healed with the same tokens, on one clock.

    python -m benchmarks.puzzle.run --quick                     # a quarter of an hour on two idle cores
    python -m benchmarks.puzzle.run                             # all; kill it and run it again, it goes on
    python -m benchmarks.puzzle.run --only puzzle int4 int8     # a part of it, by ways
    python -m benchmarks.puzzle.run --case NAME --model FOLDER --text train.jsonl --evaluation valid.jsonl
    python -m benchmarks.puzzle.run --report                    # only the tables, from what is finished

Blocks are chosen first, one choice after the other, because the clock is looked at and all else rests; then engines are
trained and built, one a core.  Each finished engine is one line of results/<case>.jsonl; results/<case>.md holds the
tables, results/<case>.svg the curves.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks import _cases
from benchmarks._ledger import Results, Row, conclude
from benchmarks.puzzle import geometry, making, picture, report, timing
from benchmarks.puzzle.cells import DENSE, FULL, QUICK, Cell, Plan, cells
from compress import files
from compress.errors import UserFault

RESULTS = Path(__file__).parent / "results"
WORK = Path("runs/puzzle-benchmark")
WAYS = tuple(dict.fromkeys(c.way for c in cells(FULL) if c.way != DENSE))
QUICK_HELP = "two budgets, few baselines, few steps"


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _cases.add_arguments(command, WORK)
    command.set_defaults(case="demo")
    command.add_argument("--quick", action="store_true", help=QUICK_HELP)
    command.add_argument("--only", nargs="+", choices=WAYS, default=WAYS, help="only these ways, for now")
    command.add_argument("--results", type=Path, default=RESULTS, help="where the results go")
    command.add_argument("--report", action="store_true", help="run nothing, only write the tables")
    given = _cases.parsed(command)
    plan, name = (QUICK, f"{given.case}-quick") if given.quick else (FULL, given.case)
    path = given.results / f"{name}.jsonl"
    folder = given.work / f"{name}-cells"
    conclude(
        path, report.render, None if given.report else lambda: work(_cases.of(given), folder, plan, path, given.only)
    )
    picture.write(path)


def work(case: Path, folder: Path, plan: Plan, path: Path, only: Collection[str] = WAYS) -> None:
    """Finish what is not finished.

    Args:
        case: the dense model and its ids.
        folder: for what is made.
        plan: how much is run.
        path: of the results.
        only: the ways that are run; the dense engine always is.
    """
    torch.set_num_threads(1)
    setup: Row = {**_cases.setup(case), "plan": files.digest_of(dataclasses.asdict(plan))[:12]}
    setup |= {"heal": plan.heal, "batch": plan.batch, "bld": plan.bld}
    results = Results(path, setup)
    place = making.Place(case=case, work=folder, plan=plan, ids=_cases.ids_of(case))
    wanted = [c for c in cells(plan) if c.way in (DENSE, *only) and c.key not in results.rows]
    for cell in wanted:
        if "failed" in (row := attempt(making.choose, place, cell)):
            add(results, row)
    start: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), **start) as pool:
        left = [c for c in wanted if c.key not in results.rows]
        for done in as_completed([pool.submit(attempt, making.made, place, c) for c in left]):
            add(results, done.result())
    made = {c.key: place.folder(c) / "engine" for c in cells(plan) if "losses" in results.rows.get(c.key, {})}
    if missing := next((f for f in made.values() if not f.exists()), None):
        raise UserFault(f"{missing}: is gone, though {path} tells of it; give another --results, or another --work")
    timing.run(results, made, plan.processes)
    geometry.run(results, folder, plan.geometries)


def attempt(make: Callable[[Cell, making.Place], Row], place: making.Place, cell: Cell) -> Row:
    """Return what is known of a cell, if only why it cannot be made."""
    try:
        row = make(cell, place)
    except UserFault as error:
        row = {"failed": str(error)}
    return {"key": cell.key, **dataclasses.asdict(cell), **row}


def add(results: Results, row: Row) -> None:
    """Keep a finished cell, and tell of it."""
    results.add(row)
    made = "losses" in row
    told = f"{fmean(row['losses']):.4f} nats, {row['seconds']:.0f} s" if made else f"failed: {row['failed']}"
    print(f"{row['key']}: {told}", flush=True)


if __name__ == "__main__":
    main()
