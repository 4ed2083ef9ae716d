"""What a solution says is true: damaged ones are refused, a search cut short is not called proven."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compress import registry
from compress.contracts import Settings
from compress.errors import BrokenPromise, Unavailable
from solvers import Budget, Found, Infeasible, Option, Picks, Problem, Slot, Solution, Solver, Unsolved, verify
from solvers import _backends as backends
from solvers import _program as program
from solvers._dual import maximise
from solvers._table import tabulate
from solvers.exhaustive import Exhaustive
from solvers.greedy import Greedy
from solvers.lagrangian import Lagrangian
from solvers.mip import Mip, MipSettings

HERE: list[Any] = ["cbc", *(["highs"] if importlib.util.find_spec("highspy") else [])]
COSTS = ("prefill_ms", "decode_ms", "weights_mib", "kv_mib", "bytes")


def hard(slots: int = 40, options: int = 12, seed: int = 0) -> Problem:
    """Scores that follow the costs, five budgets at half: no search proves it in a second."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(slots):
        costs = rng.uniform(1.0, 2.0, (options, len(COSTS))).round(3)
        scores = 30.0 - costs.sum(axis=1) + rng.uniform(0.0, 0.5, options)
        made.append(
            Slot(
                name=f"s{i}", parent="o0",
                options=tuple(
                    Option(name=f"o{j}", score=float(s), costs=dict(zip(COSTS, map(float, c), strict=True)))
                    for j, (s, c) in enumerate(zip(scores, costs, strict=True))
                ),
            )
        )  # fmt: skip
    limits = tuple(Budget(cost=c, limit=1.5 * slots) for c in COSTS)
    return Problem(slots=tuple(made), base=dict.fromkeys(COSTS, 0.0), budgets=limits)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("seconds", [1e-6, 0.5])
def test_a_search_that_time_ends_is_not_proven(backend: Any, seconds: float) -> None:
    found = Mip(MipSettings(backend=backend, seconds=seconds)).solve(hard())
    assert not found.proven
    assert 0 < found.gap < 0.2
    assert found.bound < found.score
    assert found.solver == f"mip/{backend}"


@pytest.mark.parametrize("backend", HERE)
def test_an_incumbent_of_the_program_itself_is_not_called_optimal(backend: Any) -> None:
    """PuLP's status is Optimal then; without our bound beside it, the solver's own has to tell."""
    engine = backends.backend(backend, seconds=1.5)
    ended = program.minimise(tabulate(hard(30, 8)), engine)
    assert not ended.finished
    assert ended.bound < ended.objective


@pytest.mark.parametrize("backend", HERE)
def test_no_choice_in_time_is_not_no_choice(backend: Any) -> None:
    with pytest.raises(
        Unsolved, match=r"no choice found within 1e-06 s, though there may be one; give it more seconds"
    ):
        Mip(MipSettings(backend=backend, seconds=1e-6, reduce=False)).solve(hard())


def test_a_gap_that_is_allowed_is_told() -> None:
    loose = Mip(MipSettings(gap=0.05, reduce=False)).solve(hard(8, 4))
    exact = Mip().solve(hard(8, 4))
    assert exact.proven
    assert loose.bound <= exact.score <= loose.score
    assert loose.gap <= 0.05
    assert loose.proven == (loose.gap == 0)


def test_a_missing_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="highs is not installed; pip install highspy, or take cbc"):
        Mip(MipSettings(backend="highs")).solve(two())
    assert Mip(MipSettings(backend="auto")).solve(two()).solver == "mip/cbc"


DAMAGE: list[tuple[dict[str, Any], str]] = [
    ({"score": 0.9}, "score"),
    ({"totals": {"decode_ms": 2.0, "parameters": 8.0}}, "total of decode_ms 2.0 is 2.2"),
    ({"totals": {"decode_ms": 2.2}}, "totals of"),
    ({"slack": {"decode_ms": 0.5}}, "slack of decode_ms"),
    ({"bound": 2.0}, "bound 2.0 is above the score"),
    ({"bound": math.nan}, "bound nan"),
    ({"gap": 0.1}, "gap 0.1"),
    ({"proven": False}, "proven is False"),
    ({"bound": 0.0, "gap": 1.0}, "proven is True"),
    ({"seconds": -1.0}, "seconds"),
    ({"picks": {"a": "wide", "b": "wide"}}, "above"),
    ({"picks": {"a": "wide"}}, "picks for 1 slots"),
    ({"picks": {"a": "wide", "b": "none"}}, "which it has not"),
]


