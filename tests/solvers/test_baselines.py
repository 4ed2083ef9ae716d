"""Baselines: uniform choices are the best uniform ones, random ones keep the budgets and know no score."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from solvers import TOLERANCE, Budget, Infeasible, Option, Problem, Slot, Unsolved
from solvers.mip import Mip
from solvers.random import Random, RandomSettings
from solvers.uniform import Uniform

ATTENTION, FFN = ("parent", "half", "none"), ("parent", "75%", "none")
SIZE = {"parent": 4.0, "half": 2.0, "75%": 3.0, "none": 0.0}


def model(scores: list[float], limit: float, layers: int = 3) -> Problem:
    """Return layers of two parts of three options each, the parent's at score 0."""
    drawn = itertools.cycle(scores)
    slots = tuple(
        Slot(
            name=f"{i} {part}", layer=str(i), parent="parent",
            options=tuple(
                Option(name=n, score=0.0 if n == "parent" else next(drawn), costs={"weights_mib": SIZE[n]})
                for n in names
            ),
        )
        for i in range(layers)
        for part, names in (("attention", ATTENTION), ("ffn", FFN))
    )  # fmt: skip
    return Problem(slots=slots, base={"weights_mib": 1.0}, budgets=(Budget(cost="weights_mib", limit=limit),))


@given(st.lists(st.floats(0, 9), min_size=12, max_size=12), st.floats(1, 25))
@example([0.0] * 9 + [1.0, 0.0, 0.0], 6.9999999999999964)
def test_the_best_of_all_uniform_choices(scores: list[float], limit: float) -> None:
    problem = model(scores, limit)
    value = {(s.name, o.name): o.score for s in problem.slots for o in s.options}
    sums = [
        math.fsum(value[f"{i} attention", a] + value[f"{i} ffn", f] for i in range(3))
        for a, f in itertools.product(ATTENTION, FFN)
        if 1 + 3 * (SIZE[a] + SIZE[f]) <= limit * (1 + TOLERANCE)
    ]
    found = Uniform().solve(problem)
    assert found.score == pytest.approx(min(sums))
    assert len({found.picks[f"{i} ffn"] for i in range(3)}) == 1
    assert found.score >= Mip().solve(problem).score - 1e-9
    assert not found.proven or found.score == pytest.approx(Mip().solve(problem).score)


def test_what_is_tied_stays_tied() -> None:
    slots = model([1.0, 3.0], 13.0).slots
    attention = tuple(s for s in slots if s.name.endswith("attention"))
    first, second = (replace(s, layer=f"{s.name}{k}", name=f"{s.name}{k}") for k, s in enumerate(attention[:2]))
    problem = Problem(
        slots=(first, replace(second, layer=first.layer)), base={"weights_mib": 0.0},
        budgets=(Budget(cost="weights_mib", limit=4.0),), tied=((first.name, second.name),),
    )  # fmt: skip
    assert set(Uniform().solve(problem).picks.values()) == {"half"}


def test_layers_of_unlike_options_take_what_all_have() -> None:
    problem = model([1.0, 3.0], 16.0)
    fewer = tuple(
        replace(s, options=tuple(o for o in s.options if o.name != "half")) if s.name == "1 attention" else s
        for s in problem.slots
    )
    assert "half" in Uniform().solve(problem).picks.values()
    assert "half" not in Uniform().solve(replace(problem, slots=fewer)).picks.values()
    other = replace(problem.slots[2], options=(Option(name="x", score=0, costs={"weights_mib": 1}),), parent=None)
    with pytest.raises(Unsolved, match="uniform: found no choice"):
        Uniform().solve(replace(problem, slots=(*problem.slots[:2], other, *problem.slots[3:])))


@given(st.lists(st.floats(0, 9), min_size=12, max_size=12), st.floats(1, 25), st.integers(0, 99))
def test_random_choices_keep_the_budget_and_leave_little(scores: list[float], limit: float, seed: int) -> None:
    problem = model(scores, limit)
    found = Random(RandomSettings(seed=seed)).solve(problem)
    assert found.picks == Random(RandomSettings(seed=seed)).solve(problem).picks
    assert -1e-7 <= found.slack["weights_mib"] < 4 + 1e-7 or set(found.picks.values()) == {"parent"}
    assert found.score >= Mip().solve(problem).score - 1e-9


def test_seeds_draw_other_choices() -> None:
    problem = model([float(i) for i in range(1, 13)], 13.0)
    assert len({tuple(Random(RandomSettings(seed=s)).solve(problem).picks.values()) for s in range(20)}) > 5


@pytest.mark.parametrize("solver", [Uniform(), Random()])
def test_below_reach(solver: Uniform | Random) -> None:
    with pytest.raises(Infeasible):
        solver.solve(model([1.0], 0.5))
