"""Lagrangian relaxation: a bound from prices on the budgets, and a choice repaired from them.

Formula: max over p >= 0 of sum_i min_j (score[i,j] + p . cost[i,j]) - p . room; the options that the best prices pick
    are swapped into the budgets, then swapped one by one and in pairs for as long as the score falls.
Paper: A. M. Geoffrion, Lagrangean relaxation for integer programming, 1974.
Gives: a choice, most often within a percent of the optimum, and a bound that holds for all choices; proven only where
    the two meet.  What must differ is in the bound as far as a linear row can say it.
Cost: some hundred sweeps over the options, whatever the budgets: no program, no external solver.
"""

from __future__ import annotations

from solvers._problem import Picks, Problem
from solvers._reduce import reduced
from solvers._search import Found, found
from solvers._solver import Solver
from solvers._table import EPSILON, tabulate


class Lagrangian(Solver):
    """The bound and a choice near it."""

    def search(self, problem: Problem, start: Picks | None, floor: float) -> Found:
        """Return the repaired choice and the dual's bound."""
        table = tabulate(problem)
        if (table.room < -EPSILON).any():
            return Found(None, finished=True)
        ended = reduced(
            table, start=None if start is None else table.choice(start), floor=(floor - table.floor) / table.unit
        )
        return found(table, ended.choice, ended.bound, ended.prices, finished=False)
