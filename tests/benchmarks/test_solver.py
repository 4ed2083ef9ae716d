"""The solver benchmark's own parts: its instances are what it says they are, and its pages count rightly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.solver import report, run
from benchmarks.solver.instances import BUDGETS, SHAPES, Shape, problem
from solvers import COSTS
from solvers.greedy import Greedy
from solvers.mip import Mip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_instances_have_the_size_of_their_name_and_the_parent_scores_zero(shape: Shape) -> None:
    made = problem(shape, 0, 1)
    assert shape.name == f"{len(made.slots)} x {len(made.slots[0].options)}"
    assert made.tied
    for slot in made.slots:
        parent = next(o for o in slot.options if o.name == slot.parent)
        assert parent.score == 0
        assert min(o.score for o in slot.options) == 0
        assert all(set(o.costs) == set(COSTS) for o in slot.options)
    assert made == problem(shape, 0, 1), "a seed is a problem"
    assert made != problem(shape, 1, 1)


def test_costs_are_those_of_shapes_and_scores_follow_them() -> None:
    made = problem(SHAPES[0], 0, 1)
    first, last = (slot.options for slot in (made.slots[0], made.slots[-1]))
    assert [o.costs for o in first] == [o.costs for o in last]
    assert [o.score for o in first] != [o.score for o in last]
    by_cost = sorted(first, key=lambda o: o.costs["parameters"])
    cheap, dear = (sum(o.score for o in part) for part in (by_cost[:27], by_cost[27:]))
    assert cheap > dear, "what removes more does more damage"


def test_every_budget_binds() -> None:
    made = problem(SHAPES[0], 0, 3)
    assert [b.cost for b in made.budgets] == list(BUDGETS)
    full = Mip().solve(made)
    assert full.proven
    for i in (1, 2):
        looser = problem(SHAPES[0], 0, i)
        assert Mip().solve(looser).score <= full.score
        assert Greedy().solve(looser).totals[made.budgets[i].cost] > made.budgets[i].limit


def test_the_quick_run_has_every_size_and_solver() -> None:
    cells = list(run.cells(True, ["cbc"]))
    assert len({c.key for c in cells}) == len(cells)
    assert {c.shape.name for c in cells} == {s.name for s in SHAPES}
    assert {c.way for c in cells} == {"cbc", "greedy", "lagrangian", "front", "diverse"}
    assert {c.way for c in run.cells(False, ["cbc"])} == {"plain-cbc", "hard:cbc"} | {c.way for c in cells}


@pytest.mark.parametrize("way", ["cbc", "greedy", "lagrangian", "plain-cbc", "hard:cbc", "front", "diverse"])
def test_every_way_runs_on_the_smallest_size(way: str) -> None:
    row = run.run(run.Cell(SHAPES[0], 2, 0, way))
    assert row["processor"] > 0
    assert row["proven"] or way in ("greedy", "lagrangian")


def test_the_page_tells_what_was_proven_and_how_far_the_baselines_are(tmp_path: Path) -> None:
    def row(way: str, seed: int, **told: Any) -> dict[str, Any]:
        same = {"shape": "80 x 54", "budgets": 2, "seed": seed, "way": way, "seconds": 0.5, "processor": 0.25}
        return {**same, "proven": False, **told}

    rows = [
        row("cbc", 0, score=1.0, bound=1.0, proven=True),
        row("cbc", 1, score=2.0, bound=1.9, seconds=2.0, processor=1.5),
        row("greedy", 0, score=1.1, bound=0.0),
        row("lagrangian", 0, score=1.05, bound=0.9),
        row("front", 0, points=3, scores=[1.0, 2.0, 3.0], proven=True),
        row("plain-cbc", 0, score=1.0, bound=0.5, gap=0.5),
    ]
    page = report.render({"threads": 1}, {str(i): r for i, r in enumerate(rows)})
    assert "| 80 x 54 | 2 | 1 of 2 | 0.88 (1.25) … 1.50 (2.00) | < 1 s: missed |" in page
    assert "| 10.00 … 10.00 % | 5.00 … 5.00 % | 10.00 … 10.00 % |" in page
    assert "| 80 x 54 | 2 | front | 3 | yes | 0.25 (0.50) | 1.0000 … 3.0000 |" in page
    assert "| 80 x 54 | 2 | 0 | plain-cbc | no | 5.00e-01 | 0.25 (0.50) |" in page
