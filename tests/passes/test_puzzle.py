"""Blocks chosen within a budget: scores, the program, what is realised and planned, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import blocks, budgets, registry, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Pass, Target
from compress.data import Source
from compress.data.settings import DataSettings
from compress.errors import BadModel, BadSettings, BrokenPromise
from tests.conftest import lively

TEXT = "the quick brown fox jumps over the lazy dog; a model is pruned and retrained. "
SMALL = {"multiple": 8, "windows": 4}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT * 200)
    return Source(DataSettings(source=str(folder / "text.txt"), windows=6, length=16), "calibration", "causal-lm", 0)


@pytest.fixture
def context_of(source: Source, tmp_path: Path) -> Callable[..., Context]:
    """Return a maker of contexts: each step has its own folder, all share the cache."""
    count = itertools.count()

    def make(**changes: Any) -> Context:
        folder = tmp_path / f"step-{next(count)}"
        folder.mkdir()
        given: dict[str, Any] = {"folder": folder, "data": {"calibration": source}, "cache": tmp_path / "cache"}
        return Context(**{**given, **changes})

    return make


def puzzle(**given: Any) -> Pass:
    found = registry.load("passes", "puzzle", Pass)
    return found(found.Settings(**{**SMALL, **given}))


def alive(artifact: Artifact) -> Artifact:
    lively(artifact.model)
    return artifact


def logits(artifact: Artifact) -> torch.Tensor:
    artifact.model.eval()
    with torch.no_grad():
        return artifact.model(torch.arange(2, 18).view(2, 8)).logits


def test_a_loose_budget_keeps_the_parent(tiny: Callable[..., Artifact], context_of: Callable[..., Context]) -> None:
    artifact = alive(tiny("llama"))
    expected = logits(artifact)
    plugin, context = puzzle(budget={"weights_mib": "1x"}), context_of()
    after = plugin.run(artifact, context)
    assert torch.equal(logits(after), expected)
    assert isinstance(context.report, QuietReport)
    plugin.ensures(alive(tiny("llama")), after)


def test_a_tight_budget(tiny: Callable[..., Artifact], context_of: Callable[..., Context]) -> None:
    plugin, context = puzzle(budget={"weights_mib": "0.75x"}), context_of()
    after = plugin.run(alive(tiny("llama")), context)
    plugin.ensures(alive(tiny("llama")), after)
