"""Densities of blocks: outliers counted by hand, means that are exact, limits that hold."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import BrokenPromise
from passes._densities import check, outlier_share, rounded, spread
from passes._masks import Pattern, Rule


def test_outliers_are_counted_over_the_whole_block() -> None:
    scores = [torch.tensor([[1.0, 1.0], [1.0, 9.0]]), torch.tensor([[1.0, 5.0]])]  # mean 3
    assert outlier_share(scores, 2.0) == pytest.approx(1 / 6)
    assert outlier_share(scores, 1.5) == pytest.approx(2 / 6)
    assert outlier_share([torch.zeros(2, 2)], 5.0) == 0


def test_densities_lie_on_a_line_from_the_least_to_the_most_outliers() -> None:
    found = spread([0.01, 0.02, 0.03], [10, 10, 10], 0.7, 0.08)
    assert found == pytest.approx([0.78, 0.70, 0.62])
    assert spread([0.5, 0.5], [3, 4], 0.6, 0.08) == pytest.approx([0.6, 0.6])
    assert spread([0.0, 1.0], [30, 10], 0.5, 0.1) == pytest.approx([0.55, 0.35])  # the mean is over weights


def test_densities_stop_at_one_and_the_others_make_up_for_it() -> None:
    found = spread([0.0, 0.5, 1.0], [1, 1, 1], 0.05, 0.2)
    assert found[2] == pytest.approx(0)
    assert sum(found) == pytest.approx(0.15)
    assert found[0] > found[1] >= 0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**9)), min_size=1, max_size=12),
    st.floats(0, 0.999),
    st.floats(0.001, 0.499),
)
@settings(deadline=None)
def test_the_mean_is_what_was_asked_for(blocks: list[tuple[float, int]], sparsity: float, width: float) -> None:
    shares, sizes = [list(part) for part in zip(*blocks, strict=True)]
    found = spread(shares, sizes, sparsity, width)
    assert all(0 <= s < 1 for s in found)
    mean = sum(s * n for s, n in zip(found, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(sparsity, abs=1e-9)
    by_share = [s for _, s in sorted(zip(shares, found, strict=True), reverse=True)]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(by_share))
    assert max(found) - min(found) <= 2 * width + 1e-9


@pytest.mark.parametrize("by_row", [True, False])
def test_rounding_is_handed_on(by_row: bool) -> None:
    shapes = {str(i): (10, 16) for i in range(7)}
    found = rounded(dict.fromkeys(shapes, 0.53), shapes, by_row=by_row)
    size = 16 if by_row else 160
    assert all(s * size == pytest.approx(round(s * size)) for s in found.values())
    assert abs(sum(160 * s for s in found.values()) - 0.53 * 1120) <= (5 if by_row else 0.5)


def test_the_check_sees_rows_that_differ_and_a_wrong_mean() -> None:
    rule = Rule(pattern=Pattern(), sparsity=0.5, scope="row")
    mask = torch.arange(16).view(2, 8) % 2 == 0
    check(rule, {}, {"a": mask})
    uneven = mask.clone()
    uneven[0, 0] = False
    with pytest.raises(BrokenPromise, match="1 of 2 counts"):
        check(rule, {}, {"a": uneven})
    with pytest.raises(BrokenPromise, match="all linears together lost 4 weights where 8"):
        check(rule, {}, {"a": torch.arange(16).view(2, 8) % 4 != 0})
    with pytest.raises(BrokenPromise, match="came back"):
        check(rule, {"a": ~mask}, {"a": mask})
