"""What linears read that are meant to read codes: against all codes there are, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.facts import Format, GridFact
from compress.reading import reading, rounded, static
from tests.conftest import branched, quantized

Tiny = Callable[..., Artifact]
STATIC = GridFact(bits=8, group_size=None, activation="static")


def codes(format_: Format) -> Tensor:
    """Return every code there is, ascending, in float64."""
    if format_ == "int":
        return torch.arange(-128.0, 128, dtype=torch.float64)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    found: Tensor = torch.unique(every[every.isfinite()])
    return found


@pytest.mark.parametrize("format_", ["int", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_input_becomes_the_nearest_code(format_: Format, dtype: torch.dtype) -> None:
    scale = torch.tensor(0.0625)  # a power of 2, so that no product is rounded
    x = (torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 8).to(dtype)
    x[:5] = torch.tensor([0, 1e3, -1e3, 0.03125, 1.5 * 0.0625])  # clamped ones, and two as near to one as to the other
    found = rounded(x, scale, format_)
    assert found.dtype == dtype
    apart = (x.double() / 0.0625).unsqueeze(1) - codes(format_)
    assert torch.equal((x.double() - found.double()).abs(), apart.abs().amin(1) * 0.0625)
    if format_ == "int":
        assert found[3:5].tolist() == [0, 0.125]  # half to even


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_model_reads_what_its_codes_say_while_it_lasts(kind: str, tiny: Tiny) -> None:
    artifact = tiny(kind)
    names = list(tree.block_linears(artifact.model))
    facts = [STATIC, GridFact(bits=4, group_size=None), GridFact(bits=8, group_size=None, activation="dynamic")]
    artifact = quantized(artifact, {n: facts[i % 3] for i, n in enumerate(names)})
    changes = static(artifact.grids)
    assert list(changes) == names[::3]
    linear, x = artifact.model.get_submodule(names[0]), torch.randn(5, 32)
    before = linear(x)
    with reading(artifact.model, changes), torch.no_grad():
        assert torch.equal(linear(x), linear.forward(rounded(x, torch.tensor(1 / 32))))
        assert torch.equal(artifact.model.get_submodule(names[1])(x), artifact.model.get_submodule(names[1]).forward(x))
    assert torch.equal(linear(x), before)
    assert not torch.equal(linear.forward(rounded(x, torch.tensor(1 / 32))), before)


def test_a_branch_reads_floats(tiny: Tiny) -> None:
    artifact = branched(quantized(tiny("llama"), STATIC))
    linear: Any = artifact.model.get_submodule(next(iter(artifact.branches)))
    x = torch.randn(5, linear.in_features)
    with reading(artifact.model, static(artifact.grids)), torch.no_grad():
        found = linear(x)
    weight, (a, b) = linear.weight, (linear.a, linear.b)
    torch.testing.assert_close(found, rounded(x, torch.tensor(1 / 32)) @ weight.T + x @ a.T @ b.T)
