"""Budgets are read exactly, all their faults at once."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compress import budgets
from compress.budgets import BudgetTable, Limit
from compress.contracts import Settings
from compress.errors import BadSettings

NAMES = ("prefill", "decode", "request", "weights_mib", "kv_mib", "memory_mib", "parameters", "bytes")
DENSE = {"prefill_ms": 100.0, "decode_ms": 5.0, "request_ms": 420.0, "weights_mib": 80.0, "kv_mib": 4.0}


def test_shares_and_amounts() -> None:
    decode, prefill, weights = budgets.parse({"decode": "0.6x", "prefill": 12.5, "weights_mib": 40})
    assert decode == Limit(cost="decode_ms", share=0.6)
    assert prefill == Limit(cost="prefill_ms", value=12.5)
    assert weights == Limit(cost="weights_mib", value=40.0)
    assert [limit.timed for limit in (decode, prefill, weights)] == [True, True, False]
    assert budgets.told((decode, prefill, weights)) == "decode 0.6x, prefill 12.5 ms, weights_mib 40 MiB"
    assert budgets.slug((decode, prefill, weights)) == "decode-0.6x-prefill-12.5-weights_mib-40"


def test_limits_in_units() -> None:
    limits = budgets.parse({"decode": "0.6x", "prefill": 12.5, "weights_mib": "0.5x", "memory_mib": "0.25x"})
    found = budgets.absolute(limits, DENSE)
    assert found == {"decode_ms": 3.0, "prefill_ms": 12.5, "weights_mib": 40.0, "memory_mib": 21.0}


def test_a_cost_that_the_model_does_not_have() -> None:
    encoder = {k: v for k, v in DENSE.items() if k not in ("decode_ms", "kv_mib")}
    with pytest.raises(BadSettings) as raised:
        budgets.absolute(budgets.parse({"decode": "0.6x", "kv_mib": 3, "prefill": "0.5x"}), encoder)
    first, second = str(raised.value).splitlines()
    assert first == (
        "decode: such a model has no such cost, got decode 0.6x; known: prefill, request, weights_mib, memory_mib"
    )
    assert second.startswith("kv_mib: such a model has no such cost, got kv_mib 3 MiB")
    assert budgets.absolute(budgets.parse({"memory_mib": "0.5x"}), encoder) == {"memory_mib": 40.0}


def test_all_faults_at_once() -> None:
    with pytest.raises(BadSettings) as raised:
        budgets.parse({"decod": "0.6x", "decode": "60%", "decode_ms": 1, "prefill": 0, "kv_mib": math.inf})
    assert raised.value.key == "budget"
    assert str(raised.value).splitlines() == [
        "decod: no such cost; did you mean 'decode'?",
        "decode: must be a share such as \"0.6x\", or a number in ms, got '60%'",
        "decode_ms: is limited twice; keep one of them",
        "prefill: must be finite and more than 0, got 0",
        "kv_mib: must be finite and more than 0, got inf",
    ]
    with pytest.raises(BadSettings, match="holds no limit"):
        budgets.parse({})


@pytest.mark.parametrize("text", ["", "x", "-0.5x", "0.6", "0.6x0.7x", "nanx", "1e-1x", "0x", "0.0x"])
def test_no_share(text: str) -> None:
    with pytest.raises(BadSettings, match="must be"):
        budgets.parse({"decode": text})


def test_as_a_setting() -> None:
    class Table(Settings):
        budget: BudgetTable

    assert Table(budget={}).budget == {}
    assert Table(budget={"decode": "0.6x", "prefill": 3}).budget == {"decode": "0.6x", "prefill": 3}
    with pytest.raises(ValidationError, match=r"decod: no such cost; did you mean 'decode'\?; prefill: must be"):
        Table(budget={"decod": 1, "prefill": -1})


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(1e-3, 1e6) | st.integers(1, 99).map(lambda n: f"{n / 100}x")))
def test_every_limit_is_what_was_written(budget: dict[str, float | str]) -> None:
    if not budget:
        return
    dense = {**DENSE, "parameters": 1e6, "bytes": 4e6}
    limits = budgets.parse(budget)
    found = budgets.absolute(limits, dense)
    assert len(limits) == len(budget)
    for (name, written), limit in zip(budget.items(), limits, strict=True):
        whole = 84.0 if name == "memory_mib" else dense[limit.cost]
        expected = float(written.rstrip("x")) * whole if isinstance(written, str) else written
        assert found[limit.cost] == pytest.approx(expected)
        assert limit.title == name