def two() -> Problem:
    options = (
        Option(name="wide", score=0.0, costs={"decode_ms": 1.0, "parameters": 4.0}),
        Option(name="narrow", score=0.5, costs={"decode_ms": 0.7, "parameters": 2.0}),
    )
    slots = tuple(Slot(name=n, options=options, parent="wide") for n in "ab")
    limits = (Budget(cost="decode_ms", limit=2.5),)
    return Problem(slots=slots, base={"decode_ms": 0.5, "parameters": 2.0}, budgets=limits, forced={"a": "wide"})


def test_a_solution_tells_score_totals_slack_and_proof() -> None:
    found = Mip().solve(replace(two(), budgets=(Budget(cost="decode_ms", limit=2.3),)))
    assert found.picks == {"a": "wide", "b": "narrow"}
    assert found.score == found.bound == 0.5
    assert found.totals == pytest.approx({"decode_ms": 2.2, "parameters": 8.0})
    assert found.slack == pytest.approx({"decode_ms": 0.1})
    assert (found.gap, found.proven) == (0.0, True)


@pytest.mark.parametrize(("damage", "line"), DAMAGE, ids=[line for _, line in DAMAGE])
def test_verify_refuses_damage(damage: dict[str, Any], line: str) -> None:
    problem = replace(two(), budgets=(Budget(cost="decode_ms", limit=2.3),))
    found = Exhaustive().solve(problem)
    verify(problem, found)
    with pytest.raises(BrokenPromise, match=line):
        verify(problem, replace(found, **damage))


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"forced": {"b": "wide"}}, "against what is forced or forbidden"),
        ({"forbidden": {"b": ["narrow"]}}, "against what is forced or forbidden"),
        ({"forced": {}, "tied": (("a", "b"),)}, "tied slots a, b differ"),
        ({"forced": {}, "min_changed": 2}, "1 layers equal a reference, 0 may"),
    ],
)
def test_verify_refuses_what_is_not_allowed(asked: dict[str, Any], line: str) -> None:
    found = Mip().solve(replace(two(), budgets=(Budget(cost="decode_ms", limit=2.3),)))
    with pytest.raises(BrokenPromise, match=line):
        verify(replace(two(), **asked), found)


def test_a_solver_that_lies_is_caught() -> None:
    class Liar(Solver):
        """Takes the parent, whatever it costs."""

        def search(self, problem: Problem, start: Picks | None, floor: float) -> Found:
            return Found({s.name: "wide" for s in problem.slots}, bound=0.0)

    with pytest.raises(BrokenPromise, match=r"decode_ms is 2\.5, above 2\.3"):
        Liar().solve(replace(two(), budgets=(Budget(cost="decode_ms", limit=2.3),)))


def test_counts_are_kept_exactly_and_times_up_to_rounding() -> None:
    """A limit of one parameter too few, of seven billion, is a limit; the last digit of a sum of times is not."""
    costs = {"parameters": 3_500_000_000.0, "decode_ms": 0.1}
    options = (
        Option(name="wide", score=0.0, costs=costs),
        Option(name="none", score=1.0, costs=dict.fromkeys(costs, 0.0)),
    )
    slots = tuple(Slot(name=f"s{i}", options=options) for i in range(3))
    problem = Problem(slots=slots, base=dict.fromkeys(costs, 0.0))

    def score(cost: str, limit: float) -> float:
        return Mip().solve(replace(problem, budgets=(Budget(cost=cost, limit=limit),))).score

    assert score("parameters", 10_500_000_000) == 0.0
    assert score("parameters", 10_499_999_999) == 1.0
    assert score("decode_ms", 0.3) == 0.0, "0.1 + 0.1 + 0.1 is above 0.3 in binary"
    assert score("decode_ms", 0.2999) == 1.0


def test_an_infeasible_budget_is_told_in_one_line() -> None:
    with pytest.raises(Infeasible) as caught:
        Mip().solve(replace(two(), budgets=(Budget(cost="decode_ms", limit=2.0),)))
    assert str(caught.value) == (
        "no choice keeps decode_ms <= 2 (least reachable 2.2, most of it a 'wide' 1, b 'narrow' 0.7); loosen the "
        "budget, or offer cheaper options; nearest that can be kept: decode_ms <= 2.2 (+10.00%)"
    )
    assert caught.value.binding == ("decode_ms",)
    assert caught.value.least == caught.value.nearest == pytest.approx({"decode_ms": 2.2})


