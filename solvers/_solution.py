"""A solution and its proof: everything in it is recomputed from the problem alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from compress.errors import BrokenPromise
from solvers._costs import SUMS, close, keeps
from solvers._problem import Option, Picks, Problem


@dataclass(frozen=True, kw_only=True)
class Solution:
    """One option per slot, and what is known of that choice.

    Attributes:
        picks: slot -> option, by name, in the slots' order.
        score: sum of the picked options' scores.
        totals: of every cost that options have, base included, and of the sums that budgets may name.
        slack: budget -> limit minus total, by title.
        bound: no choice that keeps everything scores less; -inf where the solver knows none.
        gap: (score - bound) / |score|; 0 where they are equal.
        proven: whether the choice is optimal: score and bound are equal but for `TOLERANCE`.
        seconds: wall time of the search.
        solver: its name, with what it ran on.
        prices: budget -> score that one more unit would save at the margin of the linear relaxation (the dual value
            at the solver's bound); empty where the solver has no dual.
    """

    picks: Picks
    score: float
    totals: Mapping[str, float]
    slack: Mapping[str, float]
    bound: float
    gap: float
    proven: bool
    seconds: float
    solver: str
    prices: Mapping[str, float] = field(default_factory=dict)


def solution(
    problem: Problem, picks: Picks, *, bound: float, seconds: float, solver: str, prices: Mapping[str, float]
) -> Solution:
    """Return the solution of these picks; a bound that rounding put above the score is set to it."""
    value, total = score(problem, picks), totals(problem, picks)
    bound = value if close(value, bound) else bound
    return Solution(
        picks={s.name: picks[s.name] for s in problem.slots}, score=value, totals=total,
        slack={b.title: b.limit - total[b.cost] for b in problem.budgets}, bound=bound, gap=_gap(value, bound),
        proven=value == bound, seconds=seconds, solver=solver, prices=dict(prices),
    )  # fmt: skip


def score(problem: Problem, picks: Picks) -> float:
    """Return the sum of the picked scores, exactly rounded."""
    return math.fsum(option.score for option in _picked(problem, picks))


def totals(problem: Problem, picks: Picks) -> dict[str, float]:
    """Return the total of every cost and of every sum of costs, base included, exactly rounded."""
    picked = _picked(problem, picks)
    found = {c: math.fsum([problem.base[c], *(o.costs[c] for o in picked)]) for c in problem.costs}
    sums = {name: terms for name, terms in SUMS.items() if set(terms) <= found.keys()}
    return found | {
        name: math.fsum(v for c in terms for v in (problem.base[c], *(o.costs[c] for o in picked)))
        for name, terms in sums.items()
    }


def equal_layers(problem: Problem, picks: Picks, reference: Picks) -> int:
    """Return how many layers take the reference's option in all of their slots."""
    return sum(all(picks[s.name] == reference[s.name] for s in slots) for slots in problem.layers().values())


def broken(problem: Problem, picks: Picks) -> Iterator[str]:
    """Yield what the picks do not keep; nothing where they are a choice that the problem allows."""
    options = {s.name: {o.name for o in s.options} for s in problem.slots}
    if picks.keys() != options.keys():
        yield f"picks for {len(picks)} slots, of which {len(options.keys() & picks.keys())} of {len(options)} are known"
        return
    for name, option in picks.items():
        if option not in options[name]:
            yield f"slot {name!r} takes {option!r}, which it has not"
            return
        if problem.forced.get(name, option) != option or option in problem.forbidden.get(name, ()):
            yield f"slot {name!r} takes {option!r} against what is forced or forbidden"
    for group in problem.tied:
        if len({picks[name] for name in group}) > 1:
            yield f"tied slots {', '.join(group)} differ"
    total = totals(problem, picks)
    for budget in problem.budgets:
        if not keeps(budget.cost, total[budget.cost], budget.limit):
            yield f"{budget.title} is {total[budget.cost]!r}, above {budget.limit!r}"
    for reference, most in problem.references():
        if (equal := equal_layers(problem, picks, reference)) > most:
            yield f"{equal} layers equal a reference, {most} may"


def verify(problem: Problem, found: Solution) -> None:
    """Recompute everything a solution says.

    Budgets on counts are kept exactly, others up to 1e-9 of the limit; sums are compared up to 1e-9 of their size.

    Raises:
        BrokenPromise: the first thing that is not so.
    """
    wrong = next(_wrong(problem, found), None)
    if wrong is not None:
        raise BrokenPromise(f"{found.solver}: its solution is wrong: {wrong}")


def _wrong(problem: Problem, found: Solution) -> Iterator[str]:
    yield from broken(problem, found.picks)
    value, total = score(problem, found.picks), totals(problem, found.picks)
    if not close(found.score, value):
        yield f"score {found.score!r} is {value!r}"
    slack = {b.title: b.limit - total[b.cost] for b in problem.budgets}
    for kind, told, true in (("total", found.totals, total), ("slack", found.slack, slack)):
        if told.keys() != true.keys():
            yield f"{kind}s of {sorted(told)}, not of {sorted(true)}"
        for name, number in true.items():
            size = max(abs(total.get(name, 0.0)), abs(number), 1e-3)  # a slack near 0 is a difference of totals
            if abs(told[name] - number) > 1e-9 * size:
                yield f"{kind} of {name} {told[name]!r} is {number!r}"
    if math.isnan(found.bound) or found.bound > found.score:
        yield f"bound {found.bound!r} is above the score {found.score!r}"
    if not math.isclose(found.gap, _gap(found.score, found.bound), rel_tol=1e-9):
        yield f"gap {found.gap!r} is {_gap(found.score, found.bound)!r}"
    if found.proven != close(found.score, found.bound):
        yield f"proven is {found.proven}, with score {found.score!r} and bound {found.bound!r}"
    if not found.seconds >= 0:
        yield f"seconds {found.seconds!r}"


def _gap(value: float, bound: float) -> float:
    return 0.0 if value == bound else (value - bound) / abs(value) if value else math.inf


def _picked(problem: Problem, picks: Picks) -> list[Option]:
    return [next(o for o in slot.options if o.name == picks[slot.name]) for slot in problem.slots]
