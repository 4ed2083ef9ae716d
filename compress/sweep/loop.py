"""The closed loop: a plan is chosen, timed as it will ship, and chosen anew until the clock agrees with the budget.

Sums over parts miss what a whole model has besides.  What they miss is taken as an offset `o` of each time,

    o(plan) = measured(plan) - sum(plan),

and the next plan is chosen under `sum + o <= limit`; this corrects plans that missed, and uses slack that an upgrade
fits in.  What is missed grows with what is there: a small model may stay in a cache that a large one does not fit.  So
where one plan, or the dense model, was over the limit and another within, `o` is first what is missed where a curve
through them meets the limit, then that of the plan just timed.  The curve is not known: it lies between a line through
the two that are nearest to the limit and one that goes on from the next nearest (at first: with its own offset), and
the middle is taken.  A machine is not equally fast from minute to minute: only ratios to the dense engine beside a plan
are learnt from, as shares of its time in the first round.

A plan that is its own successor and met the budget ends the loop.  Where an offset gives nothing new (no plan, or one
timed before), one between it and an offset that gave too slow a plan is sought: other plans may miss less.  No plan is
timed twice, so the loop never goes round in circles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from compress import budgets
from compress.budgets import TIMES, Limit
from compress.context import Report
from compress.errors import UserFault
from compress.measure import Measurement
from compress.profiling import Build
from compress.sweep.clock import HALF, margin, time_of
from compress.sweep.rounds import Closed, Costs, Figure, Learnt, Proposal, Round

__all__ = ["Closed", "Costs", "Figure", "Learnt", "Proposal", "Propose", "Round", "close"]

_SOLVES = 10  # at most, from one plan to the next
_ROUNDING = 1e-9  # relative; sizes are sums
Propose = Callable[[Costs, Costs], Proposal]


def close(
    limits: Sequence[Limit],
    propose: Propose,
    measure: Callable[[Build], Measurement],
    report: Report,
    *,
    dense: Costs,
    tolerance: float = 0.02,
    rounds: int = 5,
    learnt: Learnt | None = None,
) -> Closed:
    """Return the best plan that keeps a budget on the clock.

    Args:
        limits: of the whole model.
        propose: solves under limits in units, given offsets in ms; raises `UserFault` where no plan keeps them.
        measure: times the dense engine and a build's, interleaved; the first is the dense one.  Not called where no
            time is limited.
        report: is told each round.
        dense: what the dense model costs as far as costs are told; shares of sizes and, until it is timed, of times.
        tolerance: how far over its budget a measured cost may be, relative.
        rounds: plans to time at most.
        learnt: what an earlier loop under these limits was told by the clock of plans that were chosen otherwise.

    Raises:
        UserFault: what the solver raised where no plan keeps the budget.
    """
    return _Loop(limits, propose, measure, report, dense, tolerance, rounds, learnt or Learnt(dense=dense)).run()


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A proposal, the offsets it was chosen under, and its times without them."""

    proposal: Proposal
    under: Costs
    sums: Costs


