"""What runs a program: CBC, which PuLP brings, or HiGHS where it is installed; and what its stop means.

Both are asked for no gap.  Neither is believed: PuLP calls a stop with an incumbent optimal, so `sol_status` is read in
the place of `status`, and the bound comes from the solver itself.  Their tolerances stay as they are (0.999999 of an
option is 1, and a budget is then exceeded by a millionth of it): HiGHS 1.15 with a `mip_feasibility_tolerance` of 1e-9
was seen to call a choice optimal that is not, so choices beyond a budget are taken out where they come back.
"""

from __future__ import annotations

import importlib.util
import math
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pulp

from compress import installed
from compress.errors import Unavailable


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What runs the program.

    Attributes:
        name: of the two.
        seconds: wall time; None = no limit.
        gap: relative, of the program's objective, at which it may stop.
        threads: of the search.
    """

    name: Literal["cbc", "highs"]
    seconds: float | None = None
    gap: float = 0.0
    threads: int = 1


@dataclass(frozen=True)
class Stop:
    """How a run ended.

    Attributes:
        solved: whether the program's variables hold a solution.
        finished: whether the search was not cut short: unsolved, there is no solution; solved, it is the best.
        bound: of the objective; -inf where nothing is known, inf where there is no solution.
        objective: of the solution; inf without one.
    """

    solved: bool
    finished: bool
    bound: float
    objective: float = math.inf


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


def versions() -> dict[str, str | None]:
    """Return the version of each backend by its name, None of one that is not here."""
    found = None
    if _cbc().available():
        asked = subprocess.run([_cbc().path, "-quit"], capture_output=True, stdin=subprocess.DEVNULL, check=False)
        found = re.search(rb"^Version: (\S+)", asked.stdout, re.MULTILINE)
    return {"cbc": found[1].decode() if found else None, "highs": installed.version("highspy")}


def run(program: pulp.LpProblem, engine: Backend) -> Stop:
    """Solve a program in place."""
    bound = _highs(program, engine) if engine.name == "highs" else _by_cbc(program, engine)
    nothing = program.sol_status in (pulp.LpSolutionInfeasible, pulp.LpSolutionUnbounded)
    if nothing or program.status == pulp.LpStatusInfeasible:  # which alone tells what CBC calls integer infeasible
        return Stop(False, True, math.inf)
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Stop(False, False, bound)
    finished, objective = program.sol_status == pulp.LpSolutionOptimal, pulp.value(program.objective)
    return Stop(True, finished, objective if finished and not engine.gap else min(bound, objective), objective)


def _highs(program: pulp.LpProblem, engine: Backend) -> float:
    """Run HiGHS; return its bound."""
    limits = {"gapRel": engine.gap, "gapAbs": 0.0, "threads": engine.threads, "timeLimit": engine.seconds}
    program.solve(pulp.HiGHS(msg=False, **limits))
    return float(program.solverModel.getInfo().mip_dual_bound)


def _by_cbc(program: pulp.LpProblem, engine: Backend) -> float:
    """Run CBC; return its bound, which only its log tells (to three decimals), and only of a search cut short."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        threads = engine.threads if engine.threads > 1 else None  # with 1, its threaded search at times waits for 10 s
        solver = _cbc(
            msg=False, gapRel=engine.gap, gapAbs=0.0, threads=threads, timeLimit=engine.seconds,
            logPath=str(log), options=["increment 1e-7"],
        )  # fmt: skip
        solver.tmpDir = folder
        program.solve(solver)
        told = re.search(r"^Lower bound:\s+(\S+)", log.read_text(errors="replace"), re.MULTILINE)
    if told:
        return float(told[1]) - 1e-3
    return math.inf if program.sol_status == pulp.LpSolutionOptimal else -math.inf


def _cbc(**settings: Any) -> pulp.COIN_CMD:
    return pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, **settings)
