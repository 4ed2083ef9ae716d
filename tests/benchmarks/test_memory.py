"""What a training step of L4Q holds, beside LoRA on 16-bit weights and rounding left to autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from benchmarks._memory import Live, NaiveQat, PlainLora, counted, l4q
from compress.facts import GridFact

W4 = GridFact(bits=4, group_size=128)


def test_l4q_takes_the_memory_of_lora() -> None:
    lora, ours = counted(PlainLora, tokens=256), counted(l4q(W4), tokens=256)
    assert lora.parameters == pytest.approx(2 * 494e6, rel=0.02)  # a model of half a billion
    assert ours.total <= 1.05 * lora.total


def test_rounding_left_to_autograd_takes_far_more() -> None:
    config = LlamaConfig(vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4)
    config._attn_implementation = "sdpa"
    ours, naive = (counted(make, 16, config) for make in (l4q(W4), lambda layer: NaiveQat(layer, W4)))
    weights = 4 * (4 * 256 * 256 + 3 * 256 * 512)  # of a layer, in float32
    assert naive.waiting - ours.waiting > 3 * weights
    assert naive.peak > ours.peak


def test_what_lives_at_once_is_counted() -> None:
    given = torch.zeros(100)

    def work() -> Tensor:
        first = given + 1  # 400 bytes
        second = torch.cat([first, first])  # 800
        del first
        return (second.view(2, 100) * 2).sum()  # 800, and then 4

    with Live([given]) as live:
        left = work()
    assert live.peak == 800 + 800 + 4
    assert live.now == left.nbytes == 4


def test_the_rivals_start_as_the_linear() -> None:
    layer = nn.Linear(128, 8, bias=False)
    x = torch.randn(3, 128)
    torch.testing.assert_close(PlainLora(layer)(x), layer(x))
    fine = GridFact(bits=8, group_size=16)
    torch.testing.assert_close(NaiveQat(layer, fine)(x), layer(x), rtol=0, atol=0.02)
    torch.testing.assert_close(l4q(fine)(layer)(x), NaiveQat(layer, fine)(x), rtol=1e-4, atol=1e-4)
