"""Wanda's score by hand, and what it must reduce to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.errors import BadSettings
from compress.facts import Facts
from passes._layerwise import Inputs, Layer
from passes._masks import keep_top
from passes._oneshot import Task
from passes.wanda import Wanda, score


def task(weight: torch.Tensor, x: torch.Tensor, **given: float) -> Task:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.data = weight
    gram = x.T @ x / len(x)
    inputs = Inputs(gram=gram, square=gram.diagonal().clone(), held_out=x)
    rule = Wanda(Wanda.Settings(**given)).rule
    return Task(Layer("x", linear, inputs), rule, torch.ones_like(weight, dtype=torch.bool))


def test_score_by_hand() -> None:
    weight, x = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[3.0, 0.0], [4.0, 2.0]])
    found = score(weight, x.square().mean(0))
    assert found.tolist() == [[pytest.approx(w * n) for w, n in zip(row, (12.5**0.5, 2**0.5), strict=True)]
                              for row in ((1, 2), (3, 0.5))]  # fmt: skip
    assert score(weight.half(), x.square().mean(0)).dtype == torch.float32


@given(st.integers(0, 7), st.floats(-8, 8).filter(lambda c: abs(c) > 0.01))
def test_an_input_scaled_scales_its_scores_alone(channel: int, factor: float) -> None:
    random = torch.Generator().manual_seed(channel)
    weight, x = torch.randn(4, 8, generator=random), torch.randn(16, 8, generator=random)
    was = score(weight, x.square().mean(0))
    x[:, channel] *= factor
    was[:, channel] *= abs(factor)
    torch.testing.assert_close(score(weight, x.square().mean(0)), was)


def test_equal_inputs_reduce_it_to_magnitude_by_row() -> None:
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    given = task(weight, torch.eye(8), sparsity=0.375)
    attempts = next(Wanda(Wanda.Settings()).attempts(given.layer.inputs, [given], print))
    assert len(attempts) == 1
    assert attempts[0].mask.equal(keep_top(weight.abs(), 0.375, "row"))
    assert (attempts[0].mask.sum(1) == 5).all()
    assert attempts[0].weight.equal(weight.masked_fill(~attempts[0].mask, 0))


def test_a_strong_input_keeps_its_small_weight() -> None:
    weight = torch.tensor([[0.1, 1.0, 2.0, 3.0]])
    x = torch.diag(torch.tensor([100.0, 1.0, 1.0, 1.0]))
    given = task(weight, x)
    assert next(Wanda(Wanda.Settings()).attempts(given.layer.inputs, [given], print))[0].mask.tolist() == [
        [True, False, False, True]
    ]


def test_swaps_lower_the_error_of_dependent_inputs() -> None:
    random = torch.Generator().manual_seed(2)
    x = torch.randn(64, 16, generator=random) @ torch.randn(16, 16, generator=random)
    given = task(torch.randn(6, 16, generator=random), x)
    plugin = Wanda(Wanda.Settings(refine="swaps"))
    plain, better = next(plugin.attempts(given.layer.inputs, [given], print))
    was, now = ((x @ (a.weight - given.weight).T).square().sum(0) for a in (plain, better))
    assert (now <= was * 1.00001).all()
    assert now.sum() < 0.9 * was.sum()
    assert better.mask.sum(1).equal(plain.mask.sum(1))
    assert better.weight.equal(given.weight.masked_fill(~better.mask, 0))


def test_it_cannot_aim_at_dense_outputs() -> None:
    facts = Facts(
        family="llama", task="causal-lm", tied=False, shapes={"a": (4, 4)}, biases={}, norms={}, head=None,
        parameters=16, vocabulary=4, positions=None, layout=(),
    )  # fmt: skip
    with pytest.raises(BadSettings, match="use sparsegpt") as caught:
        Wanda(Wanda.Settings(reference="dense")).plan(facts)
    assert caught.value.key == "reference"
