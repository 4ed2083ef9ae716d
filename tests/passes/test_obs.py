"""The surgeon's sweep and the exact update against closed forms, brute force and float64, on matrices that fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from passes._masks import Pattern, Rule, Scope
from passes._obs import Choice, damped, error, inverse_factor, refit, sweep, towards


def problem(seed: int = 0, rows: int = 6, columns: int = 16, tokens: int = 64) -> tuple[Tensor, Tensor]:
    """A weight and the damped products of dependent inputs."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=random) @ torch.randn(columns, columns, generator=random)
    return torch.randn(rows, columns, generator=random), damped(x.T @ x / tokens, 0.01)


def factor(hessian: Tensor) -> Tensor:
    upper = inverse_factor(hessian)
    assert upper is not None
    return upper


def half(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def fixed(mask: Tensor) -> Any:
    return lambda at, score: mask[:, at : at + score.shape[1]]


def choose(weight: Tensor, pattern: str = "unstructured", sparsity: float = 0.5, block: int = 8, **rest: Any) -> Choice:
    parsed = Pattern.parse(pattern)
    rule = Rule(pattern=parsed, sparsity=sparsity if parsed.sparsity is None else parsed.sparsity, **rest)
    return Choice(rule, torch.ones_like(weight, dtype=torch.bool), block)


def exact(mask: Tensor, target: Tensor, hessian: Tensor) -> Tensor:
    """The oracle: solve each row on its mask, in float64."""
    found = torch.zeros_like(target, dtype=torch.float64)
    h, t = hessian.double(), target.double()
    for row, kept in enumerate(mask):
        found[row, kept] = torch.linalg.solve(h[kept][:, kept], (h @ t[row])[kept])
    return found


def test_the_factor_is_that_of_the_inverse() -> None:
    hessian = problem()[1]
    upper = factor(hessian)
    assert upper.equal(upper.triu())
    torch.testing.assert_close(upper.T @ upper @ hessian, torch.eye(16), atol=2e-3, rtol=0)


def test_damping_is_a_share_of_the_mean_over_live_inputs() -> None:
    gram = torch.diag(torch.tensor([0.0, 1.0, 3.0]))
    assert damped(gram, 0.1).diagonal().tolist() == pytest.approx([1.2, 1.2, 3.2])
    assert damped(torch.zeros(2, 2), 0.5).tolist() == [[1.5, 0], [0, 1.5]]


def test_a_matrix_that_is_not_positive_has_no_factor() -> None:
    assert inverse_factor(torch.ones(3, 3)) is None
    assert inverse_factor(damped(torch.ones(3, 3), 0.01)) is not None


def test_the_first_column_alone_is_pruned_as_the_closed_form_says() -> None:
    """`w - w_q / [H^-1]_qq * H^-1_q`: with every weight free to answer, the sweep is the exact surgeon."""
    weight, hessian = problem()
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[:, 0] = False
    new, _ = sweep(weight, factor(hessian), fixed(mask), 4, 16)
    inverse = hessian.double().inverse()
    expected = weight - torch.outer(weight[:, 0] / inverse[0, 0], inverse[0])
    torch.testing.assert_close(new, expected.float(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(new.double(), exact(mask, weight, hessian), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("block", [1, 16, 128])
def test_blocks_do_not_matter_for_a_fixed_mask(block: int) -> None:
    weight, hessian = problem(columns=40)
    mask, upper = half((6, 40)), factor(hessian)
    new, same = sweep(weight, upper, fixed(mask), 1, block)
    work = weight.double().clone()  # column by column, as the formula is written
    for j, c in enumerate(upper.double()):
        rest = torch.where(mask[:, j], 0.0, work[:, j])
        work -= torch.outer(rest / c[j], c)
    assert same.equal(mask)
    assert (new[~mask] == 0).all()
    torch.testing.assert_close(new.double()[mask], work[mask], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "5:8"])
def test_groups_are_chosen_from_the_values_of_the_moment(pattern: str) -> None:
    weight, hessian = problem()
    upper, keep, group = factor(hessian), *map(int, pattern.split(":"))
    choice = choose(weight, pattern)
    _, mask = sweep(weight, upper, choice, choice.stride, 16)
    work = weight.clone()
    for j in range(16):
        if j % group == 0:
            score = work[:, j : j + group] ** 2 / upper.diagonal()[j : j + group] ** 2
            top = score.argsort(dim=1)[:, group - keep :]
            expected = torch.zeros(6, group, dtype=torch.bool).scatter_(1, top, True)
            assert mask[:, j : j + group].equal(expected)
        work -= torch.outer(torch.where(mask[:, j], 0.0, work[:, j]) / upper[j, j], upper[j])


def test_equal_independent_inputs_reduce_it_to_magnitude() -> None:
    weight = problem(columns=32)[0]
    choice = choose(weight)
    new, mask = sweep(weight, factor(3 * torch.eye(32)), choice, 8, 16)
    for at in range(0, 32, 8):
        part = weight[:, at : at + 8].abs()
        assert mask[:, at : at + 8].equal(part > part.flatten().sort().values[23])
    assert new.equal(weight.masked_fill(~mask, 0))


def test_the_update_lies_between_zeroing_and_least_squares() -> None:
    better = 0
    for seed in range(20):
        weight, hessian = problem(seed)
        choice = choose(weight)
        new, mask = sweep(weight, factor(hessian), choice, 8, 8)
        swept, zeroed = (error(w, weight, hessian).sum() for w in (new, weight.masked_fill(~mask, 0)))
        best = error(exact(mask, weight, hessian), weight, hessian).sum()
        assert swept >= best * (1 - 1e-6)
        better += int(swept < zeroed)
    assert better >= 18


@st.composite
def asked(draw: st.DrawFn) -> tuple[Choice, Tensor]:
    rows, columns = draw(st.integers(1, 5)), 4 * draw(st.integers(1, 6))
    cells = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    pattern = Pattern.parse(draw(st.sampled_from(["unstructured", "2:4", "1:4"])))
    sparsity = pattern.sparsity if pattern.sparsity is not None else draw(st.floats(0, 0.99))
    scope: Scope = "row" if not pattern.group and draw(st.booleans()) else "matrix"
    rule = Rule(pattern=pattern, sparsity=sparsity, scope=scope)
    before = torch.tensor(cells).view(rows, columns)
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return Choice(rule, before, draw(st.sampled_from([1, 4, 7, 100]))), torch.randn(rows, columns, generator=random)


@given(asked())
@settings(max_examples=150, deadline=None)
def test_counts_are_those_of_the_rule_whatever_an_earlier_mask_left(given: tuple[Choice, Tensor]) -> None:
    choice, weight = given
    block = choice.stride if not choice.rule.pattern.group else 4
    old = choice.before
    _, mask = sweep(weight.masked_fill(~old, 0), torch.eye(weight.shape[1]), choice, choice.stride, block)
    choice.rule.check({"x": old}, {"x": mask})


def test_zeros_are_dealt_out_evenly_over_blocks() -> None:
    weight = torch.arange(1.0, 65.0).view(2, 32)  # the first columns would all go
    _, mask = sweep(weight, torch.eye(32), choose(weight), 8, 8)
    assert mask.view(2, 4, 8).sum((0, 2)).tolist() == [8, 8, 8, 8]


@pytest.mark.parametrize("start", ["zeros", "swept"])
def test_refit_is_least_squares_row_by_row(start: str) -> None:
    weight, hessian = problem(columns=24, tokens=30)
    mask = half((6, 24), 1)
    mask[3], mask[4] = False, True
    first = torch.zeros_like(weight)
    if start == "swept":
        first, _ = sweep(weight, factor(hessian), fixed(mask), 1, 8)
    new = refit(first, mask, weight, hessian, residual=1e-6, limit=500)
    assert (new[~mask] == 0).all()
    assert (error(new, weight, hessian) <= error(first * mask, weight, hessian)).all()
    best = error(exact(mask, weight, hessian), weight, hessian)
    torch.testing.assert_close(error(new, weight, hessian), best, rtol=1e-4, atol=1e-6)
    soon, before = (error(w, weight, hessian).sum() for w in (refit(first, mask, weight, hessian), first * mask))
    assert soon - best.sum() < (0.01 if start == "swept" else 0.1) * (before - best.sum())
    torch.testing.assert_close(new.double(), exact(mask, weight, hessian), rtol=5e-3, atol=5e-3)


def test_refit_keeps_what_is_best_already() -> None:
    weight, hessian = problem()
    mask = half((6, 16))
    best = exact(mask, weight, hessian).float()
    again = refit(best, mask, weight, hessian, limit=3)
    assert (error(again, weight, hessian) <= error(best, weight, hessian)).all()
    assert refit(weight, torch.ones_like(mask), weight, hessian).equal(weight)


def test_towards_is_least_squares_against_the_dense_outputs() -> None:
    random = torch.Generator().manual_seed(3)
    dense = torch.randn(50, 8, generator=random)
    now = dense + 0.3 * torch.randn(50, 8, generator=random)
    weight = torch.randn(4, 8, generator=random)
    gram, cross = now.T @ now / 50, dense.T @ now / 50
    hessian = damped(gram, 0.01)
    penalty = float(hessian[0, 0] - gram[0, 0]) ** 0.5
    rows = torch.cat([now / 50**0.5, penalty * torch.eye(8)]).double()
    values = torch.cat([dense @ weight.T / 50**0.5, penalty * weight.T]).double()
    expected = torch.linalg.lstsq(rows, values).solution.T
    found = towards(weight, gram, cross, factor(hessian))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(towards(weight, gram, gram, factor(hessian)), weight)
