"""Exhaustive: every choice, one after the other; the oracle of the other solvers.

Formula: min over all products of options that keep what is asked, as `solvers.verify` reads it.
Paper: none; it uses no table, bound or program that the other solvers share.
Gives: the optimum and its proof, of equals the first.
Cost: the product of the options of all slots; refused above 200 000.
"""

from __future__ import annotations

import itertools
import math

from solvers._faults import Unsolved
from solvers._problem import Picks, Problem
from solvers._search import Found
from solvers._solution import broken, score
from solvers._solver import Solver

MOST = 200_000


class Exhaustive(Solver):
    """The oracle."""

    def search(self, problem: Problem, start: Picks | None, floor: float) -> Found:
        """Return the best of all choices; start and floor save nothing here."""
        groups, allowed = problem.ties(), problem.allowed()
        options = [allowed[slots[0]] for slots in groups]
        if (count := math.prod(map(len, options))) > MOST:
            raise Unsolved(f"exhaustive: {count:.3g} choices are more than {MOST:,}; take mip")
        best: tuple[float, Picks] | None = None
        for names in itertools.product(*options):
            picks = {slot: name for slots, name in zip(groups, names, strict=True) for slot in slots}
            value = score(problem, picks)
            if (best is None or value < best[0]) and next(broken(problem, picks), None) is None:
                best = value, picks
        return Found(None, finished=True) if best is None else Found(best[1], bound=best[0], finished=True)
