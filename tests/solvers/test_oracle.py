"""Every solver beside brute force, on small random problems with all that a problem may ask."""

from __future__ import annotations

import importlib.util
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import BadProblem, Budget, Infeasible, Option, Problem, Slot, Solution, Solver, Unsolved, least, verify
from solvers._backends import Backend
from solvers._program import _Program, minimise
from solvers._table import tabulate
from solvers.exhaustive import Exhaustive
from solvers.greedy import Greedy
from solvers.lagrangian import Lagrangian
from solvers.mip import Mip, MipSettings

HERE = ["cbc", *(["highs"] if importlib.util.find_spec("highspy") else [])]
COSTS = ("decode_ms", "weights_mib", "parameters")
SMALL = settings(max_examples=60, deadline=None)


@st.composite
def problems(draw: st.DrawFn, *, budgets: int = 3, alike: bool = True) -> Problem:
    """Up to 5 slots of up to 4 options in up to 5 layers; budgets often exactly at what some choice costs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 5))
    widths = rng.integers(1, 5, count)
    if draw(st.booleans()) and count > 1:
        widths[1] = widths[0]
    whole = draw(st.booleans())  # small whole numbers: many choices are equal in cost, or in score
    slots = tuple(
        _slot(rng, i, int(width), whole, together=i // draw(st.integers(1, 2))) for i, width in enumerate(widths)
    )
    problem = Problem(slots=slots, base=_costs(rng, whole), budgets=())
    limited = draw(st.permutations(COSTS))[: draw(st.integers(0, budgets))]
    problem = replace(problem, budgets=tuple(Budget(cost=c, limit=_limit(rng, problem, c)) for c in limited))
    if count > 1 and widths[0] == widths[1] and draw(st.booleans()):
        problem = replace(problem, tied=(("s0", "s1"),))
    elif draw(st.booleans()):
        problem = replace(problem, forced={"s0": f"o{rng.integers(widths[0])}"})
    if widths[-1] > 1 and draw(st.booleans()) and count > 2:
        problem = replace(problem, forbidden={f"s{count - 1}": [f"o{rng.integers(widths[-1])}"]})
    return draw(_differing(problem)) if alike else problem


@st.composite
def _differing(draw: st.DrawFn, problem: Problem) -> Problem:
    """The problem with earlier solutions and a number of changed layers, as far as they can be kept at all."""
    kind = draw(st.sampled_from(("none", "changed", "unlike", "both")))
    layers = len(problem.layers())
    asked: dict[str, Any] = {}
    if kind in ("changed", "both"):
        asked["min_changed"] = draw(st.integers(1, layers))
    if kind in ("unlike", "both"):
        earlier = [
            {s.name: draw(st.sampled_from(s.options)).name for s in problem.slots}
            for _ in range(draw(st.integers(1, 2)))
        ]
        asked |= {"unlike": tuple(earlier), "alpha": draw(st.sampled_from((0.0, 0.4, 0.5, 0.8)))}
    try:
        return replace(problem, **asked)
    except BadProblem:  # layers that cannot differ
        return problem


def _slot(rng: np.random.Generator, i: int, width: int, whole: bool, together: int) -> Slot:
    scores = rng.integers(0, 4, width) if whole else rng.lognormal(-2.0, 2.0, width)
    scores = scores * (np.arange(width) > 0)
    options = tuple(Option(name=f"o{j}", score=float(s), costs=_costs(rng, whole)) for j, s in enumerate(scores))
    return Slot(name=f"s{i}", options=options, layer=f"layer{together}", parent="o0")


def _costs(rng: np.random.Generator, whole: bool) -> dict[str, float]:
    values = rng.integers(0, 5, 3) if whole else rng.lognormal(0.0, 1.0, 3) * (1.0, 1e-4, 1e9)
    return {"decode_ms": float(values[0]), "weights_mib": float(values[1]), "parameters": float(round(values[2]))}


def _limit(rng: np.random.Generator, problem: Problem, cost: str) -> float:
    """What some choice costs, at times hardly less."""
    costs = [s.options[rng.integers(len(s.options))].costs[cost] for s in problem.slots]
    less = {"parameters": 1.0}.get(cost, 1e-6) * (rng.random() < 0.3)
    return max(0.0, math.fsum([problem.base[cost], *costs]) - less)


def brute(problem: Problem) -> dict[str, Any]:
    """All choices at once, of each: the score, totals, and whether all that is asked is kept; nothing of ours."""
    axes = np.meshgrid(*(np.arange(len(s.options)) for s in problem.slots), indexing="ij")
    pick = {s.name: a.ravel() for s, a in zip(problem.slots, axes, strict=True)}
    found: dict[str, Any] = {"score": sum(np.array([o.score for o in s.options])[pick[s.name]] for s in problem.slots)}
    kept = np.ones(axes[0].size, dtype=bool)
    for cost in COSTS:
        found[cost] = problem.base[cost] + sum(
            np.array([o.costs[cost] for o in s.options])[pick[s.name]] for s in problem.slots
        )
    names = {s.name: np.array([o.name for o in s.options])[pick[s.name]] for s in problem.slots}
    for group in problem.tied:
        kept &= names[group[0]] == names[group[1]]
    for slot, name in problem.forced.items():
        kept &= names[slot] == name
    for slot, forbidden in problem.forbidden.items():
        kept &= ~np.isin(names[slot], list(forbidden))
    layers = {s.layer for s in problem.slots}
    for reference, most in [
        *([(dict.fromkeys(names, "o0"), len(layers) - problem.min_changed)] if problem.min_changed else []),
        *((picks, math.floor(problem.alpha * len(layers) + 1e-9)) for picks in problem.unlike),
    ]:
        equal = [
            np.all([names[s.name] == reference[s.name] for s in problem.slots if s.layer == layer], axis=0)
            for layer in layers
        ]
        kept &= np.sum(equal, axis=0) <= most
    found["kept"] = kept
    for budget in problem.budgets:
        kept = kept & keeps(budget, found[budget.cost])
    return found | {"fits": kept}


def keeps(budget: Budget, totals: Any) -> Any:
    """Counts exactly, as their sums are; others up to 1e-9."""
    return totals <= budget.limit + (0.0 if budget.cost == "parameters" else 1e-9 * budget.limit)


def best(problem: Problem) -> float | None:
    every = brute(problem)
    return float(every["score"][every["fits"]].min()) if every["fits"].any() else None


def solved(solver: Solver, problem: Problem) -> Solution | None:
    try:
        return solver.solve(problem)
    except Infeasible:
        return None


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("backend", HERE)
def test_mip_equals_brute_force(backend: Any, reduce: bool) -> None:
    solver = Mip(MipSettings(backend=backend, reduce=reduce))

    @settings(max_examples=150 if reduce else 60, deadline=None)
    @given(problems())
    def check(problem: Problem) -> None:
        wanted, found = best(problem), solved(solver, problem)
        assert (found is None) == (wanted is None)
        if found is not None:
            assert found.score == pytest.approx(wanted, rel=1e-9, abs=1e-12)
            assert found.proven
            verify(problem, found)

    check()


@pytest.mark.parametrize("backend", HERE)
def test_the_program_itself_keeps_all_that_is_asked(backend: Any) -> None:
    """Without this, what it leaves out is only refused afterwards, one choice at a time, and takes forever."""

    @SMALL
    @given(problems())
    def check(problem: Problem) -> None:
        table = tabulate(problem)
        ended = minimise(table, Backend(name=backend)) if (table.room >= 0).all() else None
        if ended and ended.choice is not None:
            assert replace(table, room=table.room + 2e-6).fits(ended.choice), "but for the program's tolerance"
            assert ended.objective == pytest.approx(table.scored(ended.choice), rel=1e-9, abs=1e-12)

    check()


@st.composite
def shared(draw: st.DrawFn) -> Problem:
    """Up to 8 slots of the same 3 shapes, whose costs are equal and whose scores are not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, whole = draw(st.integers(6, 8)), draw(st.booleans())
    costs = [_costs(rng, whole) for _ in range(3)]
    slots = tuple(
        replace(s, options=tuple(replace(o, costs=c) for o, c in zip(s.options, costs, strict=True)))
        for s in (_slot(rng, i, 3, whole, together=i // draw(st.integers(1, 2))) for i in range(count))
    )
    problem = Problem(slots=slots, base=costs[0], tied=(("s0", "s1"),) if draw(st.booleans()) else ())
    limited = draw(st.permutations(COSTS))[: draw(st.integers(1, 3))]
    problem = replace(problem, budgets=tuple(Budget(cost=c, limit=_limit(rng, problem, c)) for c in limited))
    return draw(_differing(problem))


@pytest.mark.parametrize("backend", HERE)
def test_counts_of_equal_costs_give_the_same_choice(backend: Any) -> None:
    counted = []

    @SMALL
    @given(shared())
    def check(problem: Problem) -> None:
        counted.append(_Program(tabulate(problem), 1.0, None).relax())
        wanted, found = best(problem), solved(Mip(MipSettings(backend=backend, reduce=False)), problem)
        assert (found is None) == (wanted is None)
        assert found is None or found.score == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        assert found is None or found.proven

    check()
    assert sum(counted) >= 5


@SMALL
@given(problems())
def test_rows_of_what_must_differ_rule_out_nothing_that_does(problem: Problem) -> None:
    table = tabulate(problem)
    rows = table.linear()
    for choice in itertools.product(*(range(len(names)) for names in table.names)):
        assert not table.fits(np.array(choice)) or rows.fits(np.array(choice))


@SMALL
@given(problems())
def test_the_oracle_equals_brute_force(problem: Problem) -> None:
    wanted, found = best(problem), solved(Exhaustive(), problem)
    assert (found is None) == (wanted is None)
    assert found is None or found.score == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@SMALL
@given(problems())
def test_bounds_lie_below_the_optimum_and_baselines_above(problem: Problem) -> None:
    optimum = best(problem)
    for solver in (Greedy(), Lagrangian()):
        try:
            found = solver.solve(problem)
        except Unsolved:
            assert optimum is not None, "what has no choice is Infeasible"
            continue
        except Infeasible:
            assert optimum is None
            continue
        assert optimum is not None
        assert found.bound <= optimum + 1e-9 * abs(optimum) + 1e-12
        assert found.score >= optimum - 1e-9 * abs(optimum) - 1e-12
        assert not found.proven or found.score == pytest.approx(optimum, rel=1e-8, abs=1e-11)


@SMALL
@given(problems(), st.floats(1.0, 2.0))
def test_relaxing_a_budget_never_worsens_the_score(problem: Problem, factor: float) -> None:
    found = solved(Mip(), problem)
    for i, budget in enumerate(problem.budgets if found else ()):
        looser = list(problem.budgets)
        looser[i] = replace(budget, limit=budget.limit * factor)
        after = Mip().solve(replace(problem, budgets=tuple(looser)))
        assert found is not None
        assert after.score <= found.score + 1e-9 * found.score


@SMALL
@given(problems(alike=False))
def test_loose_budgets_return_the_parent(problem: Problem) -> None:
    loose = tuple(replace(b, limit=b.limit * 1e3 + 1e12) for b in problem.budgets)
    found = Mip().solve(replace(problem, budgets=loose, forced={}, forbidden={}))
    assert found.score == 0.0
    assert found.proven
    scores = {(s.name, o.name): o.score for s in problem.slots for o in s.options}
    assert {scores[pick] for pick in found.picks.items()} == {0.0}


@SMALL
@given(problems())
def test_an_impossible_budget_names_what_is_reachable(problem: Problem) -> None:
    """Alone: the least total of all choices that keep the rest; together: limits that really can be kept."""
    every = brute(problem)
    if every["fits"].any():
        return
    with pytest.raises(Infeasible) as caught:
        Mip().solve(problem)
    fault = caught.value
    if not every["kept"].any():
        assert not fault.binding
        return
    budgets = {b.title: b for b in problem.budgets}
    for title in fault.binding:
        others = [budgets[t] for t in fault.binding if t != title and len(fault.least) > 1]
        alone = every[title][every["kept"]].min()
        within = every["kept"].copy()
        if keeps(budgets[title], alone):
            for other in others:
                within &= keeps(other, every[other.cost])
        assert fault.least[title] == pytest.approx(every[title][within].min(), rel=1e-5)
        assert fault.least[title] > budgets[title].limit
    kept = every["kept"].copy()
    loosened = 0.0
    for title, limit in fault.nearest.items():
        kept &= keeps(replace(budgets[title], limit=limit), every[title])
        loosened += limit / budgets[title].limit - 1 if budgets[title].limit else 0.0
    assert kept.any(), "the nearest limits can be kept"
    if all(b.limit > 0 for b in problem.budgets):
        over = sum(np.maximum(every[b.cost] / b.limit - 1, 0.0) for b in problem.budgets)
        assert loosened == pytest.approx(over[every["kept"]].min(), rel=1e-4, abs=1e-5), "and nothing nearer can"


@SMALL
@given(problems(alike=False), st.sampled_from(COSTS))
def test_least_is_the_cheapest_total(problem: Problem, cost: str) -> None:
    every = brute(problem)
    assert least(problem, cost).value == pytest.approx(every[cost][every["kept"]].min(), rel=1e-9)


def test_parts_of_ten_layers_are_counted_as_one_counts() -> None:
    """0.7 of 10 layers is 7, though 0.7 * 10 is less in binary."""
    options = tuple(Option(name=n, score=float(n == "b"), costs={"bytes": 1.0}) for n in "ab")
    slots = tuple(Slot(name=f"s{i}", options=options) for i in range(10))
    problem = Problem(
        slots=slots, base={"bytes": 0.0}, unlike=(dict.fromkeys((s.name for s in slots), "a"),), alpha=0.7
    )
    assert Mip().solve(problem).score == 3.0
    assert sum(1 for _ in itertools.filterfalse("a".__eq__, Mip().solve(problem).picks.values())) == 3
