"""Several solutions of one problem: unlike each other, along a range of limits, at the best batch, a unit looser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from solvers._costs import keeps
from solvers._faults import BadProblem, Infeasible
from solvers._problem import Budget, Problem
from solvers._solution import Solution
from solvers._solver import Solver


@dataclass(frozen=True, kw_only=True)
class Point:
    """One limit of a front: the solution, or why there is none."""

    limit: float
    solution: Solution | None
    fault: Infeasible | None = None


@dataclass(frozen=True, kw_only=True)
class AtBatch:
    """The solution at the best batch.

    Attributes:
        batch: of the candidates.
        tokens_per_second: predicted.
        solution: at that batch.
        others: every other batch: its score, or why there is none.
    """

    batch: int
    tokens_per_second: float
    solution: Solution
    others: Mapping[int, float | Infeasible] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a looser limit buys, from solving again.

    Attributes:
        step: units by which the limit was loosened.
        saved: how much less the new optimum scores; at least this, where it is not `proven`.
        per_unit: saved / step.
        proven: whether both solutions are optimal.
    """

    step: float
    saved: float
    per_unit: float
    proven: bool


def front(problem: Problem, cost: str, limits: Sequence[float], solver: Solver) -> tuple[Point, ...]:
    """Return the best choice at each limit of a cost, in the order of `limits`.

    The loosest is solved first.  A proven solution that keeps the next limit too is its solution without another
    search; else it is where that search begins, and its score the bound below which nothing can be.

    Args:
        problem: its budget of that title, if any, is replaced.
        cost: that is limited.
        limits: in its unit.
        solver: for every point.
    """
    others = tuple(b for b in problem.budgets if b.title != cost)
    points: dict[float, Point] = {}
    last: Solution | None = None
    for limit in sorted(set(limits), reverse=True):
        tighter = replace(problem, budgets=(*others, Budget(cost=cost, limit=limit)))
        if last is not None and last.proven and keeps(cost, last.totals[cost], limit):
            slack = {**last.slack, cost: limit - last.totals[cost]}
            prices = {**last.prices, cost: 0.0} if last.prices else {}
            points[limit] = Point(limit=limit, solution=replace(last, slack=slack, seconds=0.0, prices=prices))
            continue
        try:
            last = _after(last, tighter, solver)
            points[limit] = Point(limit=limit, solution=last)
        except Infeasible as fault:
            points[limit] = Point(limit=limit, solution=None, fault=fault)
    return tuple(points[limit] for limit in limits)


def diverse(problem: Problem, count: int, solver: Solver) -> tuple[Solution, ...]:
    """Return the best choice, then each time the best that differs from all before in the share 1 - `alpha` of layers.

    Raises:
        Infeasible: there are fewer; the message says how many.
    """
    found: list[Solution] = []
    for i in range(count):
        earlier = tuple(s.picks for s in found)
        asked = replace(problem, unlike=(*problem.unlike, *earlier))
        try:
            found.append(_after(found[-1] if found else None, asked, solver))
        except Infeasible as fault:
            if not i:
                raise
            raise Infeasible(
                f"only {i} of {count} solutions are that unlike (alpha {problem.alpha:g}); {fault}",
                binding=fault.binding, least=fault.least, nearest=fault.nearest,
            ) from fault  # fmt: skip
    return tuple(found)


def best_batch(problems: Mapping[int, Problem], tokens_per_second: float, *, generated: int, solver: Solver) -> AtBatch:
    """Return the solution of least score that keeps a throughput, over candidate batches; of equals, the smaller batch.

    Args:
        problems: batch -> the problem with the costs of that batch (request_ms, kv_mib) and the other budgets.
        tokens_per_second: generated tokens a second, at least.
        generated: tokens a request.
        solver: for every batch.

    Raises:
        Infeasible: no batch keeps it; the message says what each could.
    """
    if not problems:
        raise BadProblem(["throughput: no batch to choose from; give at least one"])
    ended: dict[int, Solution | Infeasible] = {}
    for batch, problem in sorted(problems.items()):
        budget = Budget.throughput(tokens_per_second, generated=generated, batch=batch)
        try:
            ended[batch] = solver.solve(replace(problem, budgets=(*problem.budgets, budget)))
        except Infeasible as fault:
            ended[batch] = fault
    scores = {batch: e.score if isinstance(e, Solution) else e for batch, e in ended.items()}
    solved = {batch: e for batch, e in ended.items() if isinstance(e, Solution)}
    if not solved:
        raise _too_fast(tokens_per_second, generated, ended)
    best = min(solved, key=lambda batch: (solved[batch].score, batch))
    return AtBatch(
        batch=best, tokens_per_second=1000 * best * generated / solved[best].totals["request_ms"],
        solution=solved[best], others={b: s for b, s in scores.items() if b != best},
    )  # fmt: skip


def shadow_prices(problem: Problem, solution: Solution, solver: Solver, *, share: float = 0.01) -> dict[str, Price]:
    """Return per budget what loosening it by a share of its limit saves, each solved again.

    `Solution.prices` has the other kind, of the linear relaxation, for nothing.

    Args:
        problem: with its budgets.
        solution: of the problem.
        solver: for each looser problem.
        share: of the limit; a limit of 0 is loosened by `share` itself.
    """
    found = {}
    for budget in problem.budgets:
        step = share * (budget.limit or 1.0)
        looser = tuple(replace(b, limit=b.limit + step) if b == budget else b for b in problem.budgets)
        after = solver.solve(replace(problem, budgets=looser), start=solution.picks)
        saved = max(solution.score - after.score, 0.0)
        found[budget.title] = Price(
            step=step, saved=saved, per_unit=saved / step, proven=solution.proven and after.proven
        )
    return found


def _after(looser: Solution | None, problem: Problem, solver: Solver) -> Solution:
    """Return the solution of a problem that keeps more than the looser one did."""
    return solver.solve(problem) if looser is None else solver.solve(problem, start=looser.picks, floor=looser.bound)


def _too_fast(asked: float, generated: int, ended: Mapping[int, Solution | Infeasible]) -> Infeasible:
    reached = {}
    for batch, fault in ended.items():
        if isinstance(fault, Infeasible) and math.isfinite(fault.least.get("throughput", math.inf)):
            reached[batch] = 1000 * batch * generated / fault.least["throughput"]
    batches = ", ".join(map(str, ended))
    if not reached:
        first = next(str(e) for e in ended.values())
        return Infeasible(f"no batch of {batches} keeps the other budgets, whatever the throughput; {first}")
    best = max(reached, key=lambda batch: reached[batch])
    return Infeasible(
        f"no batch of {batches} makes {asked:g} tokens a second; the most is {math.floor(reached[best] * 10) / 10:g} "
        f"at batch {best}",
        binding=("throughput",), least={"throughput": reached[best]},
    )  # fmt: skip
