"""Swaps against brute force: the best one of every row, never a larger error, counts and groups as they were."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from passes._obs import error
from passes._swaps import best, swaps

ROWS, COLUMNS = 4, 8


def problem(seed: int, group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight, a mask that keeps half of each group, products of dependent inputs, and what may be kept."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(40, COLUMNS, generator=random) @ torch.randn(COLUMNS, COLUMNS, generator=random)
    ranks = torch.rand(ROWS, COLUMNS // group, group, generator=random).argsort(2)
    allowed = torch.rand(ROWS, COLUMNS, generator=random) < 0.9
    mask = (ranks < group // 2).view(ROWS, COLUMNS) & allowed
    return torch.randn(ROWS, COLUMNS, generator=random), mask, x.T @ x / 40, allowed


def every(
    row: int, weight: Tensor, mask: Tensor, target: Tensor, hessian: Tensor, allowed: Tensor, free: bool, group: int
) -> dict[tuple[int, int], float]:
    """The oracle: the error after each swap of a row, done and measured."""
    found = {}
    for out, back in itertools.product(range(COLUMNS), repeat=2):
        if not mask[row, out] or mask[row, back] or not allowed[row, back] or out // group != back // group:
            continue
        moved = weight[row].double().clone()
        moved[out] = 0
        lacks = target[row].double() - moved
        moved[back] = (lacks @ hessian.double())[back] / hessian[back, back] if free else target[row, back].double()
        found[out, back] = float(error(moved[None], target[row][None], hessian))
    return found


@pytest.mark.parametrize("free", [False, True], ids=["old values", "best values"])
@pytest.mark.parametrize("group", [COLUMNS, 4])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_each_step_is_the_best_of_all_swaps(seed: int, group: int, free: bool) -> None:
    target, mask, hessian, allowed = problem(seed, group)
    weight = target.masked_fill(~mask, 0)
    values = None if free else target
    gain, out, back, value = best(weight, mask, target - weight, hessian, allowed, values, group)
    before = error(weight, target, hessian)
    for row in range(ROWS):
        oracle = every(row, weight, mask, target, hessian, allowed, free, group)
        if not oracle:
            assert gain[row] == -torch.inf
            continue
        least = min(oracle.values())
        assert float(before[row] - gain[row]) == pytest.approx(least, rel=1e-3, abs=1e-3)
        assert oracle[int(out[row]), int(back[row])] == pytest.approx(least, rel=1e-3, abs=1e-3)
        done = weight[row].clone()
        done[out[row]], done[back[row]] = 0, value[row]
        assert float(error(done[None], target[row][None], hessian)) == pytest.approx(least, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("free", [False, True], ids=["old values", "best values"])
@pytest.mark.parametrize("group", [0, 4])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_swaps_end_where_no_swap_helps(seed: int, group: int, free: bool) -> None:
    target, mask, hessian, allowed = problem(seed, group or COLUMNS)
    weight = target.masked_fill(~mask, 0)
    values = None if free else target
    new, kept = swaps(weight, mask, target, hessian, allowed=allowed, values=values, group=group)
    size = group or COLUMNS
    assert kept.view(-1, size).sum(1).equal(mask.view(-1, size).sum(1))
    assert not (kept & ~allowed).any()
    assert (new[~kept] == 0).all()
    if not free:
        assert new.equal(target.masked_fill(~kept, 0))
    old, now = error(weight, target, hessian), error(new, target, hessian)
    assert (now <= old * (1 + 1e-6)).all()
    for row in range(ROWS):
        oracle = every(row, new, kept, target, hessian, allowed, free, size)
        assert not oracle or min(oracle.values()) >= float(now[row]) * (1 - 1e-3)


def test_cycles_bound_the_swaps_of_a_row() -> None:
    target, mask, hessian, _ = problem(1, COLUMNS)
    weight, anything = target.masked_fill(~mask, 0), torch.ones_like(mask)
    once = swaps(weight, mask, target, hessian, allowed=anything, values=target, cycles=1)[1]
    assert ((once != mask).sum(1) <= 2).all()
    assert (once != mask).any()


def test_chunks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    target, mask, hessian, allowed = problem(5, COLUMNS)
    weight = target.masked_fill(~mask, 0)
    whole = swaps(weight, mask, target, hessian, allowed=allowed)
    monkeypatch.setattr("passes._swaps._CELLS", 1)
    assert swaps(weight, mask, target, hessian, allowed=allowed)[1].equal(whole[1])
