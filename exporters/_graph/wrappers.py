"""Models as functions of plain tensors, which is what can be traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from compress import tree
from compress.facts import Task

# Added to the scores of forbidden positions.  Not -inf, so that rows of padding alone stay finite; not the lowest
# float16 either, which a negative score would push to -inf.
MASKED = -3e4


@dataclass(frozen=True, kw_only=True)
class KeyValues:
    """One layer that keeps keys and values: its index among the blocks, its heads and their width."""

    layer: int
    heads: int
    head_dim: int


def kept(model: PreTrainedModel) -> list[KeyValues]:
    """Return which layers keep keys and values, by running one token."""
    layers = [_Kept() for _ in tree.blocks(model)]
    model(input_ids=torch.ones(1, 1, dtype=torch.int64), past_key_values=Cache(layers=[*layers]), use_cache=True)
    shapes = {i: layer.keys.shape for i, layer in enumerate(layers) if layer.keys is not None}
    return [KeyValues(layer=i, heads=shape[1], head_dim=shape[3]) for i, shape in shapes.items()]


class Decoder(nn.Module):
    """A causal model whose past is plain tensors.

    Args:
        model: the task model.
        layers: those that keep keys and values.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[KeyValues]) -> None:
        super().__init__()
        self.model = model
        self.layers = [k.layer for k in layers]
        self.blocks = len(tree.blocks(model))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Any, Any]]]:
        """Return logits float32 `[batch, sequence, vocabulary]` and keys and values, old and new, of the layers."""
        given = dict(zip(self.layers, past, strict=True))
        layers = [_Kept(*given.get(i, ())) for i in range(self.blocks)]
        result = self.model(
            input_ids=input_ids,
            attention_mask=_causal(self.model, attention_mask, input_ids.shape[1]),
            position_ids=position_ids,
            past_key_values=Cache(layers=[*layers]),
            use_cache=True,
        )
        return result.logits.float(), [(layers[i].keys, layers[i].values) for i in self.layers]


class Encoder(nn.Module):
    """A model that reads a text at once and returns labels, one number, or the mean of its last hidden states.

    Args:
        model: the task model.
        task: any but causal-lm.
    """

    def __init__(self, model: PreTrainedModel, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.forth = self._after if tree.family(model).decoder else self._within

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return float32 `[batch, labels]`, or for embeddings `[batch, hidden]`."""
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        output = self.forth(input_ids, attention_mask, types).float()
        if self.task != "embedding":
            return output
        weights = attention_mask[:, :, None].float()
        return (output * weights).sum(1) / weights.sum(1).clamp(min=1)

    def _within(self, input_ids: Tensor, attention_mask: Tensor, types: Tensor) -> Tensor:
        """Every token sees every other."""
        mask = _additive(self.model, (attention_mask > 0)[:, None, None, :])
        result = self.model(input_ids=input_ids, attention_mask=mask, token_type_ids=types)
        output: Tensor = result.last_hidden_state if self.task == "embedding" else result.logits
        return output

    def _after(self, input_ids: Tensor, attention_mask: Tensor, types: Tensor) -> Tensor:
        """Every token sees those before it, so that the last real one has seen the whole text."""
        output: Tensor = tree.backbone(self.model)(
            input_ids=input_ids,
            attention_mask=_causal(self.model, attention_mask, input_ids.shape[1]),
            position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
        if self.task == "embedding":
            return output
        last = (attention_mask * torch.arange(attention_mask.shape[1])).argmax(-1)
        chosen = output.gather(1, last[:, None, None].expand(-1, 1, output.shape[-1]))
        head: Any = self.model.score
        logits: Tensor = head(chosen)[:, 0]
        return logits


class _Kept(DynamicLayer):
    """A cache layer that may start with keys and values `[batch, heads, past, head_dim]`."""

    keys: Tensor | None
    values: Tensor | None

    def __init__(self, *given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if given:
            self.lazy_initialization(*given)
            self.keys, self.values = given


def _causal(model: PreTrainedModel, attention_mask: Tensor, new: int) -> Tensor | dict[str, Tensor]:
    """Return the additive mask `[batch, 1, new, total]`, or where layers with a window and without mix, one of each.

    A token sees itself and the real tokens before it; with a window, only the last `window` of these.
    """
    config: Any = model.config
    total = attention_mask.shape[1]
    keys = torch.arange(total)[None, :]
    queries = (torch.arange(new) + (total - new))[:, None]
    real = (attention_mask > 0)[:, None, None, :]
    full = _additive(model, (keys <= queries)[None, None] & real)
    window: int | None = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if window is None or "sliding_attention" not in kinds:
        return full
    sliding = _additive(model, ((keys <= queries) & (keys > queries - window))[None, None] & real)
    return {"full_attention": full, "sliding_attention": sliding} if len(kinds) > 1 else sliding


def _additive(model: PreTrainedModel, allowed: Tensor) -> Tensor:
    return torch.where(allowed, torch.zeros((), dtype=model.dtype), torch.full((), MASKED, dtype=model.dtype))
