"""Rounding to nearest: the codes themselves, and what the search is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.facts import GridFact
from passes import _quant
from passes._pruned import facts_of
from passes.rtn import Rtn

Tiny = Callable[..., Artifact]


def rounded(artifact: Artifact, folder: Path, **given: Any) -> tuple[Artifact, QuietReport]:
    report = QuietReport()
    return Rtn(Rtn.Settings(**given)).run(artifact, Context(folder=folder, report=report)), report


def test_every_weight_is_the_nearest_of_its_grid(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    old = {n: linear.weight.detach().clone() for n, linear in tree.block_linears(artifact.model).items()}
    after, _ = rounded(artifact, tmp_path, bits=3, group_size=16)
    for name, weight in old.items():
        grid = after.grids[name]
        groups = weight.view(*grid.scale.shape, 16)
        highest = torch.maximum(groups.amin(-1) / -4, groups.amax(-1) / 3)
        torch.testing.assert_close(grid.scale, highest)
        levels = grid.scale.unsqueeze(-1) * torch.arange(-4, 4)
        nearest = (groups.unsqueeze(-1) - levels.unsqueeze(2)).abs().amin(-1).view_as(weight)
        torch.testing.assert_close((grid.dequantized() - weight).abs(), nearest)
        assert torch.equal(after.tensor(f"{name}.weight"), grid.dequantized())


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_search_loses_less_than_the_span(tiny: Tiny, tmp_path: Path, symmetric: bool) -> None:
    errors = []
    for steps in ("span", "search"):
        before, artifact = tiny("llama"), tiny("llama")
        after, _ = rounded(artifact, tmp_path, bits=2, group_size=16, steps=steps, symmetric=symmetric)
        names = [f"{n}.weight" for n in after.grids]
        errors.append(sum(float((after.tensor(n) - before.tensor(n)).square().sum()) for n in names))
    assert errors[1] < 0.85 * errors[0]


def test_eight_bits_by_rows_with_integer_inputs(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("bert")
    plugin = Rtn(Rtn.Settings(bits=8, activation="dynamic"))
    facts = plugin.plan(facts_of(artifact))
    assert set(facts.grids.values()) == {GridFact(bits=8, group_size=None, activation="dynamic")}
    after, report = rounded(artifact, tmp_path, bits=8, activation="dynamic")
    assert {n: after.grids[n].fact for n in after.grids} == facts.grids
    assert report.notes[0].startswith("quantized 12 linears to 8 bits by whole rows, integer inputs asked for: ")


def test_no_data_unless_bits_are_chosen() -> None:
    assert Rtn(Rtn.Settings()).data_uses() == frozenset()


def test_rounding_again_to_the_same_steps_changes_nothing() -> None:
    weight, fact = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), GridFact(bits=4, group_size=8)
    once = _quant.grid(weight, _quant.span(weight, fact), fact)
    again = _quant.grid(once.dequantized(), _quant.Steps(once.scale), fact)
    assert torch.equal(again.codes, once.codes)
