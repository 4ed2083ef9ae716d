"""The exact search: reduce, then let the program decide what is left, and believe only what can be recomputed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from compress.errors import BrokenPromise
from solvers._backends import Backend
from solvers._problem import Picks, Problem
from solvers._program import minimise
from solvers._reduce import Reduced, reduced
from solvers._solution import broken
from solvers._table import EPSILON, Choice, Reals, Table, tabulate

_REFUSED = 50  # totals beyond a budget by less than a millionth that are taken out one by one


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        picks: the best choice, or None.
        bound: no choice scores less; -inf where nothing is known.
        finished: whether, without picks, there is surely no choice.
        prices: of the budgets, score per unit, where the search knows the dual.
    """

    picks: Picks | None
    bound: float = -math.inf
    finished: bool = False
    prices: Mapping[str, float] = field(default_factory=dict)


def search(
    problem: Problem, engine: Backend, *, reduce: bool = True, start: Picks | None = None, floor: float = -math.inf
) -> Found:
    """Return the best choice of a problem.

    Args:
        problem: what to choose.
        engine: what runs the program; its seconds are for all of the search.
        reduce: whether to rule options out first; the answer is the same.
        start: picks to begin from; they need not keep anything.
        floor: a proven bound.
    """
    ends = math.inf if engine.seconds is None else time.monotonic() + engine.seconds
    table = tabulate(problem)
    if (table.room < -EPSILON).any():
        return Found(None, finished=True)
    if reduce:
        scaled = (floor - table.floor) / table.unit
        begun = reduced(table, start=None if start is None else table.choice(start), floor=scaled)
    else:
        begun = Reduced(table, None, -math.inf, None)
    choice, bound, finished = (begun.choice, begun.bound, True)
    if not begun.closed:
        choice, bound, finished = _decide(problem, begun, engine, ends)
    return found(table, choice, bound, begun.prices, finished=finished)


def found(table: Table, choice: Choice | None, bound: float, prices: Reals | None, *, finished: bool) -> Found:
    """Return scaled figures in the problem's own units."""
    real = [] if prices is None else (prices * table.unit / table.cost_units).tolist()
    return Found(
        picks=None if choice is None else table.picks(choice),
        bound=table.floor + table.unit * bound,
        finished=finished,
        prices=dict(zip(table.titles, real, strict=False)),
    )


def _decide(problem: Problem, begun: Reduced, engine: Backend, ends: float) -> tuple[Choice | None, float, bool]:
    """Return the best choice, the bound and whether the search was finished.

    What the program returns may lie beyond a budget by its tolerance or ours.  Such a choice is taken out, and the
    program solved again; its bound stays a bound, as nothing but what is not allowed was removed.
    """
    table, choice, bound = begun.table, begun.choice, begun.bound
    scale = max(begun.score, 1e-6) if choice is not None else 1.0
    refused: tuple[Choice, ...] = ()
    while len(refused) <= _REFUSED:
        left = ends - time.monotonic()
        if left <= 0:
            break
        limited = replace(engine, seconds=None if math.isinf(left) else left)
        outcome = minimise(table, limited, scale=scale, without=refused)
        bound = max(bound, min(outcome.bound, begun.score))
        if outcome.choice is None:
            return choice, bound, outcome.finished
        if next(broken(problem, table.picks(outcome.choice)), None) is None:
            better = choice is None or table.scored(outcome.choice) < table.scored(choice)
            return (outcome.choice if better else choice), bound, outcome.finished
        if (table.used(outcome.choice) <= table.room).all():
            raise BrokenPromise(f"{engine.name} returned a choice that keeps all budgets and not what else is asked")
        refused = (*refused, outcome.choice)
    return choice, bound, False
