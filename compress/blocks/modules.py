"""What stands in a block in place of an attention or an FFN that is absent, or that one linear stands in for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DummyLayer


class NoAttention(nn.Module):
    """In place of attention: every token by itself, and no keys and values are kept.

    Args:
        layer_idx: the block's place, and that of its entry in a cache.
        name: under which the module that follows stands.
        through: what the tokens pass: `NoOutput` adds nothing, a linear stands in for attention, an identity leaves
            them to the linear behind (BERT's).
        head_dim: name and width of a head, as the family's attention spells it.
    """

    def __init__(self, layer_idx: int, name: str, through: nn.Module, **head_dim: int) -> None:
        super().__init__()
        self.layer_idx, self.name = layer_idx, name
        setattr(self, name, through)
        for attribute, width in head_dim.items():
            setattr(self, attribute, width)

    def forward(
        self, hidden_states: Tensor, *_: Any, past_key_values: Cache | None = None, **__: Any
    ) -> tuple[Tensor, None]:
        """Return what the tokens become, and no weights."""
        if past_key_values is not None:  # so that the cache asks another layer how many tokens it has seen
            layers = past_key_values.layers
            while len(layers) <= self.layer_idx and past_key_values.layer_class_to_replicate is not None:
                layers.append(past_key_values.layer_class_to_replicate())
            layers[self.layer_idx] = DummyLayer()  # type: ignore[no-untyped-call]
        return self.get_submodule(self.name)(hidden_states), None


class NoOutput(nn.Module):
    """A part of a block that adds nothing."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return a zero without dimensions, which costs nothing to add and which a graph loses altogether."""
        return torch.zeros((), dtype=hidden_states.dtype, device=hidden_states.device)
