"""Several solutions of one problem: fronts, unlike ones, the best batch, what a looser limit buys."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from solvers import (
    BadProblem,
    Budget,
    Found,
    Infeasible,
    Option,
    Picks,
    Problem,
    Slot,
    best_batch,
    diverse,
    front,
    least,
    shadow_prices,
    verify,
)  # fmt: skip
from solvers._solution import equal_layers
from solvers.exhaustive import Exhaustive
from solvers.mip import Mip


def library(layers: int = 8, *, request: float = 1.0) -> Problem:
    """Attention and FFN slots per layer; the parent first, then ever cheaper and worse."""
    rng = np.random.default_rng(7)
    slots = []
    for layer in range(layers):
        for part, width in (("attention", 3), ("ffn", 4)):
            scores = np.sort(rng.uniform(0.1, 1.0, width)) * (np.arange(width) > 0)
            times = np.sort(rng.uniform(0.2, 2.0, width))[::-1] * request
            options = tuple(
                Option(name=f"{part}{i}", score=float(s), costs={"request_ms": float(t), "weights_mib": 4.0 - i})
                for i, (s, t) in enumerate(zip(scores, times, strict=True))
            )
            slots.append(
                Slot(name=f"layers.{layer}.{part}", layer=f"layers.{layer}", options=options, parent=f"{part}0")
            )
    return Problem(slots=tuple(slots), base={"request_ms": 1.0, "weights_mib": 2.0})


def most(problem: Problem, cost: str) -> float:
    return problem.base[cost] + math.fsum(s.options[0].costs[cost] for s in problem.slots)


def test_a_front_is_what_each_limit_alone_gives() -> None:
    problem = replace(library(), budgets=(Budget(cost="weights_mib", limit=50.0),))
    low, high = least(problem, "request_ms", problem.budgets).value, most(problem, "request_ms")
    limits = [high * 1.2, *np.linspace(low, high, 9), low * 0.99]
    points = front(problem, "request_ms", limits, Mip())
    assert [p.limit for p in points] == limits
    for point in points[:-1]:
        asked = replace(problem, budgets=(*problem.budgets, Budget(cost="request_ms", limit=point.limit)))
        assert point.solution is not None
        verify(asked, point.solution)
        assert point.solution.proven
        assert point.solution.score == pytest.approx(Mip().solve(asked).score, rel=1e-9)
    assert points[-1].solution is None
    assert points[-1].fault is not None
    assert "request_ms" in points[-1].fault.binding
    scores = [p.solution.score for p in sorted(points, key=lambda p: p.limit) if p.solution]
    assert scores == sorted(scores, reverse=True)


def test_a_front_solves_only_where_the_last_choice_is_too_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    search = Mip.search

    def counted(self: Mip, problem: Problem, start: Picks | None, floor: float) -> Found:
        asked.append(start)
        return search(self, problem, start, floor)

    monkeypatch.setattr(Mip, "search", counted)
    front(library(), "request_ms", [1e3, 1e4, 1e5, 1e6], Mip())
    assert asked == [None]


def test_unlike_solutions_differ_and_are_the_best_that_do() -> None:
    problem = replace(library(4), budgets=(Budget(cost="request_ms", limit=8.0),), alpha=0.5)
    found = diverse(problem, 3, Mip())
    assert [s.score for s in found] == sorted(s.score for s in found)
    for one, other in itertools.combinations(found, 2):
        assert equal_layers(problem, one.picks, other.picks) <= 2
    small = replace(library(3), budgets=(Budget(cost="request_ms", limit=7.0),), alpha=0.5)
    again = replace(small, unlike=(Mip().solve(small).picks,))
    assert Mip().solve(again).score == pytest.approx(Exhaustive().solve(again).score)


def test_a_layer_of_two_slots_differs_where_one_of_them_does() -> None:
    problem = replace(library(4), unlike=({s.name: s.options[0].name for s in library(4).slots},), alpha=0.0)
    found = Mip().solve(problem)
    changed = [s.layer for s in problem.slots if found.picks[s.name] != s.options[0].name]
    assert sorted(changed) == [f"layers.{i}" for i in range(4)], "one change in each layer is enough, and cheapest"


def test_too_many_unlike_solutions_are_counted() -> None:
    problem = library(1)
    with pytest.raises(Infeasible, match=r"only 12 of 20 solutions are that unlike \(alpha 0.8\); no choice differs"):
        diverse(problem, 20, Mip())


def test_the_best_batch_is_the_one_of_least_score() -> None:
    """Larger batches take longer, but less than proportionally, so that more room is left for each block."""
    problems = {b: library(request=0.5 + 0.1 * b) for b in (1, 4, 16, 64)}
    speed = 1000 * 16 * 10 / 24.0
    found = best_batch(problems, speed, generated=10, solver=Mip())
    assert found.tokens_per_second >= speed
    scores = {}
    for batch, problem in problems.items():
        limit = Budget(cost="request_ms", limit=1000 * batch * 10 / speed)
        try:
            scores[batch] = Mip().solve(replace(problem, budgets=(limit,))).score
        except Infeasible:
            scores[batch] = math.inf
    assert found.batch == min(scores, key=lambda b: (scores[b], b))
    assert found.solution.score == min(scores.values())
    assert found.others.keys() == problems.keys() - {found.batch}
    assert isinstance(found.others[1], Infeasible)
    assert found.solution.slack["throughput"] >= 0


def test_a_throughput_beyond_all_batches_tells_the_most() -> None:
    problems = {b: library(request=float(b)) for b in (1, 2)}
    most = max(1000 * b * 10 / least(p, "request_ms").value for b, p in problems.items())
    with pytest.raises(Infeasible) as caught:
        best_batch(problems, 1e6, generated=10, solver=Mip())
    assert caught.value.least["throughput"] == pytest.approx(most)
    assert "no batch of 1, 2 makes 1e+06 tokens a second; the most is" in str(caught.value)
    small = {b: replace(p, budgets=(Budget(cost="weights_mib", limit=1.0),)) for b, p in problems.items()}
    with pytest.raises(Infeasible, match="no batch of 1, 2 keeps the other budgets, whatever the throughput"):
        best_batch(small, 1.0, generated=10, solver=Mip())
    with pytest.raises(BadProblem, match="no batch to choose from"):
        best_batch({}, 1.0, generated=10, solver=Mip())


def test_a_looser_limit_buys_what_solving_again_says() -> None:
    problem = replace(library(), budgets=(Budget(cost="request_ms", limit=13.0), Budget(cost="weights_mib", limit=1e3)))
    found = Mip().solve(problem)
    prices = shadow_prices(problem, found, Mip(), share=0.05)
    looser = replace(problem, budgets=(Budget(cost="request_ms", limit=13.65), problem.budgets[1]))
    saved = found.score - Mip().solve(looser).score
    assert saved > 0
    assert prices["request_ms"].saved == pytest.approx(saved)
    assert prices["request_ms"].per_unit == pytest.approx(saved / 0.65)
    assert prices["request_ms"].proven
    assert prices["weights_mib"].saved == 0.0, "what does not bind is worth nothing"


def test_tied_slots_take_the_same_and_add_up() -> None:
    problem = library(4)
    tied = tuple(f"layers.{i}.ffn" for i in range(4))
    for limit in (6.0, 8.0, 10.0):
        asked = replace(problem, tied=(tied,), budgets=(Budget(cost="request_ms", limit=limit),))
        found = Mip().solve(asked)
        assert len({found.picks[name] for name in tied}) == 1
        assert found.score == pytest.approx(Exhaustive().solve(asked).score)
