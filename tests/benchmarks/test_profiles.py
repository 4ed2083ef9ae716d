"""The arithmetic of the profile benchmark."""

from __future__ import annotations

import pytest

from benchmarks.profiles.run import COUNTS, counted, errors, kendall
from profiles import Attention, Choice, Ffn


def test_tau_counts_pairs() -> None:
    assert kendall([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert kendall([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert kendall([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)


def test_errors_are_shares_of_what_was_measured() -> None:
    assert errors([1.1, 1.8, 3.0], [1.0, 2.0, 3.0]) == pytest.approx({"median": 0.1, "worst": 0.1, "tau": 1})


def test_counts_are_of_whole_models() -> None:
    attention = Choice(part=Attention(family="llama", hidden=8, heads=2, kv_heads=1, head_dim=4))
    ffn = Choice(part=Ffn(family="llama", hidden=8, neurons=16))
    assert counted(COUNTS["parameters"], [attention, ffn], "decode", 1, 5) == 2 * 8 * 4 * 3 + 8 + 3 * 8 * 16 + 8
    assert counted(COUNTS["operations"], [ffn], "prefill", 2, 5) == 2 * 3 * 8 * 16 * 10
    assert counted(COUNTS["operations"], [attention], "decode", 1, 5) == 2 * 192 + 4 * 6 * 8
