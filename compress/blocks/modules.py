"""What stands in a block in place of a plain linear, an attention or an FFN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DummyLayer


class NoAttention(nn.Module):
    """Attention that adds nothing and keeps no keys and values.

    Args:
        layer_idx: the block's place, and that of its entry in a cache.
        head_dim: name and width of a head, as the family's attention spells it.
    """

    def __init__(self, layer_idx: int, **head_dim: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        for name, width in head_dim.items():
            setattr(self, name, width)

    def forward(
        self, hidden_states: Tensor, *_: Any, past_key_values: Cache | None = None, **__: Any
    ) -> tuple[Tensor, None]:
        """Return zeros like the hidden states, and no weights."""
        if past_key_values is not None:  # so that the cache asks another layer how many tokens it has seen
            layers = past_key_values.layers
            while len(layers) <= self.layer_idx and past_key_values.layer_class_to_replicate is not None:
                layers.append(past_key_values.layer_class_to_replicate())
            layers[self.layer_idx] = DummyLayer()  # type: ignore[no-untyped-call]
        return torch.zeros_like(hidden_states), None


class NoOutput(nn.Module):
    """A part of a block that adds nothing."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return zeros like the hidden states."""
        return torch.zeros_like(hidden_states)


@dataclass(frozen=True)
class Branch:
    """A low-rank path beside a linear: it adds `x a^T b^T`.

    Attributes:
        a: float [rank, in].
        b: float [out, rank].
    """

    a: Tensor
    b: Tensor


class Branched(nn.Linear):
    """A linear with a branch: `x W^T + bias + x a^T b^T`; `weight` and `bias` are what a plain linear has.

    Args:
        linear: gives its weight and bias, the very tensors.
        branch: its tensors become parameters of the linear's type and device.

    Raises:
        ValueError: the branch does not fit the linear.
    """

    def __init__(self, linear: nn.Linear, branch: Branch) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight = linear.weight
        rank = branch.a.shape[0]
        if branch.a.shape != (rank, weight.shape[1]) or branch.b.shape != (weight.shape[0], rank):
            shapes = f"{list(branch.a.shape)} and {list(branch.b.shape)}"
            raise ValueError(f"a branch of {shapes} does not fit a linear {list(weight.shape)}")
        self.weight, self.bias = weight, linear.bias
        self.a = nn.Parameter(branch.a.detach().to(weight), requires_grad=weight.requires_grad)
        self.b = nn.Parameter(branch.b.detach().to(weight), requires_grad=weight.requires_grad)

    @property
    def rank(self) -> int:
        """The branch's inner width."""
        return self.a.shape[0]

    def forward(self, input: Tensor) -> Tensor:
        """Return float [..., out] for float [..., in]."""
        return super().forward(input) + nn.functional.linear(nn.functional.linear(input, self.a), self.b)
