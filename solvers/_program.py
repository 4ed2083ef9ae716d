"""The choice as a mixed-integer program, through PuLP: CBC, which PuLP brings, or HiGHS where it is installed.

Both are asked for no gap, for integers up to 1e-9 (with 1e-6, 0.999999 of an option is 1, and a budget is exceeded by a
millionth of it), and given rows whose largest entries are 1000.  Neither is believed: what a stop means is read from
`sol_status`, as PuLP calls a stop with an incumbent optimal, the bound from the solver, and every choice is recomputed.
"""

from __future__ import annotations

import importlib.util
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pulp

from compress.errors import Unavailable
from solvers._table import Choice, Table

_LARGEST = 1000.0  # entry of a row, and about the value of the objective


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What runs the program.

    Attributes:
        name: of the two.
        seconds: wall time; None = no limit.
        gap: relative, of the scaled score, at which it may stop.
        threads: of the search.
    """

    name: Literal["cbc", "highs"]
    seconds: float | None = None
    gap: float = 0.0
    threads: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a search ended.

    Attributes:
        choice: the best that was found, or None.
        bound: of the objective, in the units of the table; -inf where nothing is known.
        finished: whether the search was not cut short: without a choice there is none.
        objective: of the choice; inf without one.
    """

    choice: Choice | None
    bound: float
    finished: bool
    objective: float


def backend(name: Literal["auto", "cbc", "highs"], **limits: Any) -> Backend:
    """Return the backend of that name; `auto` is HiGHS where `highspy` is installed, else CBC.

    Raises:
        Unavailable: it is not here.
    """
    if name == "auto":
        name = "highs" if importlib.util.find_spec("highspy") else "cbc"
    if name == "highs" and not importlib.util.find_spec("highspy"):
        raise Unavailable("solver: highs is not installed; pip install highspy, or take cbc")
    if name == "cbc" and not _cbc().available():
        raise Unavailable("solver: PuLP's CBC does not run on this machine; pip install highspy, and take highs")
    return Backend(name=name, **limits)


def minimise(
    table: Table, engine: Backend, *, scale: float = 1.0, without: tuple[Choice, ...] = (), stretch: Any = None
) -> Outcome:
    """Return the best choice of a table.

    Args:
        table: of the problem, reduced or not.
        engine: what runs it.
        scale: scaled score that the best choice is expected to have about.
        without: choices that are not allowed.
        stretch: [B], what a relative loosening of 1 adds to each room; then the sum of loosenings is minimised in the
            place of the score.
    """
    program = pulp.LpProblem("choice", pulp.LpMinimize)
    picked = {
        (g, j): program.add_variable(f"x{g}_{j}", 0, 1, "Integer")
        for g, j in zip(*np.nonzero(np.isfinite(table.score)), strict=True)
    }
    factor = _LARGEST / scale if stretch is None else 1.0
    loose = [] if stretch is None else [program.add_variable(f"r{b}", 0) for b in range(len(table.room))]
    goal = [(x, factor * table.score[at]) for at, x in picked.items()] if stretch is None else [(r, 1.0) for r in loose]
    program.setObjective(pulp.LpAffineExpression([(x, float(v)) for x, v in goal]))  # zeros too: PuLP wants one
    for g, options in enumerate(np.isfinite(table.score)):
        program.addConstraint(_sum((picked[g, j], 1.0) for j in np.flatnonzero(options)) == 1)
    for b, room in enumerate(table.room):
        terms = [(x, _LARGEST * table.costs[b][at]) for at, x in picked.items()]
        terms += [(loose[b], -_LARGEST * stretch[b])] if loose else []
        program.addConstraint(_sum(terms) <= _LARGEST * room)
    _differ(program, picked, table)
    for choice in without:
        same = [(picked[g, j], 1.0) for g, j in enumerate(choice) if (g, j) in picked]
        program.addConstraint(_sum(same) <= len(choice) - 1)
    return _solve(program, picked, table, engine, factor)


def _sum(terms: Any) -> Any:
    """Return an expression; PuLP's own constructor would keep only the last of a variable's terms."""
    added: dict[Any, float] = {}
    for x, value in terms:
        if value:
            added[x] = added.get(x, 0.0) + float(value)
    return pulp.LpAffineExpression(list(added.items()))


def _differ(program: Any, picked: dict[tuple[int, int], Any], table: Table) -> None:
    """Add the rows of what must differ; a layer of several slots gets a variable that is 1 where all are equal."""
    for a, alike in enumerate(table.alike):
        equal = []
        for i, literals in enumerate(alike.layers):
            held = [picked[at] for at in literals if at in picked]
            if len(held) < len(literals):
                continue  # an option that is ruled out: this layer differs anyway
            if len(held) == 1:
                equal.append((held[0], 1.0))
                continue
            both = program.add_variable(f"e{a}_{i}", 0, 1)
            program.addConstraint(_sum([(both, -1.0), *((x, 1.0) for x in held)]) <= len(held) - 1)
            equal.append((both, 1.0))
        if len(equal) > alike.most:
            program.addConstraint(_sum(equal) <= alike.most)


def _solve(program: Any, picked: dict[tuple[int, int], Any], table: Table, engine: Backend, factor: float) -> Outcome:
    run = _highs if engine.name == "highs" else _by_cbc
    bound = run(program, engine)
    if program.sol_status in (pulp.LpSolutionInfeasible, pulp.LpSolutionUnbounded):
        return Outcome(None, math.inf, True, math.inf)
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Outcome(None, bound / factor, False, math.inf)
    share = np.full(table.score.shape, -1.0)
    for at, x in picked.items():
        share[at] = x.varValue or 0.0
    finished = program.sol_status == pulp.LpSolutionOptimal
    objective = pulp.value(program.objective)
    bound = objective if finished and not engine.gap else min(bound, objective)
    return Outcome(share.argmax(axis=1), bound / factor, finished, objective / factor)


def _highs(program: Any, engine: Backend) -> float:
    """Run HiGHS; return its bound."""
    program.solve(
        pulp.HiGHS(
            msg=False, gapRel=engine.gap, gapAbs=0.0, threads=engine.threads, timeLimit=engine.seconds,
            mip_feasibility_tolerance=1e-9, primal_feasibility_tolerance=1e-9, dual_feasibility_tolerance=1e-9,
        )
    )  # fmt: skip
    return float(program.solverModel.getInfo().mip_dual_bound)


def _by_cbc(program: Any, engine: Backend) -> float:
    """Run CBC; return its bound, which only its log tells (to three decimals), and only of a search cut short."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        solver = _cbc(
            msg=False, gapRel=engine.gap, gapAbs=0.0, threads=engine.threads, timeLimit=engine.seconds,
            logPath=str(log), options=["increment 1e-7", "integerTolerance 1e-9"],
        )  # fmt: skip
        solver.tmpDir = folder
        program.solve(solver)
        told = re.search(r"^Lower bound:\s+(\S+)", log.read_text(errors="replace"), re.MULTILINE)
    if told:
        return float(told[1]) - 1e-3
    return math.inf if program.sol_status == pulp.LpSolutionOptimal else -math.inf


def _cbc(**settings: Any) -> Any:
    return pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, **settings)
