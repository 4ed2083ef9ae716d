"""The fold itself, and the promise that it leaves the function of a model as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from compress.artifact import Artifact
from compress.branched import Branched
from compress.errors import BrokenPromise
from passes._folding.pairs import Pair

_PROBES = 8  # random inputs of every module


def fold_(model: nn.Module, pair: Pair, scale: Tensor) -> None:
    """Divide what the pair's first module gives by a scale, and multiply the weights that read it: zeros stay zeros.

    Args:
        model: with real weights in the pair's block.
        pair: of the model.
        scale: float [channels], finite and above 0.

    Raises:
        ValueError: the scale is something else.
    """
    if scale.shape != (pair.channels,) or not bool(((scale > 0) & scale.isfinite()).all()):
        raise ValueError(f"{pair.before}: a scale must be {pair.channels} finite values above 0")
    with torch.no_grad():
        for rows in _given(model.get_submodule(pair.before), pair.first):
            rows.copy_(rows.float() / scale.to(rows.device).view(-1, *[1] * (rows.dim() - 1)))
        for name in pair.after:
            linear: Any = model.get_submodule(name)
            for weight in (linear.weight, linear.a) if isinstance(linear, Branched) else (linear.weight,):
                weight.copy_(weight.float() * pair.spread(scale.to(weight.device)))


def check(before: Artifact, after: Artifact, pairs: Sequence[Pair]) -> None:
    """Raise `BrokenPromise` unless the linears of the pairs give on random inputs what they gave, but for rounding.

    Each pair is tried by itself: its first module reads random numbers, or what an earlier pair gives it.  Weights that
    were zero must be so still.

    Args:
        before: the pass's cached input.
        after: its output.
        pairs: in the order of the forward.
    """
    for block, inside in groupby(pairs, key=lambda pair: pair.block):
        together = list(inside)
        with before.opened(block), after.opened(block):
            for name in {n for pair in together for n in pair.after}:
                old_weight, new_weight = (a.model.get_parameter(f"{name}.weight") for a in (before, after))
                if bool(new_weight[old_weight.to(new_weight.device) == 0].any()):
                    raise BrokenPromise(f"{name}: weights that were zero are not")
            was, now = (_outputs(a.model, together) for a in (before, after))
        for name, old in was.items():
            off = (now[name].to(old.device) - old).abs().max()
            if not off <= torch.finfo(old.dtype).eps ** 0.5 * old.abs().max():  # also where it is NaN
                raise BrokenPromise(f"{name}: gives something else than before, by {float(off):.3g}")


def _given(module: nn.Module, first: int) -> Iterator[Tensor]:
    """Yield the parts of a norm's or linear's parameters that make its outputs from one row on."""
    for name, part in module.named_parameters(recurse=False):
        if name != "a":  # of a branch, where its inputs go
            yield part.data[first:]


@torch.no_grad()
def _outputs(model: nn.Module, pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Return what the linears of the pairs of a block give, less the rows that a pair may scale, [probes, rows]."""
    random = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    for pair in pairs:
        module: Any = model.get_submodule(pair.before)
        if pair.before not in made:
            width, like = module.in_features if pair.linear else pair.channels, module.weight
            made[pair.before] = module(torch.randn(_PROBES, width, generator=random).to(like))
        channels = made[pair.before][:, pair.first :]
        made[pair.before] = made[pair.before][:, : pair.first]
        read = channels[:, pair.spread(torch.arange(pair.channels, device=channels.device))]
        made |= {name: model.get_submodule(name)(read) for name in pair.after}
    return {name: outputs for name, outputs in made.items() if outputs.numel()}
