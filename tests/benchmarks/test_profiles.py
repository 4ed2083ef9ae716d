"""The arithmetic of the profile benchmark."""

from __future__ import annotations

import pytest

from benchmarks.profiles.run import COUNTS, agreement, counted, errors, kendall, lines
from compress.contracts import Target
from profiles import Attention, Choice, Ffn, Profile, here
from profiles._file import Document, Measured, Taken, Timing


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


def test_profiles_agree_within_what_they_state() -> None:
    def profile(*times: float, spread: float) -> Profile:
        parts = tuple(
            Measured(
                part=Ffn(family="llama", hidden=8, neurons=n),
                times=(Timing(phase="prefill", batch=1, length=4, ms=ms, spread=spread, runs=9),),
            )
            for n, ms in enumerate(times, start=1)
        )
        return Profile(Document(machine=here(Target()), taken=Taken(date="2026-01-02", copies=(1, 2)), parts=parts))

    found = agreement(profile(1.0, 2.0, 3.0, spread=0.03), profile(1.04, 2.0, 3.3, spread=0.03))
    assert found["prefill"] == pytest.approx({"median": 1 - 1 / 1.04, "worst": 1 - 1 / 1.1, "inside": 2 / 3})


def test_the_table_says_what_was_met() -> None:
    own = {"median": 0.05, "worst": 0.09, "tau": 0.95, "inside": 0.9}
    rows = {
        "decode": {"profile": own, "operations": {**own, "median": 0.2}, "repeat": 0.03},
        "prefill": {"profile": own, "repeat": 0.01},
    }
    told = lines(rows, {"decode": {"median": 0.01, "worst": 0.02, "inside": 1.0}})
    assert any("met by 1 of 2" in line for line in told)
    assert told[-1].endswith("100% of the parts agree within what both state")
    assert sum(line.startswith("| decode") for line in told) == 3
