"""Masks against brute force on matrices that fit in the head, and exact counts on any matrix."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from compress.errors import BadModel, BadSettings, BrokenPromise
from compress.facts import Facts, MaskFact
from passes._masks import (
    MaskSettings,
    Pattern,
    Rule,
    apply_,
    fact,
    keep_n_of_m,
    keep_top,
    keep_top_of_all,
    same_bits,
    sparsity_of,
)

# Few distinct values, so that ties are the rule and not the exception.
values = st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, 3.0])


@st.composite
def matrices(draw: st.DrawFn, group: int = 1) -> Tensor:
    rows, columns = draw(st.integers(1, 5)), group * draw(st.integers(1, 6))
    numbers = draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(numbers).view(rows, columns)


def lowest(numbers: list[float], count: int) -> set[int]:
    """The oracle: sort by (score, position)."""
    return {i for _, i in sorted((n, i) for i, n in enumerate(numbers))[:count]}


def brute(rows: Tensor, count: int) -> Tensor:
    pruned = [lowest(row.tolist(), count) for row in rows]
    return torch.tensor([[i not in out for i in range(rows.shape[1])] for out in pruned])


def test_matrix_prunes_the_lowest_of_all() -> None:
    score = torch.tensor([[4.0, 1.0, 3.0, 2.0], [8.0, 7.0, 6.0, 5.0]])
    assert keep_top(score, 0.5).int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_row_prunes_the_lowest_of_each_row() -> None:
    score = torch.tensor([[4.0, 1.0, 3.0, 2.0], [8.0, 7.0, 6.0, 5.0]])
    assert keep_top(score, 0.5, "row").int().tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]


def test_n_of_m_keeps_the_highest_of_each_group() -> None:
    score = torch.tensor([[4.0, 1.0, 3.0, 2.0, 0.0, 9.0, 8.0, 7.0]])
    assert keep_n_of_m(score, 2, 4).int().tolist() == [[1, 0, 1, 0, 0, 1, 1, 0]]
    assert keep_n_of_m(score, 1, 4).int().tolist() == [[1, 0, 0, 0, 0, 1, 0, 0]]
    assert keep_n_of_m(score, 3, 4).int().tolist() == [[1, 0, 1, 1, 0, 1, 1, 1]]


def test_groups_run_along_inputs() -> None:
    score = torch.arange(16.0).view(4, 4)  # along outputs the last two rows would stay
    assert keep_n_of_m(score, 2, 4).int().tolist() == [[0, 0, 1, 1]] * 4


def test_ties_go_by_position_and_counts_stay_exact() -> None:
    assert keep_top(torch.ones(2, 3), 0.5).int().tolist() == [[0, 0, 0], [1, 1, 1]]
    assert keep_n_of_m(torch.ones(1, 4), 2, 4).int().tolist() == [[0, 0, 1, 1]]
    assert keep_top(torch.tensor([[0.0, -0.0, 0.0, -0.0]]), 0.5).int().tolist() == [[0, 0, 1, 1]]


def test_infinite_scores_order_like_numbers() -> None:
    inf = torch.inf
    assert keep_top(torch.tensor([[inf, -inf, 1.0, inf]]), 0.5).int().tolist() == [[1, 0, 0, 1]]
    assert keep_top(torch.full((1, 4), inf), 0.25).int().tolist() == [[0, 1, 1, 1]]


def test_nan_has_no_order() -> None:
    with pytest.raises(ValueError, match="NaN"):
        keep_top(torch.tensor([[1.0, torch.nan]]), 0.5)


@given(matrices(), st.floats(0, 0.999))
def test_matrix_equals_brute_force(score: Tensor, sparsity: float) -> None:
    count = round(sparsity * score.numel())
    mask = keep_top(score, sparsity)
    assert torch.equal(mask, brute(score.view(1, -1), count).view_as(score))
    assert abs(sparsity_of([mask]) - sparsity) <= 0.5 / score.numel() + 1e-9


@given(matrices(), st.floats(0, 0.999))
def test_row_equals_brute_force(score: Tensor, sparsity: float) -> None:
    assert torch.equal(keep_top(score, sparsity, "row"), brute(score, round(sparsity * score.shape[1])))


@given(st.data(), st.integers(2, 8))
def test_n_of_m_equals_brute_force(data: st.DataObject, m: int) -> None:
    n = data.draw(st.integers(1, m - 1))
    score = data.draw(matrices(m))
    mask = keep_n_of_m(score, n, m)
    assert torch.equal(mask.view(-1, m), brute(score.view(-1, m), m - n))
    assert (mask.view(-1, m).sum(1) == n).all()


@given(st.lists(matrices(), min_size=1, max_size=4), st.floats(0, 0.95))
def test_global_without_floors_is_one_matrix(scores: list[Tensor], sparsity: float) -> None:
    named = {str(i): s for i, s in enumerate(scores)}
    masks = keep_top_of_all(named, sparsity, dict.fromkeys(named, 0))
    pool = torch.cat([s.reshape(-1) for s in scores])
    expected = brute(pool.view(1, -1), round(sparsity * len(pool))).view(-1)
    assert torch.equal(torch.cat([masks[n].reshape(-1) for n in named]), expected)


def test_global_leaves_every_matrix_its_minimum() -> None:
    scores = {"weak": torch.arange(1.0, 11).view(2, 5), "strong": torch.arange(11.0, 21).view(2, 5)}
    rule = Rule(pattern=Pattern(), sparsity=0.5, scope="global", minimum_density=0.2)
    masks = rule.masks(scores, {})
    # Without the minimum all ten of `weak` would go; its two highest stay and two of `strong` go instead.
    assert masks["weak"].int().tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert masks["strong"].int().tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]


@given(st.lists(matrices(), min_size=1, max_size=4), st.floats(0, 0.9), st.floats(0, 0.4))
def test_global_prunes_exactly_the_total(scores: list[Tensor], sparsity: float, density: float) -> None:
    named = {str(i): s for i, s in enumerate(scores)}
    rule = Rule(pattern=Pattern(), sparsity=sparsity, scope="global", minimum_density=density)
    asked = round(sparsity * sum(s.numel() for s in scores))
    try:
        rule.plan(_facts({n: tuple(s.shape) for n, s in named.items()}), list(named))
    except BadSettings:
        assert sum(int(s.numel() * (1 - density) + 1e-6) for s in scores) < asked
        return
    masks = rule.masks(named, {})
    assert sum(int((~m).sum()) for m in masks.values()) == asked
    assert all(int(m.sum()) >= density * m.numel() - 1e-6 for m in masks.values())
    rule.check({}, masks)


def test_global_counts_what_lies_below_the_minimum_already() -> None:
    old = {"a": torch.arange(10).view(1, 10) == 9}  # one of ten is left, fewer than the two that the minimum asks for
    scores = {"a": torch.ones(1, 10), "b": torch.arange(10.0).view(1, 10)}
    rule = Rule(pattern=Pattern(), sparsity=0.6, scope="global", minimum_density=0.2)
    masks = rule.masks(scores, old)
    assert torch.equal(masks["a"], old["a"])
    assert masks["b"].int().tolist() == [[0, 0, 0] + [1] * 7]  # 9 + 3 of 20
    rule.check(old, masks)


rules = st.one_of(
    st.builds(Rule, pattern=st.just(Pattern()), sparsity=st.floats(0, 0.95), scope=st.sampled_from(["matrix", "row"])),
    st.builds(
        Rule,
        pattern=st.just(Pattern()),
        sparsity=st.floats(0, 0.5),
        scope=st.just("global"),
        minimum_density=st.floats(0, 0.1),
    ),
    st.sampled_from([Rule(pattern=Pattern(n, m), sparsity=1 - n / m) for n, m in ((2, 4), (1, 4), (3, 4), (1, 2))]),
)


@settings(max_examples=200)
@given(st.lists(matrices(4), min_size=1, max_size=3), rules, rules)
def test_a_second_mask_lies_within_the_first(scores: list[Tensor], first: Rule, second: Rule) -> None:
    named = {str(i): s for i, s in enumerate(scores)}
    old = first.masks(named, {})
    first.check({}, old)
    # Other scores the second time, so that old zeros stay zero because of their mask and not of their value.
    new = second.masks({n: -s for n, s in named.items()}, old)
    second.check(old, new)
    for name, mask in new.items():
        assert not (mask & ~old[name]).any()
        if first.pattern.group:
            assert (mask.view(-1, first.pattern.group).sum(1) <= first.pattern.keep).all()
        if second.pattern.group:
            assert (mask.view(-1, second.pattern.group).sum(1) <= second.pattern.keep).all()
    total = sum(m.numel() for m in old.values())
    was = round(sparsity_of(old.values()) * total)
    if second.scope == "global":
        assert round(sparsity_of(new.values()) * total) == max(was, round(second.sparsity * total))


def test_old_zeros_count_towards_the_sparsity() -> None:
    old = {"a": torch.tensor([[True, True, False, True]])}
    score = {"a": torch.tensor([[3.0, 1.0, 9.0, 2.0]])}
    mask = Rule(pattern=Pattern(), sparsity=0.5).masks(score, old)["a"]
    assert mask.int().tolist() == [[1, 0, 0, 1]]  # one more zero, not two


def test_a_rule_names_what_is_nan() -> None:
    with pytest.raises(BadModel, match=r"^up: a score is NaN"):
        Rule(pattern=Pattern(), sparsity=0.5).masks({"up": torch.full((2, 2), torch.nan)}, {})


def test_check_finds_each_broken_promise() -> None:
    rule = Rule(pattern=Pattern(2, 4), sparsity=0.5)
    good = torch.tensor([[True, False, True, False], [False, False, True, True]])
    rule.check({}, {"a": good})
    with pytest.raises(BrokenPromise, match="a: 1 of 2 counts"):
        rule.check({}, {"a": good | torch.tensor([[True], [False]])})
    with pytest.raises(BrokenPromise, match="came back"):
        rule.check({"a": torch.tensor([[False, False, True, True]] * 2)}, {"a": good})
    # The right number of zeros in all, but not in every row.
    with pytest.raises(BrokenPromise, match="2 of 2 counts"):
        Rule(pattern=Pattern(), sparsity=0.5, scope="row").check({}, {"a": torch.tensor([[True] * 4, [False] * 4])})
    starved = {"a": torch.zeros(1, 4, dtype=torch.bool), "b": torch.ones(1, 4, dtype=torch.bool)}
    with pytest.raises(BrokenPromise, match="minimum_density"):
        Rule(pattern=Pattern(), sparsity=0.5, scope="global", minimum_density=0.2).check({}, starved)


@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:2", "4:8", "3:16"])
def test_pattern_reads_what_it_writes(text: str) -> None:
    assert str(Pattern.parse(text)) == text


@pytest.mark.parametrize("text", ["4:2", "4:4", "0:4", "2:", "2:4:8", "", "half", "-1:4", "2.0:4", "02:4"])
def test_pattern_refuses_with_the_exact_message(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        MaskSettings(pattern=text)
    assert [e["loc"] for e in caught.value.errors()] == [("pattern",)]
    assert caught.value.errors()[0]["msg"] == f"must be 'unstructured' or N:M with N < M, got '{text}'"


def test_sparsity_comes_from_the_pattern() -> None:
    assert Rule.of(MaskSettings()).sparsity == 0.5
    assert Rule.of(MaskSettings(sparsity=0.0)).sparsity == 0.0
    assert Rule.of(MaskSettings(pattern="1:4")).sparsity == 0.75
    assert Rule.of(MaskSettings(pattern="2:4", sparsity=0.5)).sparsity == 0.5
    assert Rule.of(MaskSettings(pattern="1:3", sparsity=0.667)).pattern == Pattern(1, 3)


@pytest.mark.parametrize(
    ("given_", "scope", "key"),
    [({"pattern": "2:4", "sparsity": 0.6}, "matrix", "sparsity"), ({"pattern": "2:4"}, "global", "scope")],
)
def test_contradictions_name_their_key(given_: dict[str, Any], scope: Any, key: str) -> None:
    with pytest.raises(BadSettings) as caught:
        Rule.of(MaskSettings(**given_), scope)
    assert caught.value.key == key


@pytest.mark.parametrize("sparsity", [1.2, 1.0, -0.1])
def test_sparsity_has_a_range(sparsity: float) -> None:
    with pytest.raises(ValidationError):
        MaskSettings(sparsity=sparsity)


def _facts(shapes: dict[str, Any], **changes: Any) -> Facts:
    return Facts(
        family="llama", task="causal-lm", tied=False, shapes=shapes, biases={}, norms={}, head=None,
        parameters=1000, vocabulary=10, positions=None, layout=(), **changes,
    )  # fmt: skip


def test_plan_refuses_what_does_not_divide_by_name() -> None:
    facts = _facts({"a.q": (4, 8), "a.down": (8, 6)})
    rule = Rule(pattern=Pattern(2, 4), sparsity=0.5)
    with pytest.raises(BadSettings, match=r"2:4 does not divide the 6 inputs of a\.down") as caught:
        rule.plan(facts, ["a.q", "a.down"])
    assert caught.value.key == "pattern"
    assert rule.plan(facts, ["a.q"]).masks == {"a.q": MaskFact("2:4", 0.5)}


def test_plan_refuses_a_minimum_that_leaves_too_little() -> None:
    rule = Rule(pattern=Pattern(), sparsity=0.9, scope="global", minimum_density=0.2)
    with pytest.raises(BadSettings, match=r"leaves 32 weights to prune where sparsity 0.9 asks for 36") as caught:
        rule.plan(_facts({"a": (4, 5), "b": (2, 10)}), ["a", "b"])
    assert caught.value.key == "minimum_density"


def test_plan_refuses_a_mask_that_would_have_to_shrink() -> None:
    facts = _facts({"a": (4, 8), "b": (4, 8)}, masks={"a": MaskFact("unstructured", 0.7)})
    rule = Rule(pattern=Pattern(), sparsity=0.5)
    with pytest.raises(BadSettings, match=r"earlier passes prune 0.7") as caught:
        rule.plan(facts, ["a"])
    assert caught.value.key == "sparsity"
    assert rule.plan(facts, ["a", "b"]).masks["a"] == MaskFact("unstructured", 0.7)


Known = Literal["unstructured", "2:4", "1:4", "4:8"]


@pytest.mark.parametrize(
    ("old", "sparsity", "pattern", "new_sparsity", "told", "share"),
    [
        ("2:4", 0.5, "unstructured", 0.7, "2:4", 0.7),
        ("unstructured", 0.7, "2:4", 0.5, "2:4", 0.7),
        ("2:4", 0.5, "1:4", 0.75, "1:4", 0.75),
        ("1:4", 0.75, "2:4", 0.5, "1:4", 0.75),
        ("4:8", 0.5, "2:4", 0.5, "2:4", 0.5),
        ("2:4", 0.5, "4:8", 0.5, "2:4", 0.5),
        ("unstructured", 0.3, "unstructured", 0.5, "unstructured", 0.5),
    ],
)
def test_plan_tells_the_pattern_that_still_holds(
    old: Known, sparsity: float, pattern: Known, new_sparsity: float, told: Known, share: float
) -> None:
    facts = _facts({"a": (4, 8)}, masks={"a": MaskFact(old, sparsity)})
    rule = Rule(pattern=Pattern.parse(pattern), sparsity=new_sparsity)
    assert rule.plan(facts, ["a"]).masks["a"] == MaskFact(told, share)


def test_apply_leaves_plus_zero_and_every_other_bit() -> None:
    weight = torch.tensor([[-1.5, 2.5, -0.0, torch.inf]])
    apply_(weight, torch.tensor([[False, True, True, False]]))
    assert same_bits(weight, torch.tensor([[0.0, 2.5, -0.0, 0.0]]))


def test_same_bits_tells_minus_zero_apart_and_nan_equal() -> None:
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert same_bits(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.float16))
    assert not same_bits(torch.zeros(2), torch.zeros(3))
    assert same_bits(torch.eye(3).t(), torch.eye(3))


def test_fact_of_a_mask_is_its_sparsity() -> None:
    assert fact(torch.tensor([[True, False], [False, False]])) == MaskFact("unstructured", 0.75)
