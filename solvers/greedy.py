"""Greedy: from the best option everywhere, the cheapest swaps into the budgets, then those that gain.

Formula: while a budget is exceeded, swap the option of least (score change) / (excess removed), excess being the sum of
    relative overruns; then, while one swap within the budgets lowers the score, the one that lowers it most.
Paper: the baseline of Puzzle, arXiv 2411.19146, in the form of Senju and Toyoda 1968.
Gives: a choice without proof; its bound is the sum of the best scores, which no budget is in.
Cost: one sweep over the options per swap.
"""

from __future__ import annotations

from solvers._problem import Picks, Problem
from solvers._search import Found, found
from solvers._solver import Solver
from solvers._swaps import improved, repaired
from solvers._table import EPSILON, tabulate


class Greedy(Solver):
    """The baseline."""

    def search(self, problem: Problem, start: Picks | None, floor: float) -> Found:
        """Return what the swaps end in; `start` is where they begin."""
        table = tabulate(problem)
        if (table.room < -EPSILON).any():
            return Found(None, finished=True)
        begun = table.score.argmin(axis=1) if start is None else table.choice(start)
        choice = repaired(table, table.score.argmin(axis=1) if begun is None else begun)
        best = None if choice is None else improved(table, choice)
        return found(table, best, 0.0, None, finished=False)
