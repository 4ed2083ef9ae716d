"""Mixed-integer program: the best choice, proven.

Formula: min sum score[i,j] x[i,j] with sum_j x[i,j] = 1 and sum cost[b,i,j] x[i,j] <= limit[b] - base[b], x in {0, 1};
    of all layers, at most `most` equal each reference.
Paper: Puzzle, arXiv 2411.19146, section 4.
Before the program is built, dominated options are dropped, the Lagrangian dual gives a bound and swaps give a choice,
and options whose reduced cost lifts the bound above that choice are ruled out; what is left is small, and where many
layers share few costs, how many take each is what the program decides.
Gives: the optimum, with gap 0 unless another gap is asked for; a search that its time limit ends is never called
    proven, and tells its bound.
Cost: below a second for 80 layers of 54 options and two budgets (`benchmarks/solver`); without limit in the worst case.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from solvers._backends import backend
from solvers._problem import Picks, Problem
from solvers._search import Found, search
from solvers._solver import Solver, SolverSettings


class MipSettings(SolverSettings):
    """How the program is solved."""

    backend: Literal["auto", "cbc", "highs"] = Field(
        "auto", description="cbc comes with PuLP; highs needs highspy; auto = highs where it is installed"
    )
    gap: float = Field(0.0, ge=0, lt=1, description="relative gap at which it may stop; 0 = proven optimal")
    threads: int = Field(1, ge=1, description="threads of the search")
    reduce: bool = Field(True, description="rule options out before the program is built; the answer is the same")


class Mip(Solver):
    """The exact solver."""

    Settings = MipSettings
    settings: MipSettings

    @property
    def name(self) -> str:
        """Return what solutions call it: with the backend that ran."""
        return f"mip/{backend(self.settings.backend).name}"

    def search(self, problem: Problem, start: Picks | None, floor: float) -> Found:
        """Return the best choice and its proof."""
        own = self.settings
        engine = backend(own.backend, seconds=own.seconds, gap=own.gap, threads=own.threads)
        return search(problem, engine, reduce=own.reduce, start=start, floor=floor)
