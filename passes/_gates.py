"""Learned gates: a trained number for each of a linear's runs of input columns, which tells what the run is worth.

    y = W (c * x) + b,   loss + strength * sum |c|,   c = 1 at the start

A gate on the columns of an attention's output projection is one of a head (of a KV group with grouped queries), on a
column of an FFN's down projection one of a neuron.  The l1 penalty pulls every gate towards 0; what the loss needs
resists.

Papers: Gu et al. 2024, Light-PEFT (arXiv 2406.03792); Chen et al. 2021, DSEE (arXiv 2111.00160).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def gated(model: nn.Module, counts: Mapping[str, int]) -> Iterator[dict[str, nn.Parameter]]:
    """Let gates multiply what the named linears (or adapters in their place) read while the context lasts.

    Args:
        model: what holds the linears.
        counts: per linear, how many gates; each multiplies as many neighbouring columns as the next.

    Yields:
        Per linear its gates, float32 `[count]`, all 1.
    """
    gates, hooks = dict[str, nn.Parameter](), []
    for name, count in counts.items():
        module = model.get_submodule(name)
        weight: Any = module.weight
        if weight.shape[1] % count:
            raise ValueError(f"{name}: {count} gates do not share its {weight.shape[1]} inputs evenly")
        gates[name] = nn.Parameter(torch.ones(count, device=weight.device))
        hooks.append(module.register_forward_pre_hook(_Gate(gates[name])))
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


def penalty(gates: Iterable[Tensor]) -> Tensor:
    """Return the l1 norm of all gates together."""
    return torch.stack([g.abs().sum() for g in gates]).sum()


class _Gate:
    def __init__(self, gate: Tensor) -> None:
        self.gate = gate

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        return (x * self.gate.repeat_interleave(x.shape[-1] // len(self.gate)).to(x.dtype), *args[1:])