def test_budgets_that_cannot_hold_together_are_told_with_what_can() -> None:
    """Fast or small, not both: three budgets, of which the third has no part in it."""
    costs = {"fast": (1.0, 9.0), "small": (9.0, 1.0), "middle": (6.0, 6.0)}
    options = tuple(
        Option(name=n, score=0.0, costs={"decode_ms": d, "weights_mib": w, "kv_mib": 1.0})
        for n, (d, w) in costs.items()
    )
    limits = {"kv_mib": 5.0, "decode_ms": 5.0, "weights_mib": 5.0}
    problem = Problem(
        slots=(Slot(name="s", options=options),), base=dict.fromkeys(limits, 0.0),
        budgets=tuple(Budget(cost=c, limit=v) for c, v in limits.items()),
    )  # fmt: skip
    for solver in (Mip(), Exhaustive(), Greedy(), Lagrangian()):
        with pytest.raises(Infeasible) as caught:
            solver.solve(problem)
        assert caught.value.binding == ("decode_ms", "weights_mib")
        assert caught.value.least == {"decode_ms": 9.0, "weights_mib": 9.0}
        assert caught.value.nearest == {"kv_mib": 5.0, "decode_ms": 6.0, "weights_mib": 6.0}
        assert "no choice keeps decode_ms <= 5 and weights_mib <= 5 together" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_must_differ_is_named_where_it_is_the_cause() -> None:
    with pytest.raises(Infeasible, match="without the layers that must differ there is a choice"):
        Mip().solve(
            replace(
                two(),
                budgets=(Budget(cost="parameters", limit=8.0),),
                unlike=({"a": "wide", "b": "narrow"},),
                alpha=0.5,
            )
        )
    earlier = tuple({"a": "wide", "b": b} for b in ("wide", "narrow"))
    with pytest.raises(Infeasible, match="no choice differs in as many layers as asked"):
        Mip().solve(replace(two(), budgets=(), unlike=earlier, alpha=0.5))


def test_prices_are_the_slope_of_the_relaxation() -> None:
    """One cost, options on a line: a unit of room is worth what the line falls."""
    options = tuple(Option(name=f"o{i}", score=2.0 * i, costs={"decode_ms": 10.0 - i}) for i in range(5))
    problem = Problem(
        slots=tuple(Slot(name=f"s{i}", options=options) for i in range(4)), base={"decode_ms": 3.0},
        budgets=(Budget(cost="decode_ms", limit=33.0),),
    )  # fmt: skip
    found = Mip().solve(problem)
    assert found.score == 20.0
    assert found.prices == pytest.approx({"decode_ms": 2.0}, rel=1e-5)
    assert Lagrangian().solve(problem).prices == found.prices
    assert Mip(MipSettings(reduce=False)).solve(problem).prices == Greedy().solve(problem).prices == {}


def test_the_dual_is_the_bound_of_the_linear_relaxation() -> None:
    """Beside CBC on the relaxation itself: HiGHS or CBC without integers."""
    import pulp

    table = tabulate(hard(12, 5))
    relaxed = pulp.LpProblem("relaxed")
    x = [[relaxed.add_variable(f"x{g}_{j}", 0, 1) for j in range(5)] for g in range(12)]
    relaxed.setObjective(pulp.lpSum(float(table.score[g, j]) * x[g][j] for g in range(12) for j in range(5)))
    for row in x:
        relaxed.addConstraint(pulp.lpSum(row) == 1)
    for costs, room in zip(table.costs, table.room, strict=True):
        relaxed.addConstraint(pulp.lpSum(float(costs[g, j]) * x[g][j] for g in range(12) for j in range(5)) <= room)
    relaxed.solve(backends._cbc(msg=False))
    exact = pulp.value(relaxed.objective)
    assert maximise(table).bound == pytest.approx(exact, rel=1e-5)
    assert maximise(table).bound <= exact + 1e-7


@pytest.mark.parametrize("name", registry.names("solvers"))
def test_every_solver_is_a_plug_in_with_a_card_and_described_settings(name: str) -> None:
    own = registry.load("solvers", name, Solver)
    assert issubclass(own.Settings, Settings)
    assert all(field.description for field in own.Settings.model_fields.values())
    card = importlib.import_module(own.__module__).__doc__ or ""
    assert [w for w in ("Formula", "Paper", "Gives", "Cost") if f"\n{w}: " not in card] == []
    assert own().name.startswith(name)


def test_solutions_are_the_same_again() -> None:
    first, second = (Mip().solve(hard(8, 4)) for _ in range(2))
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)
    assert isinstance(first, Solution)
