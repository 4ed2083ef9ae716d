"""Uniform: the best choice in which all layers are alike.

Formula: the program of `mip`, the k-th slots of all layers tied to one option each.
Paper: none; what uniform width and depth give, as a baseline of choices that differ by layer.
Gives: the optimum of uniform choices; its bound is the sum of the best scores, which no budget is in.
Cost: that of a problem of one layer.
"""

from __future__ import annotations

import math
from dataclasses import replace

from solvers._backends import backend
from solvers._problem import Picks, Problem
from solvers._search import Found, search
from solvers._solver import Solver


class Uniform(Solver):
    """The same everywhere."""

    def search(self, problem: Problem, start: Picks | None, floor: float) -> Found:
        """Return the best uniform choice; start and floor are of choices that are not."""
        groups = _groups(problem)
        if (alike := _alike(problem, groups)) is None:
            return Found(None)
        engine = backend("auto", seconds=self.settings.seconds)
        ended = search(alike, engine, reduce=True, start=None, floor=-math.inf)
        bound = math.fsum(min(option.score for option in slot.options) for slot in problem.slots)
        return Found(ended.picks, bound=bound)


def _groups(problem: Problem) -> list[set[str]]:
    """Return the slots by their place in the layer, those tied before together."""
    width = max(map(len, problem.layers().values()))
    groups = [{row[k].name for row in problem.layers().values() if k < len(row)} for k in range(width)]
    for before in problem.tied:
        met = [g for g in groups if not g.isdisjoint(before)]
        groups = [*(g for g in groups if g.isdisjoint(before)), set().union(*met)]
    return groups


def _alike(problem: Problem, groups: list[set[str]]) -> Problem | None:
    """Return the problem with the options that all slots of a group have, tied; None where some have none."""
    allowed, left = problem.allowed(), dict[str, set[str]]()
    for group in groups:
        left |= dict.fromkeys(group, set.intersection(*(set(allowed[name]) for name in group)))
    if not all(left.values()):
        return None
    slots = tuple(
        replace(s, options=tuple(o for o in s.options if o.name in left[s.name]), parent=None) for s in problem.slots
    )
    tied = tuple(tuple(s.name for s in problem.slots if s.name in g) for g in groups if len(g) > 1)
    return replace(problem, slots=slots, tied=tied, forced={}, forbidden={}, min_changed=0)
