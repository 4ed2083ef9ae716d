"""The block choice at the sizes of real libraries: proven optimal or not, seconds, and how far the baselines are off.

    python -m benchmarks.solver.run --quick      # two seeds, no plain programs; 2 minutes
    python -m benchmarks.solver.run              # five seeds, and without reductions; 10 minutes; resumes
    python -m benchmarks.solver.run --report     # only the tables, from what is finished

Each finished cell is one line of results/<name>.jsonl; results/<name>.md holds the tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks._ledger import Results, Row, conclude
from benchmarks.solver import report
from benchmarks.solver.instances import SHAPES, Shape, problem
from solvers import Problem, Solver, Unsolved, diverse, front, least
from solvers.greedy import Greedy
from solvers.lagrangian import Lagrangian
from solvers.mip import Mip, MipSettings

RESULTS = Path(__file__).parent / "results"
BUDGETS = (1, 2, 3)
SECONDS = 60.0  # of one search
FRONT = 12  # limits from 95 % down to 40 % of the first budget's


@dataclass(frozen=True)
class Cell:
    """One problem of a shape, and what is done with it."""

    shape: Shape
    budgets: int
    seed: int
    way: str  # a solver; or `front`, `diverse`; `hard:` before it = no layer may be removed or replaced by a linear

    @property
    def key(self) -> str:
        """Return the cell's name in the results."""
        return f"{self.shape.name}/{self.budgets}/{self.seed}/{self.way}"


def solver(way: str) -> Solver:
    """Return the solver of that name: `cbc`, `highs`, either with `plain-` before it, `greedy` or `lagrangian`."""
    if way in ("greedy", "lagrangian"):
        return Greedy() if way == "greedy" else Lagrangian()
    backend: Any = way.removeprefix("plain-")
    return Mip(MipSettings(backend=backend, seconds=SECONDS, reduce=backend == way))


def cells(quick: bool, backends: list[str]) -> Iterator[Cell]:
    """Yield what is to be run, the goals first."""
    for seed in range(2 if quick else 5):
        for shape in SHAPES:
            for budgets in BUDGETS:
                for way in (*backends, "greedy", "lagrangian"):
                    yield Cell(shape, budgets, seed, way)
    for shape in (SHAPES[2], SHAPES[4]):
        yield Cell(shape, 2, 0, "front")
        yield Cell(shape, 2, 0, "diverse")
    for backend in [] if quick else backends:
        yield Cell(SHAPES[2], 2, 0, f"plain-{backend}")
        yield Cell(SHAPES[4], 3, 0, f"plain-{backend}")
        yield Cell(SHAPES[4], 3, 0, f"hard:{backend}")


def run(cell: Cell) -> Row:
    """Return what a cell found, with wall and processor seconds (children's too)."""
    given = problem(cell.shape, cell.seed, cell.budgets)
    if cell.way.startswith("hard:"):
        given = hardened(given)
    began, processor = time.perf_counter(), _processor()
    row = {"front": _front, "diverse": _diverse}.get(cell.way, _solve)(given, cell.way.removeprefix("hard:"))
    return {**row, "seconds": time.perf_counter() - began, "processor": _processor() - processor}


def hardened(given: Problem) -> Problem:
    """Return the problem without `none` and `linear`, its limits 1.5 times the least: the narrow room makes it hard."""
    kept = replace(
        given,
        forbidden={s.name: [o.name for o in s.options if "none" in o.name or "linear" in o.name] for s in given.slots},
    )
    limits = tuple(replace(b, limit=1.5 * least(kept, b.cost).value) for b in given.budgets)
    return replace(kept, budgets=limits)


def _solve(given: Problem, way: str) -> Row:
    try:
        found = solver(way).solve(given)
    except Unsolved as fault:
        return {"failed": str(fault)}
    slack = {title: found.slack[title] / limit for title, limit in ((b.title, b.limit) for b in given.budgets)}
    return {"score": found.score, "bound": found.bound, "gap": found.gap, "proven": found.proven, "slack": slack}


def _front(given: Problem, way: str) -> Row:
    first = given.budgets[0]
    limits = [first.limit * (1.0 - 0.05 * i) for i in range(FRONT)]
    points = front(given, first.cost, limits, solver("cbc"))
    solved = [p.solution for p in points if p.solution]
    return {"points": len(solved), "proven": all(s.proven for s in solved), "scores": [s.score for s in solved]}


def _diverse(given: Problem, way: str) -> Row:
    found = diverse(given, 3, solver("cbc"))
    return {"points": len(found), "proven": all(s.proven for s in found), "scores": [s.score for s in found]}


def _processor() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, no plain programs")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the tables")
    parser.add_argument("--name", help="of the results; by default `full` or `quick`")
    given = parser.parse_args()
    path = RESULTS / f"{given.name or ('quick' if given.quick else 'full')}.jsonl"
    backends = ["cbc", *(["highs"] if importlib.util.find_spec("highspy") else [])]
    setup = {
        "pulp": version("pulp"), "highspy": version("highspy") if len(backends) > 1 else None, "threads": 1,
        "limit_s": SECONDS, "python": sys.version.split()[0],
    }  # fmt: skip

    def work() -> None:
        results = Results(path, setup)
        for cell in cells(given.quick, backends):
            if cell.key not in results.rows:
                row = {"key": cell.key, "shape": cell.shape.name, "budgets": cell.budgets, "seed": cell.seed}
                row |= {"way": cell.way, **run(cell)}
                results.add(row)
                print(f"{cell.key}: {row['processor']:.2f} s, proven {row.get('proven')}", flush=True)

    conclude(path, report.render, None if given.report else work)


if __name__ == "__main__":
    main()
