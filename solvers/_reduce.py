"""What can be known before the program is built: a good choice, a bound, and options that no better choice has."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers._dual import Dual, maximise
from solvers._swaps import improved, repaired
from solvers._table import EPSILON, Choice, Reals, Table

_POLISHED = 4  # of the repaired choices, so many best ones are worth swaps in pairs


@dataclass(frozen=True)
class Reduced:
    """A smaller table with the same best choice.

    Attributes:
        table: without the options that were ruled out.
        choice: the best choice known; None where none was found.
        bound: scaled; no choice scores less.
        prices: [B], of the dual, scaled; None where there was none.
    """

    table: Table
    choice: Choice | None
    bound: float
    prices: Reals | None

    @property
    def score(self) -> float:
        """Return the scaled score of the choice; inf without one."""
        return math.inf if self.choice is None else self.table.scored(self.choice)

    @property
    def closed(self) -> bool:
        """Return whether the choice is proven: nothing scores less."""
        return self.choice is not None and self.score - self.bound <= EPSILON * max(self.score, EPSILON)


def reduced(table: Table, *, start: Choice | None = None, floor: float = -math.inf) -> Reduced:
    """Return the table without dominated options and without those that reduced costs rule out.

    An option whose reduced cost lifts the dual's bound above a known choice is in no better choice
    (Sinha and Zoltners 1979, multiple-choice knapsack).

    Args:
        table: of the problem.
        start: a choice to begin from; it need not fit.
        floor: a known bound, scaled.
    """
    small = table.only(~dominated(table))
    dual = maximise(small.linear())
    best = _best(table, dual, start)
    bound = max(dual.bound, floor)
    if best is None:
        return Reduced(small, None, bound, dual.prices[: len(table.room)])
    limit = table.scored(best)
    kept = np.isfinite(small.score) & (dual.bound + dual.reduced <= limit + EPSILON * max(limit, 1.0))
    kept[np.arange(len(best)), best] = True  # a start may hold a dominated option
    return Reduced(table.only(kept), best, min(bound, limit), dual.prices[: len(table.room)])


def dominated(table: Table) -> NDArray[np.bool_]:
    """Return the options [G, J] that another one of their group beats or equals in score and in every cost.

    An option that a reference holds dominates none, as taking it may make too many layers equal.  Of equals, the
    first stays.
    """
    marked = np.zeros(table.score.shape, dtype=bool)
    for alike in table.alike:
        for literals in alike.layers:
            marked[tuple(np.array(literals).T)] = True
    found = ~np.isfinite(table.score)
    for g, score in enumerate(table.score):
        order = np.lexsort((np.arange(len(score)), table.costs[:, g].sum(axis=0), score))
        columns = np.vstack([score, table.costs[:, g]])[:, order]  # only an earlier one can beat a later one
        beaten = (columns[:, :, None] <= columns[:, None, :]).all(axis=0)
        able = np.isfinite(score[order]) & ~marked[g, order]
        found[g, order] |= (np.triu(beaten, 1) & able[:, None]).any(axis=0)
    return found


def _best(table: Table, dual: Dual, start: Choice | None) -> Choice | None:
    """Return the best of what repairs and swaps make of a start and of the dual's last choices."""
    seeds = [*([] if start is None else [start]), *reversed(dual.choices)]
    found = [c for seed in seeds if (c := repaired(table, seed)) is not None]
    rough = sorted(found, key=table.scored)[:_POLISHED]
    return min((improved(table, c, dual.reduced) for c in rough), key=table.scored, default=None)
