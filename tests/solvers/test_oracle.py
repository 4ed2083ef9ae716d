"""Every solver beside brute force, on small random problems with all that a problem may ask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Budget, Infeasible, Option, Problem, Slot, Solver, Unsolved, verify
from solvers._costs import keeps
from solvers._solution import broken, totals
from solvers.exhaustive import Exhaustive
from solvers.greedy import Greedy
from solvers.lagrangian import Lagrangian
from solvers.mip import Mip, MipSettings

SOLVERS = {
    "cbc": Mip(MipSettings(backend="cbc")),
    "highs": Mip(MipSettings(backend="highs")),
    "plain": Mip(MipSettings(backend="highs", reduce=False)),
    "plain-cbc": Mip(MipSettings(backend="cbc", reduce=False)),
}
EXAMPLES = {"cbc": 120, "highs": 300, "plain": 200, "plain-cbc": 60}
COSTS = ("decode_ms", "weights_mib", "parameters")


@st.composite
def problems(draw: st.DrawFn, budgets: int = 3) -> Problem:
    """Up to 6 slots of up to 4 options; whole numbers and awkward ones; ties, forced, forbidden, unlike, changed."""
    count = draw(st.integers(1, 5))
    values = st.one_of(st.integers(0, 9).map(float), st.floats(0.01, 10.0))
    scores = st.one_of(st.integers(0, 5).map(float), st.floats(0.0, 2.0))
    slots = []
    for i in range(count):
        width = draw(st.integers(1, 4))
        options = tuple(
            Option(
                name=f"o{j}", score=0.0 if j == 0 else draw(scores),
                costs={c: float(round(v)) if c == "parameters" else v for c in COSTS for v in [draw(values)]},
            )
            for j in range(width)
        )  # fmt: skip
        slots.append(Slot(name=f"s{i}", options=options, layer=f"layer{i // draw(st.integers(1, 2))}", parent="o0"))
    plain = Problem(slots=tuple(slots), base={c: draw(values) for c in COSTS})
    return draw(asked(plain, budgets))


@st.composite
def asked(draw: st.DrawFn, problem: Problem, budgets: int) -> Problem:
    """The problem with budgets between its cheapest and its parent, and constraints that do not contradict."""
    limits = []
    for cost in draw(st.permutations([*COSTS]))[: draw(st.integers(0, budgets))]:
        low, high = (
            problem.base[cost] + sum(pick(o.costs[cost] for o in s.options) for s in problem.slots)
            for pick in (min, max)
        )
        share = draw(st.floats(0.0, 1.0))
        limits.append(Budget(cost=cost, limit=low + share * (high - low)))
    problem = replace(problem, budgets=tuple(limits))
    names = {s.name: [o.name for o in s.options] for s in problem.slots}
    if draw(st.booleans()):
        alike = [a for a, b in itertools.pairwise(names) if names[a] == names[b]]
        if alike:
            first = draw(st.sampled_from(alike))
            problem = replace(problem, tied=((first, f"s{int(first[1:]) + 1}"),))
    free = [n for n in names if n not in {t for g in problem.tied for t in g} and len(names[n]) > 1]
    if free and draw(st.booleans()):
        slot = draw(st.sampled_from(free))
        problem = replace(problem, forbidden={slot: [draw(st.sampled_from(names[slot]))]})
        free.remove(slot)
    if free and draw(st.booleans()):
        slot = draw(st.sampled_from(free))
        problem = replace(problem, forced={slot: draw(st.sampled_from(names[slot]))})
    return problem


def brute(problem: Problem) -> tuple[float, dict[str, str]] | None:
    """The oracle's oracle: every product of options, no pruning at all."""
    best = None
    for picks in every(problem):
        if next(broken(problem, picks), None) is None:
            value = math.fsum(o.score for s in problem.slots for o in s.options if o.name == picks[s.name])
            if best is None or value < best[0]:
                best = value, picks
    return best


def every(problem: Problem) -> Iterator[dict[str, str]]:
    names = [s.name for s in problem.slots]
    for options in itertools.product(*([o.name for o in s.options] for s in problem.slots)):
        yield dict(zip(names, options, strict=True))


@pytest.mark.parametrize("name", SOLVERS)
def test_equals_brute_force(name: str) -> None:
    @settings(max_examples=EXAMPLES[name], deadline=None)
    @given(problems())
    def check(problem: Problem) -> None:
        best = brute(problem)
        if best is None:
            with pytest.raises(Infeasible):
                SOLVERS[name].solve(problem)
            return
        found = SOLVERS[name].solve(problem)
        assert found.score == pytest.approx(best[0], rel=1e-9, abs=1e-12)
        assert found.proven

    check()
