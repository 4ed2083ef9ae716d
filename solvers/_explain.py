"""Why there is no choice: which budgets cannot hold, the least that can be reached, and what would do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers._backends import Backend, backend
from solvers._costs import close, keeps
from solvers._faults import Infeasible
from solvers._problem import Budget, Picks, Problem
from solvers._program import minimise
from solvers._search import search
from solvers._solution import totals
from solvers._table import tabulate

_SECONDS = 10.0  # of one program: equal layers make many equal choices, and a proof is not worth waiting for


@dataclass(frozen=True)
class Least:
    """The least total of a cost.

    Attributes:
        value: that a choice has; inf where no choice keeps the rest.
        bound: below which there is surely none.
        picks: the choice.
    """

    value: float
    bound: float
    picks: Picks


def least(problem: Problem, cost: str, others: Sequence[Budget] = ()) -> Least:
    """Return the least total of a cost (or sum of costs), base included, with these budgets kept and no others."""
    budget = Budget(cost=cost, limit=0.0)
    scored = tuple(
        replace(s, options=tuple(replace(o, score=math.fsum(o.costs[c] for c in budget.terms)) for o in s.options))
        for s in problem.slots
    )
    ended = search(replace(problem, slots=scored, budgets=tuple(others)), _engine())
    if ended.picks is None:
        return Least(math.inf, math.inf if ended.finished else -math.inf, {})
    value = totals(problem, ended.picks)[cost]
    bound = ended.bound + math.fsum(problem.base[c] for c in budget.terms)
    return Least(value, value if close(value, bound) else bound, ended.picks)


def infeasible(problem: Problem) -> Infeasible | None:
    """Return why a problem has no choice, or None where it has one or that cannot be known in time."""
    free = search(replace(problem, budgets=()), _engine())
    if free.picks is None and free.finished:
        told = "no choice differs in as many layers as asked; lower min_changed or raise alpha"
        return Infeasible(told)
    alone = {b: found for b in problem.budgets if _beyond(b, found := least(problem, b.cost))}
    core = alone or _together(problem)
    if not core:
        return None
    nearest = _nearest(problem)
    message = (_alone if alone else _jointly)(problem, core)
    if nearest:
        shown = (f"{b.title} <= {_up(nearest[b.title])}{_loosened(b, nearest[b.title])}" for b in problem.budgets)
        message += f"; nearest that can be kept: {', '.join(shown)}"
    if problem.references() and search(replace(problem, min_changed=0, unlike=()), _engine()).picks is not None:
        message += "; without the layers that must differ there is a choice"
    values = {b.title: found.value for b, found in core.items()}
    return Infeasible(message, binding=tuple(values), least=values, nearest=nearest)


def _engine() -> Backend:
    return backend("auto", seconds=_SECONDS)


def _beyond(budget: Budget, found: Least) -> bool:
    return not keeps(budget.cost, found.bound, budget.limit)


def _together(problem: Problem) -> dict[Budget, Least]:
    """Return a smallest set of budgets that cannot hold together, each with its least beside the others."""

    def clash(budgets: Sequence[Budget]) -> bool:
        return len(budgets) > 1 and _beyond(budgets[0], least(problem, budgets[0].cost, budgets[1:]))

    core = list(problem.budgets)
    if not clash(core):
        return {}
    for budget in problem.budgets:
        rest = [b for b in core if b != budget]
        if clash(rest):
            core = rest
    return {b: least(problem, b.cost, [o for o in core if o != b]) for b in core}


def _nearest(problem: Problem) -> dict[str, float]:
    """Return limits that a choice keeps, the sum of their relative loosenings least; empty where none is found."""
    table = tabulate(problem)
    any_ = np.zeros(len(table.groups), dtype=np.intp)
    total = totals(problem, table.picks(any_))
    above = np.array([b.limit - total[b.cost] for b in problem.budgets])
    table = replace(table, room=table.used(any_) + above / table.cost_units)  # to the limit itself, not beside it
    size = np.array([b.limit or abs(problem.base[b.terms[0]]) or 1.0 for b in problem.budgets])
    ended = minimise(table, _engine(), stretch=size / table.cost_units)
    if ended.choice is None:
        return {}
    total = totals(problem, table.picks(ended.choice))
    return {b.title: max(b.limit, total[b.cost]) for b in problem.budgets}


def _alone(problem: Problem, core: dict[Budget, Least]) -> str:
    shown = [
        f"{b.title} <= {b.limit:.6g} (least reachable {_up(f.value)}{_parts(problem, b, f)})" for b, f in core.items()
    ]
    return f"no choice keeps {' nor '.join(shown)}; loosen the budget, or offer cheaper options"


def _jointly(problem: Problem, core: dict[Budget, Least]) -> str:
    kept = " and ".join(f"{b.title} <= {b.limit:.6g}" for b in core)
    shown = ", ".join(f"{b.title} {_up(f.value)}" for b, f in core.items())
    others = "the other" if len(core) == 2 else "the others"
    return f"no choice keeps {kept} together, though fewer of them can be kept; least with {others} kept: {shown}"


def _parts(problem: Problem, budget: Budget, found: Least) -> str:
    """Return what the least total is mostly made of."""
    parts = {"base": math.fsum(problem.base[c] for c in budget.terms)}
    for slot in problem.slots:
        option = next(o for o in slot.options if o.name == found.picks[slot.name])
        parts[f"{slot.name} {option.name!r}"] = math.fsum(option.costs[c] for c in budget.terms)
    most = sorted((name for name in parts if parts[name] > 0), key=lambda name: -parts[name])[:2]
    return "".join(f", {'most of it ' * (not i)}{name} {parts[name]:.4g}" for i, name in enumerate(most))


def _loosened(budget: Budget, limit: float) -> str:
    more = (limit / budget.limit - 1) if budget.limit else 0.0
    return f" (+{more:.2%})" if more else ""


def _up(value: float) -> str:
    """Return a number with four digits, rounded up, so that a limit of what is shown can be kept."""
    if not value or math.isinf(value):
        return f"{value:g}"
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return f"{math.ceil(value / step - 1e-6) * step:.12g}"
