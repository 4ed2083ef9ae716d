"""The masks benchmark's own parts: scores, intervals, what is run, and the fixture's tokenizer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import _cases, _score
from benchmarks._ledger import Row
from benchmarks.masks import report, run, trained
from benchmarks.masks.ours import METHODS, asked
from compress import loading, registry, tree
from compress.contracts import Pass


def test_a_difference_has_the_sign_of_its_first_and_an_interval_around_it() -> None:
    better, worse = [1.0 + i / 100 for i in range(96)], [1.1 + i / 100 for i in range(96)]
    value, low, high = _score.difference(better, worse)
    assert value == pytest.approx(_score.perplexity(better) * (1 - math.exp(0.1)))
    assert low < value < high < 0
    assert _score.difference(better, better) == (0, 0, 0)


def test_the_share_that_is_left_of_a_loss() -> None:
    rows = {n: [v] * 8 for n, v in {"recovered": 1.02, "control": 1.0, "pruned": 1.1, "dense": 1.0}.items()}
    value, low, high = _score.share_lost(rows)
    assert value == pytest.approx((math.exp(1.02) - math.e) / (math.exp(1.1) - math.e))
    assert low == pytest.approx(value)
    assert high == pytest.approx(value)


def test_weights_are_put_by_name_and_losses_are_those_of_the_model(tmp_path: Path) -> None:
    model = loading.open_source("demo", "causal-lm")[0]
    names = tree.block_linears(model)
    save_file({f"{n}.weight": torch.zeros_like(m.weight) for n, m in names.items()}, tmp_path / "w.safetensors")
    windows = torch.arange(40).view(2, 20)
    whole = model(input_ids=windows[:1], labels=windows[:1]).loss.item()
    assert _score.window_losses(model, windows)[0] == pytest.approx(whole, abs=1e-5)
    _score.put_(model, tmp_path / "w.safetensors")
    assert _score.zeros(model) == (1.0, True)


def test_every_method_of_the_tables_is_a_pass_with_such_settings() -> None:
    for method in METHODS:
        for pattern in ("50%",) if method == "global" else run.PATTERNS:
            if "permute" in method and pattern == "50%":
                continue
            use, settings = asked(method, pattern)
            assert registry.load("passes", use, Pass).Settings(**settings).model_fields_set == settings.keys(), method


def test_a_page_names_what_failed() -> None:
    rows: dict[str, Row] = {
        "dense": {"key": "dense", "losses": [1.0, 1.1]},
        "peer/wanda/50%": {"key": "", "tool": "peer", "method": "wanda", "pattern": "50%", "failed": "no memory"},
    }
    assert "peer wanda failed: no memory" in report.render({}, rows)


def test_the_fixtures_tokenizer_gives_bytes() -> None:
    tokenizer = _cases._byte_tokenizer()
    assert len(tokenizer("a é\n")["input_ids"]) == 5
    assert tokenizer.decode(tokenizer("a é\n")["input_ids"]) == "a é\n"


def test_what_is_trained_before_and_after_the_pruning_comes_to_the_steps_of_the_control() -> None:
    for name in trained.TRAININGS:
        found = list(trained.passes(trained.Training(name, 32, 1e-3)))
        for use, settings in found:
            assert registry.load("passes", use, Pass).Settings(**settings).model_fields_set == settings.keys()
        assert sum(settings.get("steps", 0) for _, settings in found) == 32
        assert [use for use, _ in found].count("sparsegpt") == (name != trained.CONTROL)
