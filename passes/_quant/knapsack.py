"""One choice for each item, of least score in sum and of a cost in sum that a budget allows: an exact program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from compress.errors import BrokenPromise

_LARGEST = 1e6  # score, as the solver sees them: what it takes for equal lies 1e-5 apart at most


def choose(scores: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], budget: int) -> list[int]:
    """Return for each item the index of its choice.

    Minimise `sum_i s[i, c_i]` subject to `sum_i k[i, c_i] <= budget` (the multiple-choice knapsack), with CBC through
    PuLP, to a gap of 0; the answer is computed anew.

    Args:
        scores: of each item's choices, at least 0 and finite.
        costs: of the same, at least 0.
        budget: as great as the sum of the least costs.

    Raises:
        BrokenPromise: the solver found nothing, or what it found is none of the best.
    """
    import pulp  # slow to import, and few runs choose

    unit = math.gcd(*chain.from_iterable(costs)) or 1
    scale = _LARGEST / (max(chain.from_iterable(scores)) or 1)
    problem = pulp.LpProblem("knapsack", pulp.LpMinimize)
    taken = [[pulp.LpVariable(f"x{i}_{j}", cat="Binary") for j in range(len(row))] for i, row in enumerate(scores)]
    every = list(chain.from_iterable(taken))
    problem += pulp.lpDot([s * scale for s in chain.from_iterable(scores)], every)
    problem += pulp.lpDot([k // unit for k in chain.from_iterable(costs)], every) <= budget // unit
    for row in taken:
        problem += pulp.lpSum(row) == 1
    problem.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=0, gapAbs=0, threads=1))
    if problem.sol_status != pulp.LpSolutionOptimal:
        raise BrokenPromise(f"the solver proved no choice the best: {pulp.LpSolution[problem.sol_status]}")
    picks = [max(range(len(row)), key=lambda j: row[j].value()) for row in taken]
    _verify(scores, costs, budget, picks, problem.objective.value() / scale)
    return picks


def _verify(
    scores: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], budget: int, picks: Sequence[int], told: float
) -> None:
    """Raise `BrokenPromise` unless the picks keep the budget, score as told, and no one of them could be better."""
    total = sum(row[j] for row, j in zip(scores, picks, strict=True))
    cost = sum(row[j] for row, j in zip(costs, picks, strict=True))
    if cost > budget or not math.isclose(total, told, rel_tol=1e-6, abs_tol=1e-12):
        raise BrokenPromise(f"the solver's choice costs {cost} of {budget} and scores {total:g}, told as {told:g}")
    for s, k, j in zip(scores, costs, picks, strict=True):
        if any(s[o] < s[j] * (1 - 1e-6) - 1e-12 and cost - k[j] + k[o] <= budget for o in range(len(s))):
            raise BrokenPromise("the solver's choice is not the best: another for one item alone is better")
