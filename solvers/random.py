"""Random: from the best option everywhere, swaps drawn by chance until the budgets are kept.

Formula: every option of every slot draws a score from [0, 1); then greedy's first half, so that the choice ends just
    within the budgets.
Paper: a baseline of Puzzle, arXiv 2411.19146.
Gives: a choice without proof that knows no score; its bound is the sum of the best scores, which no budget is in.
Cost: one sweep over the options per swap.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from solvers._problem import Picks, Problem
from solvers._search import Found, found
from solvers._solver import Solver, SolverSettings
from solvers._swaps import repaired
from solvers._table import EPSILON, tabulate


class RandomSettings(SolverSettings):
    """What is drawn."""

    seed: int = Field(0, ge=0, description="of the draw")


class Random(Solver):
    """What any better solver must beat."""

    Settings = RandomSettings
    settings: RandomSettings

    def search(self, problem: Problem, start: Picks | None, floor: float) -> Found:
        """Return what the swaps end in."""
        table = tabulate(problem)
        if (table.room < -EPSILON).any():
            return Found(None, finished=True)
        drawn = np.random.default_rng(self.settings.seed).random(table.score.shape)
        blind = replace(table, score=np.where(np.isfinite(table.score), drawn, np.inf))
        return found(table, repaired(blind, table.score.argmin(axis=1)), 0.0, None, finished=False)
