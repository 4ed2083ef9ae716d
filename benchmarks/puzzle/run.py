"""Puzzle beside every simpler way to a faster engine, each healed with the same tokens, on one clock.

    python -m benchmarks.puzzle.run --quick                     # a quarter of an hour on two idle cores
    python -m benchmarks.puzzle.run                             # all; kill it and run it again, it goes on
    python -m benchmarks.puzzle.run --case NAME --model FOLDER --text train.jsonl --evaluation valid.jsonl
    python -m benchmarks.puzzle.run --report                    # only the tables, from what is finished

Each finished engine is one line of results/<case>.jsonl; results/<case>.md holds the tables, results/<case>.svg the
curves.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from benchmarks import _cases
from benchmarks._ledger import Results, Row, conclude
from benchmarks.puzzle import geometry, making, picture, report, timing
from benchmarks.puzzle.cells import FULL, QUICK, Cell, Plan, cells
from compress import files
from compress.errors import UserFault

RESULTS = Path(__file__).parent / "results"
WORK = Path("runs/puzzle-benchmark")
QUICK_HELP = "two budgets, few baselines, few steps"


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _cases.add_arguments(command, WORK)
    command.set_defaults(case="demo")
    command.add_argument("--quick", action="store_true", help=QUICK_HELP)
    command.add_argument("--results", type=Path, default=RESULTS, help="where the results go")
    command.add_argument("--report", action="store_true", help="run nothing, only write the tables")
    given = _cases.parsed(command)
    plan, name = (QUICK, f"{given.case}-quick") if given.quick else (FULL, given.case)
    path = given.results / f"{name}.jsonl"
    folder = given.work / f"{name}-cells"
    conclude(path, report.render, None if given.report else lambda: work(_cases.of(given), folder, plan, path))
    picture.write(path)


def work(case: Path, folder: Path, plan: Plan, path: Path) -> None:
    """Finish what is not finished.

    Args:
        case: the dense model and its ids.
        folder: for what is made.
        plan: how much is run.
        path: of the results.
    """
    torch.set_num_threads(1)
    setup: Row = {**_cases.setup(case), "plan": files.digest_of(dataclasses.asdict(plan))[:12]}
    setup |= {"heal": plan.heal, "batch": plan.batch, "bld": plan.bld}
    results = Results(path, setup)
    place = making.Place(case=case, work=folder, plan=plan, ids=_cases.ids_of(case))
    engines: dict[str, Path] = {}
    for cell in cells(plan):
        finish(cell, place, results)
        if "losses" in results.rows[cell.key]:
            engines[cell.key] = place.folder(cell) / "engine"
    if missing := next((f for f in engines.values() if not f.exists()), None):
        raise UserFault(f"{missing}: is gone, though {path} tells of it; give another --results, or another --work")
    timing.run(results, engines, plan.processes)
    geometry.run(results, folder, plan.geometries, plan.seconds)


def finish(cell: Cell, place: making.Place, results: Results) -> None:
    """Make the engine of a cell unless it is there; one that cannot be is told to have failed."""
    if cell.key in results.rows:
        return
    row: Row = {"key": cell.key, **dataclasses.asdict(cell)}
    try:
        row |= making.made(cell, place)
        told = f"{sum(row['losses']) / len(row['losses']):.4f} nats, {row['seconds']:.0f} s"
    except UserFault as error:
        row |= {"failed": str(error)}
        told = f"failed: {error}"
    results.add(row)
    print(f"{cell.key}: {told}", flush=True)


if __name__ == "__main__":
    main()
