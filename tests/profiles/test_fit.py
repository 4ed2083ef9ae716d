"""Slopes and lines against closed forms, and intervals against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from compress.measure import Phase
from profiles._fit import between, drifting, fit
from profiles._slopes import Found, plain, pooled, through


def _phase(ratio: float, half: float = 0.0, flags: tuple[str, ...] = ()) -> Phase:
    return Phase(
        ms=9.0, ratio=ratio, ratio_low=ratio - half, ratio_high=ratio + half, cpu_ms=1, wall_ms=1, wall_p10_ms=1,
        spread=0, runs=100, flags=flags,
    )  # fmt: skip


def test_two_depths_give_the_slope_and_intercept_of_the_method() -> None:
    slope, intercept = through((4, 8), [_phase(0.6, 0.02), _phase(1.0, 0.03)], 10.0)
    assert slope.ms == pytest.approx((10 - 6) / 4)
    assert intercept.ms == pytest.approx(2 * 6 - 10)
    assert slope.half == pytest.approx(10 * np.hypot(0.02, 0.03) / 4)
    assert intercept.half == pytest.approx(10 * np.hypot(2 * 0.02, 0.03))


def test_more_depths_are_least_squares() -> None:
    ratios = (0.31, 0.52, 1.1)
    slope, intercept = through((1, 2, 4), [_phase(r) for r in ratios], 3.0)
    wanted = np.polyfit((1, 2, 4), [3 * r for r in ratios], 1)
    assert (slope.ms, intercept.ms) == pytest.approx(tuple(wanted))


def test_a_negative_or_wide_slope_is_not_sound() -> None:
    negative, _ = through((4, 8), [_phase(1.0), _phase(0.9)], 1.0)
    assert negative.ms < 0
    assert not negative.sound
    wide, _ = through((4, 8), [_phase(1.0, 0.2), _phase(1.1, 0.2)], 1.0)
    assert wide.ms > 0
    assert not wide.sound
    assert through((4, 8), [_phase(1.0, 0.01), _phase(2.0, 0.01)], 1.0)[0].sound
    assert plain(_phase(0.5, 0.1, ("shared: x", "noisy: y")), 4.0).flags == ("shared: x",)


def test_a_line_is_found_again_and_minimises_relative_errors() -> None:
    sums = np.array([1.0, 2.0, 3.0, 5.0, 8.0, 13.0])
    line = fit(list(sums), list(0.4 + 1.3 * sums))
    assert (line.intercept, line.slope) == pytest.approx((0.4, 1.3))
    assert line.residual == pytest.approx(0, abs=1e-9)
    measured = (0.4 + 1.3 * sums) * (1 + 0.05 * np.array([1, -1, 1, 1, -1, -1]))
    found = fit(list(sums), list(measured))

    def loss(a: float, b: float) -> float:
        return float((((measured - a - b * sums) / measured) ** 2).sum())

    best = loss(found.intercept, found.slope)
    assert all(loss(found.intercept + da, found.slope + db) > best for da in (-0.01, 0, 0.01) for db in (-0.01, 0.01))
    middle = between(line, fit(list(sums), list(0.8 + 1.5 * sums)), 0.25)
    assert (middle.intercept, middle.slope) == pytest.approx((0.5, 1.35))


def test_attempts_are_pooled_by_their_runs() -> None:
    first, second = Found(1.0, 0.3, 10, ("a",)), Found(2.0, 0.1, 30, ("a", "b"))
    found = pooled(first, second)
    assert (found.ms, found.runs, found.flags) == (1.75, 40, ("a", "b"))
    assert found.half == pytest.approx((0.075**2 + 0.075**2) ** 0.5)
    assert pooled(second, first).ms == found.ms
    assert not first.sound
    assert pooled(first, Found(1.0, 0.3, 10)).sound  # ± 0.21


def test_weights_read_from_memory_are_charged_by_the_mib_unless_memory_is_as_fast_as_the_cache() -> None:
    sums, weights = np.array([1.0, 1.5, 2.0, 2.2, 3.0, 4.0]), np.array([20.0, 50.0, 30.0, 90.0, 40.0, 60.0])
    line = fit(list(sums), list(0.4 + sums + 0.05 * weights), weights=list(weights))
    assert (line.intercept, line.slope, line.per_mib) == pytest.approx((0.4, 1.0, 0.05))
    assert line.at(2.5, 10.0) == pytest.approx(3.4)
    assert line.of(2.5, 10.0) == pytest.approx(3.0)
    noise = np.random.default_rng(0).normal(0, 0.02, 6)
    noisy = fit(list(sums), list((0.4 + sums + 0.05 * weights) * (1 + noise)), weights=list(weights))
    assert noisy.margin(2.0, 0.0, 300.0) > noisy.margin(2.0, 0.0, 50.0) > 0  # far from what was fitted

    faster = list(0.4 + sums - 0.001 * weights)
    assert fit(list(sums), faster, weights=list(weights)).per_mib == 0
    assert fit(list(sums), faster, weights=list(weights)).slope == fit(list(sums), faster).slope
    middle = between(fit(list(sums), list(sums)), line, 0.5)
    assert (middle.slope, middle.per_mib) == pytest.approx((1.0, 0.025))


def test_too_few_or_too_equal_wholes_fit_nothing() -> None:
    assert fit([1, 2, 3, 4], [1, 2, 3, 4]).residual is None
    assert fit([2.0, 2.0, 2.01, 2.0, 2.0], [1, 2, 3, 4, 5]).residual is None
    assert fit([1, 2], [1, 2]).at(7.0) == 7.0
    assert fit([1, 2], [1, 2]).margin(7.0, 0.3) == 0.3


def test_intervals_hold_as_often_as_they_promise() -> None:
    rng, inside, count = np.random.default_rng(0), 0, 2000
    for _ in range(count):
        sums = rng.uniform(1, 10, 9)
        measured = (0.5 + 1.2 * sums) * (1 + 0.04 * rng.standard_normal(9))
        line = fit(list(sums[:8]), list(measured[:8]))
        inside += abs(measured[8] - line.at(sums[8])) <= line.margin(sums[8], 0.0)
    assert 0.93 <= inside / count <= 0.97


def test_intervals_hold_at_another_time_too() -> None:
    """Three takes of two lines whose wholes move together, and a whole of a fourth time."""
    rng, inside, count = np.random.default_rng(1), 0, 2000
    for _ in range(count):
        sums, lines = rng.uniform(1, 10, 9), {}
        for name in "ab":
            own = 1 + 0.01 * rng.standard_normal(8)
            takes = [(0.5 + 1.2 * sums[:8]) * own * (1 + 0.03 * rng.standard_normal()) for _ in range(3)]
            lines[name] = fit(list(sums[:8]) * 3, list(np.concatenate(takes)), [k for k in range(3) for _ in range(8)])
        line = drifting(lines)["a"]
        later = (0.5 + 1.2 * sums[8]) * (1 + 0.01 * rng.standard_normal()) * (1 + 0.03 * rng.standard_normal())
        inside += abs(later - line.at(sums[8])) <= line.margin(sums[8], 0.0)
    assert 0.92 <= inside / count <= 0.985
    assert line.count == 8
    assert drifting({"x": fit([1, 2, 3, 4, 5], [1, 2, 3, 4, 6])})["x"].drift == 0