class _Loop:
    def __init__(
        self, limits: Sequence[Limit], propose: Propose, measure: Callable[[Build], Measurement], report: Report,
        dense: Costs, tolerance: float, rounds: int, learnt: Learnt,
    ) -> None:  # fmt: skip
        self.limits, self.propose, self.measure, self.report = limits, propose, measure, report
        self.sums, self.dense, self.tolerance, self.most = dense, dict(learnt.dense), tolerance, rounds
        self.timings = {cost: list(found) for cost, found in learnt.timings.items()}
        self.timed = any(limit.timed for limit in limits)
        self.rounds: list[Round] = []
        self.offsets = learnt.offsets  # near the limits, as far as is known
        self.own: Costs = {}  # of the plan timed last
        self.missed: Costs = {}  # the largest of all plans that missed
        self.slow: Costs | None = None  # offsets under which too slow a plan was chosen
        self.fast: Costs | None = None  # offsets under which none was, or one no better than what met the budget

    def run(self) -> Closed:
        plan: _Plan | None = self._first()
        while plan is not None:
            self._time(plan)
            plan = self._next() if self.timed and len(self.rounds) < self.most else None
        best = self._best() or min(self.rounds, key=lambda r: r.excess)
        if not best.met and (count := len(self.rounds)) > 1:
            self.report.tell(f"not met in {count} rounds; the nearest plan is {best.excess:.1%} over its budget")
        learnt = Learnt(dense=self.dense, timings=self.timings, offsets=self.offsets)
        return Closed(rounds=tuple(self.rounds), best=best, learnt=learnt)

    def _first(self) -> _Plan:
        try:
            return self._solved(self.offsets)
        except UserFault:
            if not self.offsets:
                raise
            return self._solved({})  # what the last plan missed need not be missed by all

    def _next(self) -> _Plan | None:
        """Return a plan worth timing, or None.

        Raises:
            UserFault: what the solver raised, where no plan met the budget and none is left to be timed.
        """
        at, best, fault = self.offsets, self._best(), None
        for _ in range(_SOLVES):
            try:
                plan = self._solved(at)
                known = next((r for r in self.rounds if r.proposal.build == plan.proposal.build), None)
                if known is None and (best is None or plan.proposal.score < best.proposal.score):
                    return plan
                if known is self.rounds[-1] and known.met:
                    if at == self.own:
                        return None  # what was timed last is what its own offset gives
                    at = self.own
                    continue
            except UserFault as error:
                known, fault = None, fault or error
            if known is not None and not known.met:
                self.slow = at
            else:
                self.fast = at
            if self.slow is None or (self.fast is None and at == self.missed):
                break
            at = self.missed if self.fast is None else _middle(self.slow, self.fast)
        if fault is not None and best is None:
            raise fault
        return None

    def _best(self) -> Round | None:
        return min((r for r in self.rounds if r.met), key=lambda r: r.proposal.score, default=None)

    def _solved(self, offsets: Costs) -> _Plan:
        proposal = self.propose(budgets.absolute(self.limits, self.dense), offsets)
        sums = {c: proposal.predicted[c] - offsets.get(c, 0.0) for c in TIMES if c in proposal.predicted}
        return _Plan(proposal=proposal, under=offsets, sums=sums)

    def _time(self, plan: _Plan) -> None:
        """Time a plan and learn its offsets."""
        measured = self.measure(plan.proposal.build) if self.timed else None
        if measured:
            first, last = measured.engines[0], measured.engines[-1]
            if not self.timings:
                self.dense |= {c: t.ms for c in TIMES if (t := time_of(first, c))}
            times = {c: t.ratio * self.dense[c] for c in plan.sums if (t := time_of(last, c))}
            self.own = {c: ms - plan.sums[c] for c, ms in times.items()}
            for cost, ms in times.items():
                found = self.timings.setdefault(cost, [])
                if (timing := (ms, plan.sums[cost])) not in found:  # an earlier loop may have timed the same plan
                    found.append(timing)
        wanted = budgets.absolute(self.limits, self.dense)
        self.offsets = {c: self._missing(c, wanted[c], o) if c in wanted else o for c, o in self.own.items()}
        figures = {cost: self._figure(cost, limit, plan, measured) for cost, limit in wanted.items()}
        met = all(f.excess <= (self.tolerance if cost in TIMES else _ROUNDING) for cost, f in figures.items())
        self.rounds.append(Round(proposal=plan.proposal, figures=figures, measurement=measured, met=met))
        if met:
            self.fast = plan.under
        else:
            self.slow = plan.under
            self.missed = {c: max(o, self.missed.get(c, o)) for c, o in self.own.items()}
        self._tell(self.rounds[-1])

    def _missing(self, cost: str, limit: float, own: float) -> float:
        """Return what sums near a limit miss; where no two plans enclose it, what that of the plan just timed does."""
        found = [*self.timings[cost], *([(self.dense[cost], self.sums[cost])] if cost in self.sums else [])]
        within, over = [f for f in found if f[0] <= limit], [f for f in found if f[0] > limit]
        if not within or not over or max(within)[1] >= min(over)[1]:
            return own
        fast, slow = max(within), min(over)
        pairs = [(fast, slow), *((fast, f) for f in sorted(within)[-2:-1]), *((slow, s) for s in sorted(over)[1:2])]
        aims = [_crossing(one, other, limit) for one, other in pairs if (other[0] - one[0]) * (other[1] - one[1]) > 0]
        if len(aims) == 1:
            aims.append(limit - own)
        return limit - sum(min(max(aim, fast[1]), slow[1]) for aim in aims) / len(aims)

    def _figure(self, cost: str, limit: float, plan: _Plan, measured: Measurement | None) -> Figure:
        predicted = plan.proposal.predicted[cost]
        time = time_of(measured.engines[-1], cost) if measured and cost in TIMES else None
        if time is None:
            return Figure(limit=limit, predicted=predicted, measured=predicted, low=predicted, high=predicted)
        low, middle, high = (self.dense[cost] * r for r in (time.ratio_low, time.ratio, time.ratio_high))
        return Figure(
            limit=limit, predicted=predicted, measured=middle, low=low, high=high,
            offset=self.offsets[cost], resolved=margin(time) <= HALF,
        )  # fmt: skip

    def _tell(self, done: Round) -> None:
        number = len(self.rounds)
        for cost, figure in done.figures.items():
            self.report.tell(f"round {number}: {cost.removesuffix('_ms')} {figure.told(cost)}")
        figures = {cost: asdict(f) for cost, f in done.figures.items()}
        told = {"round": number, "score": done.proposal.score, "met": done.met, "figures": figures}
        self.report.record("rounds", told)


def _middle(one: Costs, other: Costs) -> Costs:
    return {c: (one.get(c, 0.0) + other.get(c, 0.0)) / 2 for c in {**one, **other}}


def _crossing(one: tuple[float, float], other: tuple[float, float], limit: float) -> float:
    """Return the sum at which a line through two plans, each (ms, sum), takes `limit` ms."""
    return one[1] + (limit - one[0]) / (other[0] - one[0]) * (other[1] - one[1])
