"""Rounding to nearest: the codes themselves, and what the search is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.errors import BadSettings
from compress.facts import GridFact
from passes import _masks, _quant
from passes._pruned import facts_of
from passes.rtn import Rtn
from tests.conftest import CAUSAL, ENCODERS

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


# -- floats of 8 bits --------------------------------------------------------------------------------------------------


FLOATS = {"bits": 8, "format": "fp8"}


def levels() -> Tensor:
    """Return what the codes 0 to 126 stand for, ascending: 4 bits of exponent, 3 of mantissa, numbers all of them."""
    exponent, mantissa = torch.arange(127) // 8, torch.arange(127) % 8 / 8
    return torch.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))


def nearest(scaled: Tensor) -> Tensor:
    """Return the bytes of the nearest floats of 8 bits, those with an even mantissa where two are as near."""
    apart = (scaled.abs().double().unsqueeze(-1) - levels().double()).abs()
    as_near = apart == apart.amin(-1, keepdim=True)
    even = as_near & (torch.arange(127) % 2 == 0)
    codes = torch.where(even.any(-1), even.int().argmax(-1), as_near.int().argmax(-1))
    return codes.to(torch.uint8) + 128 * scaled.signbit().to(torch.uint8)


@pytest.mark.parametrize("size", [None, 32])
def test_floats_are_the_nearest(size: int | None) -> None:
    fact = GridFact(bits=8, group_size=size, format="fp8")
    torch.manual_seed(0)
    weight = torch.randn(6, 254) * torch.logspace(-4, 2, 6).unsqueeze(1)
    weight[0, :127] = levels()
    weight[0, 127:253] = -(levels()[1:] + levels()[:-1]) / 2  # as near to one as to the other
    weight[5] = 0
    steps = _quant.span(weight, fact)
    made = _quant.grid(weight, steps, fact)
    padded = torch.nn.functional.pad(weight, (0, 2)).view(6, -1, size) if size else weight.unsqueeze(1)
    most = padded.abs().amax(-1)
    torch.testing.assert_close(steps.scale, torch.where(most > 0, most / 448, 1.0).clamp(min=2.0**-20))
    wide = steps.scale.repeat_interleave(size, 1)[:, :254] if size else steps.scale
    assert torch.equal(made.codes.view(torch.uint8), nearest((weight / wide).clamp(-448, 448)))
    assert torch.equal(made.dequantized()[5], weight[5])
    if size is None:
        assert torch.equal(made.dequantized()[0, :127], levels())  # at a step of 1, each stands for itself


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_floats_keep_zeros_and_come_back_from_disk(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny(kind)
    linears = tree.block_linears(artifact.model)
    masks = {n: _masks.keep_n_of_m(m.weight.detach().abs(), 2, 4) for n, m in linears.items()}
    for name, mask in masks.items():
        _masks.apply_(linears[name].weight, mask)
    for name in ("before", "after", "work"):
        (tmp_path / name).mkdir()
    artifact.after(masks=masks).save(tmp_path / "before")
    before = Artifact.load(tmp_path / "before")
    plugin = Rtn(Rtn.Settings(**FLOATS))
    facts = plugin.plan(facts_of(before))
    after, report = rounded(Artifact.load(tmp_path / "before"), tmp_path / "work", **FLOATS)
    assert report.notes[0].startswith(f"quantized {len(linears)} linears to 8 bits (fp8) by whole rows: ")
    after.save(tmp_path / "after")
    again = Artifact.load(tmp_path / "after")
    plugin.ensures(before, again)
    assert {n: g.fact for n, g in again.grids.items()} == facts.grids
    for name, grid in again.grids.items():
        assert _masks.same_bits(grid.codes, after.grids[name].codes)
        was, now = before.tensor(f"{name}.weight"), again.tensor(f"{name}.weight")
        assert torch.equal(now, grid.codes.float() * grid.scale)  # what the forward multiplies by
        assert not now[was == 0].any()
        assert ((now - was).abs() <= torch.maximum(was.abs() / 16, grid.scale * 2.0**-10) * 1.0001).all()


@pytest.mark.parametrize(
    ("given", "key", "said"),
    [
        ({"bits": 4}, "format", "bits = 8, symmetric, .* got 'fp8' for 4 bits"),
        ({"symmetric": False}, "format", "symmetric"),
        ({"activation": "dynamic"}, "format", "inputs that stay floats or are 'static'"),
        ({"layers": {"down_proj": 4}}, "format", "for 4 bits"),
        ({"bits": "plan"}, "format", "comes from the plan"),
        ({"steps": "search"}, "steps", "integers alone have steps to search, got 'search'"),
    ],
)
def test_what_floats_do_not_go_with(given: dict[str, Any], key: str, said: str, tiny: Tiny) -> None:
    facts = facts_of(tiny("llama"))
    with pytest.raises(BadSettings, match=said) as fault:
        Rtn(Rtn.Settings(**FLOATS | given)).plan(facts)
    assert fault.value.key == key
