"""The Lagrangian dual of the budgets: the best bound of the linear relaxation, from a few hundred argmins.

    q(p) = sum over groups of min over options of (score + p . costs)  -  p . room,   p >= 0

Every q(p) bounds the score of all choices within the budgets from below, and the options of a group are independent,
so that the best of them is the bound of the linear relaxation (Geoffrion 1974).  q is concave and has as many variables
as there are budgets, so the ellipsoid method with deep cuts (Grötschel, Lovász and Schrijver 1988, chapter 3) finds its
maximum to any accuracy, and says how far it is; no step size, no random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers._table import EPSILON, Choice, Reals, Table

_ROUNDS = 2000
_ACCURACY = 1e-7  # of the bound; far below what one swap of an option changes
_KEPT = 16  # choices that are worth a repair
_REACH = 4  # how often the box of prices grows a hundredfold


@dataclass(frozen=True)
class Dual:
    """The best bound and where it is.

    Attributes:
        bound: scaled; every choice within the budgets scores at least this.
        prices: [B], scaled score that a scaled unit of room is worth.
        reduced: [G, J], how much the bound rises where that option is taken; inf where there is no option.
        choices: what the last rounds chose; close to the budgets, often beyond them.
    """

    bound: float
    prices: Reals
    reduced: Reals
    choices: tuple[Choice, ...]


def maximise(table: Table, *, start: float = 1.0) -> Dual:
    """Return the maximum of the dual.

    Args:
        table: what must differ counts where it is among the rows (`Table.linear`); the bound holds without them too.
        start: how large prices may be at first; where the best is near the edge, the box grows.
    """
    size = start
    for _ in range(_REACH):
        best, recent = _ellipsoid(table, size)
        if (best < 0.9 * size).all():
            break
        size *= 100.0
    value, reduced, _ = _evaluate(table, best)
    rounding = 1e-13 * (float(table.score.shape[0]) + float(best @ np.abs(table.room)))
    return Dual(bound=value - rounding, prices=best, reduced=reduced, choices=tuple(recent.values())[-_KEPT:])


def _evaluate(table: Table, prices: Reals) -> tuple[float, Reals, Choice]:
    """Return q, the reduced costs [G, J] and the choice of least priced score."""
    priced = table.score + np.tensordot(prices, table.costs, axes=1)
    choice = priced.argmin(axis=1)
    least = priced[np.arange(len(choice)), choice]
    return float(least.sum() - prices @ table.room), priced - least[:, None], choice


def _ellipsoid(table: Table, size: float) -> tuple[Reals, dict[bytes, Choice]]:
    """Return the best prices in the box [0, size], and the last distinct choices."""
    n = len(table.room)
    best_prices = np.zeros(n)
    best, _, choice = _evaluate(table, best_prices)
    recent = {choice.tobytes(): choice}
    if n == 0 or (table.used(choice) <= table.room).all():
        return best_prices, recent
    centre, shape = np.full(n, size / 2), np.eye(n) * n * (size / 2) ** 2
    for _ in range(_ROUNDS):
        if centre.min() < 0:  # outside: only what is at or above 0 in the lowest price is kept
            ascent, behind = np.eye(n)[centre.argmin()], -centre.min()
        else:
            value, _, choice = _evaluate(table, centre)
            if value > best:
                best, best_prices = value, centre
            recent.pop(choice.tobytes(), None)
            recent[choice.tobytes()] = choice
            ascent, behind = table.used(choice) - table.room, best - value
        reach = float(np.sqrt(max(ascent @ shape @ ascent, 0.0)))  # nowhere left is q above value + reach
        if reach - behind <= _ACCURACY * best + EPSILON:
            break
        centre, shape = _cut(centre, shape, ascent, behind, reach)
    return best_prices, recent


def _cut(centre: Reals, shape: Reals, ascent: Reals, behind: float, reach: float) -> tuple[Reals, Reals]:
    """Return the smallest ellipsoid around what lies at least `behind` up the ascent from the centre."""
    n, depth, step = len(centre), behind / reach, shape @ ascent / reach
    if n == 1:
        return centre + (1 + depth) / 2 * step, shape * ((1 - depth) / 2) ** 2
    less = 2 * (1 + n * depth) / ((n + 1) * (1 + depth))
    grown = n * n / (n * n - 1) * (1 - depth**2)
    return centre + (1 + n * depth) / (n + 1) * step, grown * (shape - less * np.outer(step, step))
