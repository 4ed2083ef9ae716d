"""Bad problems: one clear line for each fault, all of them at once, nothing dropped."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from compress.errors import UserFault
from solvers import BadProblem, Budget, Option, Problem, Slot

COSTS = {"decode_ms": 1.0, "weights_mib": 2.0}


def option(name: str = "wide", score: Any = 0.0, **costs: Any) -> Option:
    return Option(name=name, score=score, costs=COSTS | costs)


def slot(name: str = "ffn", *options: Option, **more: Any) -> Slot:
    return Slot(name=name, options=options or (option(), option("narrow", 0.5, decode_ms=0.5)), **more)


def problem(*slots: Slot, **more: Any) -> Problem:
    return Problem(slots=slots or (slot(),), base=more.pop("base", COSTS), **more)


TWO = (slot("a", parent="wide"), slot("b", parent="wide"))
LACKS = Option(name="lacks", score=0.1, costs={"decode_ms": 1.0})
BAD: list[tuple[dict[str, Any], str]] = [
    ({"slots": ()}, "slots: a problem needs at least one"),
    ({"slots": (Slot(name="ffn", options=()),)}, "slot 'ffn' has no options; offer at least the parent's block"),
    ({"slots": (slot(), slot())}, "slot 'ffn' is there 2 times"),
    ({"slots": (slot("ffn", option(), option()),)}, "slot 'ffn': option 'wide' is there 2 times"),
    ({"slots": (slot(parent="wyde"),)}, "its parent 'wyde' is none of its options; did you mean 'wide'?"),
    ({"slots": (slot("ffn", option(score=math.nan)),)}, "slot 'ffn', option 'wide': its score is nan; score it again"),
    ({"slots": (slot("ffn", option(score=None)),)}, "its score is None"),
    ({"slots": (slot("ffn", option(decode_ms=math.inf)),)}, "decode_ms is inf, not a number >= 0; measure it again"),
    ({"slots": (slot("ffn", option(decode_ms=-0.1)),)}, "decode_ms is -0.1, not a number >= 0"),
    ({"slots": (slot("ffn", option(decode_ms="3 ms")),)}, "decode_ms is '3 ms', not a number"),
    ({"slots": (slot("ffn", option(decode_s=1.0)),)}, "unknown cost 'decode_s'; did you mean 'decode_ms'?"),
    (
        {"slots": (slot("ffn", option(), LACKS),)},
        "slot 'ffn', option 'lacks': no weights_mib, which other options have",
    ),
    ({"base": {"decode_ms": 1.0}}, "base: no weights_mib, which options have"),
    ({"base": COSTS | {"kv_mib": 1.0}}, "base: kv_mib is a cost that no option has"),
    ({"base": COSTS | {"decode_ms": math.nan}}, "base: decode_ms is nan"),
    (
        {"budgets": (Budget(cost="decode", limit=1.0),)},
        "budget 'decode': unknown cost 'decode'; did you mean 'decode_ms'",
    ),
    (
        {"budgets": (Budget(cost="prefill_ms", limit=1.0),)},
        "prefill_ms was not measured; costs here: decode_ms, weights",
    ),
    ({"budgets": (Budget(cost="memory_mib", limit=1.0),)}, "budget 'memory_mib': kv_mib was not measured"),
    ({"budgets": (Budget(cost="decode_ms", limit=math.nan),)}, "its limit is nan, not a number >= 0"),
    ({"budgets": (Budget(cost="decode_ms", limit=-1.0),)}, "its limit is -1.0"),
    ({"budgets": (Budget(cost="decode_ms", limit=1.0),) * 2}, "budget 'decode_ms' is there 2 times; keep the tightest"),
    ({"forced": {"fn": "wide"}}, "forced 'fn': unknown slot 'fn'; did you mean 'ffn'?"),
    ({"forced": {"ffn": "wyde"}}, "forced 'ffn': slot 'ffn' has no option 'wyde'; did you mean 'wide'?"),
    ({"forbidden": {"ffn": ["none"]}}, "forbidden 'ffn': slot 'ffn' has no option 'none'"),
    (
        {"forced": {"ffn": "wide"}, "forbidden": {"ffn": ["wide"]}},
        "slot 'ffn': option 'wide' is both forced and forbid",
    ),
    ({"forbidden": {"ffn": ["wide", "narrow"]}}, "'ffn': forced and forbidden options leave none"),
    ({"tied": (("ffn", "fn"),)}, "tied: unknown slot 'fn'"),
    ({"slots": TWO, "tied": (("a", "b"), ("b",))}, "tied: slot 'b' is named 2 times"),
    (
        {"slots": (*TWO, slot("c", option())), "tied": (("a", "c"),)},
        "must offer the same options; not all have 'narrow'",
    ),
    (
        {"slots": TWO, "tied": (("a", "b"),), "forced": {"a": "wide", "b": "narrow"}},
        "'a', 'b', which are tied,: forced",
    ),
    ({"min_changed": 1}, "min_changed: 'ffn' must tell which option is the parent's"),
    ({"slots": TWO, "min_changed": 3}, "min_changed: must be in 0 ... 2, the number of layers, got 3"),
    (
        {"slots": TWO, "min_changed": 2, "forced": {"a": "wide"}},
        "at most 0 of 2 layers may equal the parent, but 1 have",
    ),
    ({"alpha": 1.5}, "alpha: must be in 0 ... 1, got 1.5"),
    ({"slots": TWO, "unlike": ({"a": "wide"},)}, "earlier solution 1: no pick for 'b'; it is another problem's"),
    ({"unlike": ({"ffn": "wyde"},)}, "earlier solution 1: slot 'ffn' has no option 'wyde'"),
    (
        {"slots": (slot("a", option()), slot("b", option())), "unlike": ({"a": "wide", "b": "wide"},), "alpha": 0.5},
        "at most 1 of 2 layers may equal earlier solution 1, but 2 have no other option; raise alpha",
    ),
]


@pytest.mark.parametrize(("changes", "line"), BAD, ids=[line[:40] for _, line in BAD])
def test_bad_problems_are_told_in_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(BadProblem) as caught:
        replace(problem(), **changes)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserFault)


def test_all_faults_come_at_once_and_are_counted() -> None:
    options = tuple(option(f"o{i}", score=math.nan) for i in range(30))
    with pytest.raises(BadProblem) as caught:
        problem(slot("ffn", *options), budgets=(Budget(cost="bytes", limit=1.0),), alpha=-1.0)
    assert len(caught.value.faults) == 32
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 12 more of the kind"


def test_a_throughput_needs_tokens() -> None:
    with pytest.raises(BadProblem, match="throughput: tokens a second, generated tokens and batch must be > 0, got 0"):
        Budget.throughput(0, generated=1, batch=1)


def test_a_named_budget_may_stand_beside_another_on_the_same_cost() -> None:
    both = (Budget(cost="decode_ms", limit=3.0), Budget(cost="decode_ms", limit=2.5, name="tighter"))
    assert [b.title for b in problem(budgets=both).budgets] == ["decode_ms", "tighter"]
