"""The closed loop on machines that do not add up: it meets the budget, or says that it did not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import budgets
from compress.context import QuietReport
from compress.contracts import Target
from compress.errors import UserFault
from compress.facts import BlockConfig
from compress.measure import Measurement
from compress.profiling import Build
from compress.sweep import clock, loop
from compress.sweep.loop import Closed, Proposal

COST = (4.0, 3.0, 2.0, 1.2)  # ms of an option of a layer, in each of which one is chosen; the first is the parent's
SCORE = (0.0, 1.0, 2.5, 5.0)
LAYERS = 4
PLANS = list(itertools.product(range(len(COST)), repeat=LAYERS))
GENERATE = 8


class NoPlan(UserFault):
    """What this solver raises."""


def summed(plan: tuple[int, ...]) -> float:
    return 2.0 + sum((1 + 0.01 * i) * COST[o] for i, o in enumerate(plan))


def harm(plan: tuple[int, ...]) -> float:
    return sum((1 + 0.07 * i) * SCORE[o] for i, o in enumerate(plan))


def build_of(plan: tuple[int, ...]) -> Build:
    return Build(layout=tuple(BlockConfig(heads=2, kv_heads=1, head_dim=8, ffn=8 * (o + 1)) for o in plan))


def plan_of(build: Build) -> tuple[int, ...]:
    return tuple(block.ffn // 8 - 1 for block in build.layout)


def measurement(dense: float, child: float, half: float = 0.005, processes: int = 3) -> Measurement:
    """Return figures of two engines whose decode takes so many ms, with relative half intervals."""

    def engine(ms: float) -> dict[str, Any]:
        ratio = ms / dense
        time = {"ms": ms, "ratio": ratio, "ratio_low": ratio * (1 - half), "ratio_high": ratio * (1 + half)}
        phase = {**time, "cpu_ms": ms, "wall_ms": ms, "wall_p10_ms": ms, "spread": 0.0, "runs": 100, "flags": []}
        whole = {**time, "ms": (1 + GENERATE) * ms}
        return {
            "folder": f"engine-{ms}", "prefill": phase, "decode": phase, "request": whole, "tokens_per_second": 1.0,
            "load_seconds": 0.0, "memory_mib": None, "file_mib": 1.0,
        }  # fmt: skip

    told = {"cache": "", "load_average": 0.0, "versions": {}, "flags": [], "machine": {"cpu": "none", "cores": 1}}
    request = {"prompt": 16, "generate": GENERATE}
    engines = [engine(dense), engine(child)]
    about = {"format": 1, "clock": "simulated", "processes": processes, "request": request, "engines": engines}
    return Measurement.model_validate({**told, **about})


class Machine:
    """A solver that knows sums, and a clock that knows better."""

    def __init__(
        self, true: Callable[[tuple[int, ...]], float], half: float = 0.005,
        harm: Callable[[tuple[int, ...]], float] = harm,
    ) -> None:  # fmt: skip
        self.true, self.half, self.harm = true, half, harm
        self.dense = true(PLANS[0])
        self.timed: list[tuple[int, ...]] = []

    def propose(self, limits: Mapping[str, float], offsets: Mapping[str, float]) -> Proposal:
        offset, limit = offsets.get("decode_ms", 0.0), limits["decode_ms"]
        plan = min((p for p in PLANS if summed(p) + offset <= limit), key=self.harm, default=None)
        if plan is None:
            raise NoPlan(f"nothing below {summed(PLANS[-1]) + offset:.3f} ms, got {limit:.3f}")
        ms = summed(plan) + offset
        return Proposal(build=build_of(plan), predicted={"decode_ms": ms}, score=self.harm(plan))

    def measure(self, build: Build) -> Measurement:
        self.timed.append(plan_of(build))
        return measurement(self.dense, self.true(self.timed[-1]), self.half)

    def close(self, share: float, report: QuietReport | None = None, rounds: int = 8, **given: Any) -> Closed:
        limits = budgets.parse({"decode": f"{share:.6f}x"})
        told, dense = report or QuietReport(), {"decode_ms": summed(PLANS[0])}
        return loop.close(limits, self.propose, self.measure, told, dense=dense, rounds=rounds, **given)

    def optimum(self, share: float) -> float | None:
        """Return the least harm of all plans that truly keep the budget."""
        limit = float(f"{share:.6f}") * self.dense
        return min((self.harm(p) for p in PLANS if self.true(p) <= limit), default=None)


def test_what_adds_up_needs_one_round() -> None:
    machine = Machine(summed)
    closed = machine.close(0.6)
    assert closed.met
    assert len(closed.rounds) == 1
    assert closed.proposal.score == machine.optimum(0.6)
    figure = closed.best.figures["decode_ms"]
    assert figure.predicted == pytest.approx(figure.measured)
    assert figure.limit == pytest.approx(0.6 * summed(PLANS[0]))
    assert figure.offset == pytest.approx(0)


@given(st.floats(-1.5, 4), st.floats(0.3, 0.95))
def test_a_constant_is_learned_in_one_round(missing: float, share: float) -> None:
    """The second plan is chosen under the exact offset, so it is the optimum; else the solver has the word."""
    machine = Machine(lambda plan: summed(plan) + missing)
    best = machine.optimum(share)
    try:
        closed = machine.close(share)
    except NoPlan:
        assert best is None or not machine.timed, "where sums alone leave no plan, nothing is timed"
        return
    assert closed.met
    if best is not None:  # else it is within the tolerance alone
        assert closed.proposal.score <= best
        assert len(closed.rounds) <= 2


@given(st.floats(-1.5, 1.5), st.floats(0.3, 0.95), st.lists(st.floats(0.7, 1.4), min_size=7, max_size=7))
def test_how_fast_the_machine_is_at_the_moment_teaches_nothing(
    missing: float, share: float, later: list[float]
) -> None:
    """Neighbours slow the dense engine and the plan beside it alike, each round by another factor: ratios stay."""

    class Busy(Machine):
        def measure(self, build: Build) -> Measurement:
            self.timed.append(plan_of(build))
            factor = [1.0, *later][len(self.timed) - 1]
            return measurement(factor * self.dense, factor * self.true(self.timed[-1]), self.half)

    def true(plan: tuple[int, ...]) -> float:
        return summed(plan) + missing

    busy, calm = Busy(true), Machine(true)
    try:
        found, wanted = (machine.close(share) for machine in (busy, calm))
    except NoPlan:
        return
    assert found.met == wanted.met
    assert [plan_of(r.proposal.build) for r in found.rounds] == [plan_of(r.proposal.build) for r in wanted.rounds]


@settings(max_examples=200)
@given(st.floats(-2, 4), st.floats(0.6, 1.6), st.floats(0.3, 0.95))
def test_a_machine_on_a_line_is_met_wherever_it_can_be(intercept: float, slope: float, share: float) -> None:
    machine = Machine(lambda plan: intercept + slope * summed(plan))
    try:
        closed = machine.close(share, rounds=12)
    except NoPlan:
        assert machine.optimum(share) is None or not machine.timed
        return
    assert closed.met
    assert machine.true(plan_of(closed.proposal.build)) <= 1.02 * share * machine.dense + 1e-9


@settings(max_examples=200)
@given(st.integers(0, 2**16), st.floats(0, 0.4), st.floats(0.3, 0.95))
def test_on_a_wild_machine_it_is_honest(seed: int, wild: float, share: float) -> None:
    """Every plan misses something of its own: no plan is timed twice, and what is said of the best one is true."""

    def true(plan: tuple[int, ...]) -> float:
        pairs = sum(a != b for a, b in itertools.pairwise(plan)) / LAYERS
        own = (hash((seed, *plan)) % 1000) / 1000 - 0.5
        return summed(plan) * (1 + wild * (own + pairs))

    machine, report = Machine(true), QuietReport()
    try:
        closed = machine.close(share, report)
    except NoPlan:
        assert not any(machine.true(p) * 1.005 <= 1.02 * share * machine.dense for p in machine.timed)
        return
    assert len(set(machine.timed)) == len(machine.timed) == len(closed.rounds) <= 8
    kept = [r for r in closed.rounds if machine.true(plan_of(r.proposal.build)) * 1.005 <= 1.02 * share * machine.dense]
    assert [r for r in closed.rounds if r.met] == kept
    assert closed.met == bool(kept)
    if kept:
        assert closed.proposal.score == min(r.proposal.score for r in kept)
    else:
        assert len(closed.rounds) == 8
        assert "not met in 8 rounds; the nearest plan is" in report.told[-1]
    assert len(report.measured["rounds"]) == len(closed.rounds)


def test_slack_is_used_and_an_upgrade_that_misses_is_given_up() -> None:
    """The dense model is slower than its sum, and plans that keep none of its blocks are faster than theirs."""
    machine = Machine(lambda plan: summed(plan) - (0.0 if 0 in plan else 2.0) + (0.0 if any(plan) else 2.0))
    closed = machine.close(0.6)
    assert [r.met for r in closed.rounds] == [True, True, False]
    assert closed.rounds[0].proposal.score > closed.proposal.score
    assert closed.proposal.score == machine.optimum(0.6)


@pytest.mark.parametrize("share", [0.45, 0.6, 0.8])
def test_three_rounds_suffice_where_large_models_leave_the_cache(share: float) -> None:
    """As measured of floats that share a cache with neighbours: small plans take their sum, the dense one 1.4 of it."""
    dense = summed(PLANS[0])
    machine = Machine(lambda plan: summed(plan) + 0.4 * dense * (summed(plan) / dense) ** 8)
    closed = machine.close(share, rounds=3)
    best = machine.optimum(share)
    assert best is not None
    assert closed.met
    assert closed.proposal.score <= best


@pytest.mark.parametrize("share", [0.7, 0.8, 0.9])
def test_what_is_missed_may_grow_with_the_model(share: float) -> None:
    """What fits into the cache is as fast as its sum, what does not is slower, the dense model most of all."""
    machine = Machine(lambda plan: summed(plan) + max(summed(plan) - 10, 0))
    closed = machine.close(share, rounds=3)
    assert closed.met
    assert all(-0.3 < r.excess < 0.15 for r in closed.rounds[1:]), (
        "the second plan is near its budget, not the dense one"
    )
    best = machine.optimum(share)
    assert best is not None
    assert closed.proposal.score <= best + 1


@given(st.floats(-1.5, 3), st.floats(0.3, 0.95))
def test_a_loop_by_other_scores_begins_with_what_was_learnt(missing: float, share: float) -> None:
    """What is missed is a constant, so the first plan by other scores is their optimum already."""

    def true(plan: tuple[int, ...]) -> float:
        return summed(plan) + missing

    try:
        first = Machine(true).close(share)
    except NoPlan:
        return
    later = Machine(true, harm=lambda plan: sum((9 - i) * o for i, o in enumerate(plan)))
    closed = later.close(share, learnt=first.learnt)
    assert closed.met
    best = later.optimum(share)
    if best is not None:  # else it is within the tolerance alone
        assert len(closed.rounds) == 1
        assert closed.proposal.score == pytest.approx(best)
    assert closed.learnt.dense == first.learnt.dense


def test_a_loop_that_learnt_of_no_plan_begins_with_sums() -> None:
    learnt = loop.Learnt(dense={"decode_ms": summed(PLANS[0])}, offsets={"decode_ms": 100.0})
    closed = Machine(summed).close(0.6, learnt=learnt)
    assert closed.met
    assert closed.proposal.score == Machine(summed).optimum(0.6)


def test_a_plan_a_little_over_is_met_and_another_is_not_worse() -> None:
    machine = Machine(lambda plan: summed(plan) + (0.0 if plan == PLANS[0] else 0.1))
    closed = machine.close(0.6)
    assert closed.met
    assert closed.rounds[0].figures["decode_ms"].excess <= 0.02


def test_a_budget_below_reach_is_the_solvers_word() -> None:
    with pytest.raises(NoPlan, match=r"nothing below 6\.\d+ ms"):
        Machine(summed).close(0.2)
    machine = Machine(lambda plan: summed(plan) + (0.0 if plan == PLANS[0] else 5.0))
    with pytest.raises(NoPlan):
        machine.close(0.45, rounds=30)
    assert machine.timed


def test_what_the_machine_cannot_resolve_is_judged_by_its_middle_and_told() -> None:
    machine, report = Machine(lambda plan: summed(plan), half=0.05), QuietReport()
    closed = machine.close(0.6, report)
    assert closed.met
    assert not closed.best.resolved
    assert "not resolvable on this machine" in report.told[0]
    assert Machine(summed, half=0.009).close(0.6).best.resolved


def test_an_absolute_budget_in_ms() -> None:
    machine = Machine(lambda plan: summed(plan) + 1.0)
    limits = budgets.parse({"decode": 11.0})
    closed = loop.close(limits, machine.propose, machine.measure, QuietReport(), dense={"decode_ms": 18.24})
    assert closed.met
    assert closed.best.figures["decode_ms"].limit == 11.0
    assert machine.true(plan_of(closed.proposal.build)) <= 11.0 * 1.02


def test_sizes_are_arithmetic_and_nothing_is_timed() -> None:
    def propose(limits: Mapping[str, float], offsets: Mapping[str, float]) -> Proposal:
        assert limits == {"weights_mib": 40.0}
        assert not offsets
        return Proposal(build=build_of(PLANS[0]), predicted={"weights_mib": 39.0}, score=0.0)

    report = QuietReport()
    dense = {"weights_mib": 80.0}
    closed = loop.close(budgets.parse({"weights_mib": "0.5x"}), propose, _never, report, dense=dense)
    assert closed.met
    assert closed.best.measurement is None
    assert report.told == ["round 1: weights_mib 39 MiB, limit 40 MiB"]


def _never(build: Build) -> Measurement:
    raise AssertionError("there is no time to measure")


def test_two_times_at_once() -> None:
    """A request is corrected by its own offset, and a plan must keep both limits."""

    def propose(limits: Mapping[str, float], offsets: Mapping[str, float]) -> Proposal:
        def costs(plan: tuple[int, ...]) -> dict[str, float]:
            each = {"decode_ms": summed(plan), "request_ms": (1 + GENERATE) * summed(plan)}
            return {cost: ms + offsets.get(cost, 0.0) for cost, ms in each.items()}

        fits = (p for p in PLANS if all(costs(p)[c] <= limit for c, limit in limits.items()))
        plan = min(fits, key=harm)
        return Proposal(build=build_of(plan), predicted=costs(plan), score=harm(plan))

    machine = Machine(lambda plan: summed(plan) + 0.8)
    dense = {"decode_ms": summed(PLANS[0]), "request_ms": 9 * summed(PLANS[0])}
    limits = budgets.parse({"decode": "0.8x", "request": "0.6x"})
    closed = loop.close(limits, propose, machine.measure, QuietReport(), dense=dense)
    assert closed.met
    assert closed.best.figures["request_ms"].offset == pytest.approx(9 * 0.8)
    assert closed.proposal.score == machine.optimum(0.6)


# -- the clock --------------------------------------------------------------------------------------------------


def test_ratios_are_measured_until_they_are_known() -> None:
    asked: list[int] = []

    def measure(
        folders: list[Path], target: Target, report: Any, *, processes: int,
        doubt: Callable[[int], float] = lambda count: 0.08 / count,
    ) -> Measurement:  # fmt: skip
        asked.append(processes)
        return measurement(4.0, 2.0, half=doubt(processes), processes=processes)

    report = QuietReport()
    found = clock.timed([], Target(), report, ["decode_ms"], clock=measure)
    assert asked == [6, 12]
    assert found.processes == 12
    assert not report.told
    asked.clear()
    clock.timed([], Target(), report, ["decode_ms"], clock=partial(measure, doubt=lambda _: 0.011))
    assert asked == [6, 12, 24]
    assert report.told == [
        "decode: known within 1.1 % after 24 processes; closer than 1 % is not resolvable on this machine"
    ]
    asked.clear()
    clock.timed([], Target(), report, ["decode_ms"], clock=partial(measure, doubt=lambda _: 0.1))
    assert asked == [6]  # twenty-four processes would not do either
    asked.clear()
    clock.timed([], Target(), report, ["weights_mib"], clock=measure)
    assert asked == [6]
