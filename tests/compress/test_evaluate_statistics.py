"""Metrics against closed forms and other libraries; intervals against what an interval promises."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compress.errors import BadData
from compress.evaluate import Evaluation, compare, summarise
from compress.evaluate import statistics as s


def point(metric: Any, *samples: Any) -> float:
    values = [np.asarray(x, dtype=float) for x in samples]
    return float(metric(np.ones((1, values[0].size)), *values)[0])


# -- closed forms ---------------------------------------------------------------------------------------------------


def test_perplexity_is_exp_of_the_mean_over_windows_not_over_tokens() -> None:
    loss, tokens = [math.log(2), math.log(8)], [30, 10]
    assert point(s.perplexity, loss) == pytest.approx(4.0)
    assert point(s.per_token, loss, tokens) == pytest.approx(1.5 * math.log(2))


def test_bits_per_byte_of_a_coin_per_token() -> None:
    assert point(s.bits_per_byte, [math.log(2)] * 2, [10, 30], [40, 120]) == pytest.approx(0.25)


def test_binary_metrics_by_hand() -> None:
    label, said = [1] * 6 + [0] * 4, [1, 1, 1, 1, 0, 0, 1, 0, 0, 0]  # TP 4, FN 2, FP 1, TN 3
    assert point(s.accuracy, said, label) == pytest.approx(0.7)
    assert point(s.f1, said, label) == pytest.approx(8 / 11)
    assert point(s.mcc, said, label) == pytest.approx((4 * 3 - 1 * 2) / math.sqrt(5 * 6 * 4 * 5))


def test_macro_f1_by_hand() -> None:
    # class 0: 1 of 1 and 1 of 2; class 1: 1 of 2 and 1 of 1; class 2: 1 of 1 and 1 of 1
    assert point(s.f1, [0, 1, 1, 2], [0, 0, 1, 2]) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


@pytest.mark.parametrize(
    ("said", "label", "expected"),
    [
        ([1, 1, 1], [0, 1, 0], 0.0),  # one answer for everything says nothing
        ([0, 1, 0], [1, 1, 1], 0.0),  # nor can a set of one class be told apart
        ([1, 1], [1, 1], 0.0),
        ([0, 1, 2, 1], [0, 1, 2, 1], 1.0),
        ([1, 0, 1, 0], [0, 1, 0, 1], -1.0),
    ],
)
def test_mcc_where_its_fraction_degenerates(said: list[int], label: list[int], expected: float) -> None:
    assert point(s.mcc, said, label) == pytest.approx(expected)


def test_f1_without_any_positive_is_zero() -> None:
    assert point(s.f1, [0, 0], [0, 0]) == 0.0


def test_correlations_by_hand() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 16.0]
    assert point(s.spearman, a, b) == pytest.approx(1.0)
    assert point(s.pearson, a, b) == pytest.approx(25 / math.sqrt(5 * 129))
    assert point(s.pearson, a, b[::-1]) == pytest.approx(-25 / math.sqrt(5 * 129))
    assert point(s.pearson_spearman, a, b) == pytest.approx((1 + 25 / math.sqrt(5 * 129)) / 2)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_correlation_with_a_constant_is_zero_and_knows_no_scale(scale: float) -> None:
    x = scale * np.array([0.1, 0.1, 0.1])
    assert point(s.pearson, x, [1, 2, 3]) == 0.0
    assert point(s.spearman, x, [1, 2, 3]) == 0.0
    assert point(s.pearson, scale * np.array([0.1, 0.2, 0.3]) + scale, [1, 2, 3]) == pytest.approx(1.0)


# -- a weight is a repetition ---------------------------------------------------------------------------------------

LABELS = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*(arrays(np.int64, n, elements=st.integers(0, 3)) for _ in range(3)))
)


@given(LABELS)
@settings(max_examples=60, deadline=None)
def test_a_weight_is_a_repetition(drawn: tuple[Any, Any, Any]) -> None:
    said, label, times = (d.astype(float) for d in drawn)
    if times.sum() == 0:
        times[0] = 1
    for metric in (s.accuracy, s.mcc, s.pearson, s.spearman, s.pearson_spearman):
        repeated = [np.repeat(x, times.astype(int)) for x in (said, label)]
        assert metric(times[None], said, label)[0] == pytest.approx(point(metric, *repeated), abs=1e-9)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(LABELS)
@settings(max_examples=60, deadline=None)
def test_metrics_equal_other_libraries(drawn: tuple[Any, Any, Any]) -> None:
    sk = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    said, label, _ = drawn
    assert point(s.mcc, said, label) == pytest.approx(sk.matthews_corrcoef(label, said), abs=1e-9)
    binary = {*said, *label} <= {0, 1}
    average, zero = ("binary", 0.0) if binary else ("macro", 0.0)
    assert point(s.f1, said, label) == pytest.approx(sk.f1_score(label, said, average=average, zero_division=zero))
    if np.ptp(said) and np.ptp(label):
        assert point(s.pearson, said, label) == pytest.approx(stats.pearsonr(said, label)[0], abs=1e-9)
        assert point(s.spearman, said, label) == pytest.approx(stats.spearmanr(said, label)[0], abs=1e-9)


# -- intervals ------------------------------------------------------------------------------------------------------


def test_resamples_hold_as_many_as_the_original_and_the_seed_fixes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(s.resamples(7, seed=3, rows=50)))
    assert whole.shape == (50, 7)
    assert (whole.sum(1) == 7).all()
    assert len({tuple(r) for r in whole}) > 40
    monkeypatch.setattr(s, "_ELEMENTS", 70)
    assert np.array_equal(np.concatenate(list(s.resamples(7, seed=3, rows=50))), whole)
    assert not np.array_equal(np.concatenate(list(s.resamples(7, seed=4, rows=50))), whole)


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = s.interval(lambda w: s.mean(w, values), 400, seed=0)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)


def test_interval_covers_the_truth_about_19_times_in_20() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        values = rng.normal(1.0, 1.0, 60)
        low, high = s.interval(lambda w, v=values: s.mean(w, v), 60, seed=trial)  # type: ignore[misc]
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 300 <= 0.98  # 0.95 +- 4 standard errors of 300 trials, less the bias of small samples


def _pair() -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    rng = np.random.default_rng(2)
    hard = rng.normal(3.0, 0.5, 100)  # what makes a window hard is hard for both
    parent, child = hard, hard + rng.normal(0.1, 0.02, 100)
    return {"loss": child.tolist(), "tokens": [9] * 100}, {"loss": parent.tolist(), "tokens": [9] * 100}


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    child, parent = _pair()
    delta = {m.name: m for m in compare(child, parent)}["nats_per_token"]
    alone = [summarise("model", x)["nats_per_token"] for x in (child, parent)]
    unpaired = math.hypot(*(m.high - m.low for m in alone))
    assert delta.value == pytest.approx(alone[0].value - alone[1].value)
    assert delta.low < 0.1 < delta.high
    assert delta.high - delta.low < unpaired / 10
    assert delta.low > 0


def test_the_seed_fixes_every_interval() -> None:
    child, parent = _pair()
    assert summarise("model", child, seed=1) == summarise("model", child, seed=1)
    assert summarise("model", child, seed=1) != summarise("model", child, seed=2)
    assert compare(child, parent, seed=1) == compare(child, parent, seed=1)


def test_metrics_follow_from_the_samples_there_are() -> None:
    child, parent = _pair()
    assert [m.name for m in summarise("engine", child).metrics] == ["perplexity", "nats_per_token"]
    more = {**child, "kl": [0.1] * 100, "agreement": [0.5] * 100, "bytes": [40.0] * 100}
    names = [m.name for m in summarise("engine", more).metrics]
    assert names == ["perplexity", "nats_per_token", "bits_per_byte", "kl", "agreement"]
    assert [m.name for m in compare(more, parent)] == ["perplexity", "nats_per_token"]
    with pytest.raises(KeyError):
        summarise("model", child)["accuracy"]


@given(arrays(np.float64, st.integers(2, 30), elements=st.floats(0, 20)))
@settings(max_examples=30, deadline=None)
def test_value_lies_within_the_samples_and_the_interval_too(loss: Any) -> None:
    found = summarise("model", {"loss": loss.tolist(), "tokens": [5] * loss.size})["nats_per_token"]
    assert loss.min() - 1e-9 <= found.low <= found.high <= loss.max() + 1e-9
    assert loss.min() - 1e-9 <= found.value <= loss.max() + 1e-9


def test_json_and_back() -> None:
    child, parent = _pair()
    before = summarise("artifact", child)
    whole = dataclasses.replace(before, deltas=compare(child, parent), parent=summarise("model", parent))
    assert Evaluation.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def test_metric_reads_well() -> None:
    found = summarise("model", {"loss": [1.0, 1.0], "tokens": [1, 1]})
    assert [str(m) for m in found.metrics] == [
        "perplexity 2.718 [2.718, 2.718]",
        "nats_per_token 1 [1, 1] nats",
    ]


@pytest.mark.parametrize(
    ("child", "parent", "words"),
    [
        ({"loss": [1.0]}, {"loss": [1.0]}, "1 example is too few"),
        ({}, {}, "0 examples"),
        ({"loss": [1.0, 2.0], "tokens": [1]}, {"loss": [1.0, 2.0]}, "unequal lengths"),
        ({"loss": [1.0, 2.0]}, {"loss": [1.0, 2.0, 3.0]}, "2 examples cannot be paired with 3"),
        (
            {"predicted": [0, 1], "label": [0, 1]},
            {"predicted": [0, 1], "label": [1, 1]},
            r"different examples \(label differs\)",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused(child: Any, parent: Any, words: str) -> None:
    with pytest.raises(BadData, match=words):
        compare(child, parent)
