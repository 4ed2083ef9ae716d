"""What a solver is: one file that holds one subclass of `Solver`; its module docstring is its card."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import Field

from compress.contracts import Settings
from solvers._explain import infeasible
from solvers._faults import Unsolved
from solvers._problem import Picks, Problem
from solvers._search import Found
from solvers._solution import Solution, solution, verify


class SolverSettings(Settings):
    """What every solver takes."""

    seconds: float | None = Field(None, gt=0, description="wall time of one search; nothing = until it is proven")


class Solver(ABC):
    """One way to solve a problem.

    Args:
        settings: of the solver's `Settings`; None = its defaults.
    """

    Settings: ClassVar[type[SolverSettings]] = SolverSettings

    def __init__(self, settings: Any = None) -> None:
        self.settings = self.Settings() if settings is None else settings

    @property
    def name(self) -> str:
        """Return what solutions call it."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def search(self, problem: Problem, start: Picks | None, floor: float) -> Found:
        """Return the best choice this solver finds; see `solve`."""

    def solve(self, problem: Problem, *, start: Picks | None = None, floor: float = -math.inf) -> Solution:
        """Return a verified solution.

        Args:
            problem: what to choose.
            start: picks to begin from, such as those of a similar problem; they need not keep anything.
            floor: a proven bound, such as the score of a looser problem's proven solution.

        Raises:
            Infeasible: no choice keeps everything.
            Unsolved: the search ended without a choice, though there may be one.
            BrokenPromise: the solver's answer is wrong.
        """
        began = time.perf_counter()
        ended = self.search(problem, start, floor)
        if ended.picks is None:
            raise infeasible(problem) or Unsolved(self._empty(ended))
        answer = solution(
            problem, ended.picks, bound=max(ended.bound, floor), seconds=time.perf_counter() - began,
            solver=self.name, prices=ended.prices,
        )  # fmt: skip
        verify(problem, answer)
        return answer

    def _empty(self, ended: Found) -> str:
        if ended.finished:
            return f"{self.name}: no choice keeps everything, and why could not be found in time; loosen the budgets"
        if (limit := self.settings.seconds) is not None:
            return f"{self.name}: no choice found within {limit:g} s, though there may be one; give it more seconds"
        return f"{self.name}: found no choice within the budgets, which does not mean that there is none; take mip"
