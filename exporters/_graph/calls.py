"""Models as functions of plain tensors with examples of these, their dynamic axes and their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import PreTrainedModel

from compress import tree
from compress.facts import Task
from exporters._graph.wrappers import Decoder, Encoder, KeyValues, kept


@dataclass(frozen=True, kw_only=True)
class Call:
    """What can be traced.

    Attributes:
        module: wraps the model under the name `model`.
        arguments: examples, no two of them one tensor, no size 0 or 1.
        shapes: the dynamic axes of the arguments, in their structure.
        inputs: names of the arguments, flat.
        outputs: names of the results, flat.
        past: the layers that have a past.
    """

    module: nn.Module
    arguments: tuple[Any, ...]
    shapes: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    past: tuple[KeyValues, ...] = ()


def decoder_call(model: PreTrainedModel) -> Call:
    """Return the call of a causal model: of new tokens, behind past keys and values."""
    layers = kept(model)
    batch, sequence, past, total = (Dim(n) for n in ("batch", "sequence", "past", "total"))
    # Three tensors: what is one object here would be one input of the graph.
    tokens = tuple(torch.ones(2, n, dtype=torch.int64) for n in (3, 8, 3))
    pairs = [tuple(torch.zeros(2, k.heads, 5, k.head_dim, dtype=model.dtype) for _ in range(2)) for k in layers]
    pair = {0: batch, 2: past}
    names = [f"{k.layer}.{part}" for k in layers for part in ("key", "value")]
    return Call(
        module=Decoder(model, layers),
        arguments=(*tokens, pairs),
        shapes=({0: batch, 1: sequence}, {0: batch, 1: total}, {0: batch, 1: sequence}, [(pair, pair) for _ in layers]),
        inputs=("input_ids", "attention_mask", "position_ids", *(f"past_key_values.{n}" for n in names)),
        outputs=("logits", *(f"present.{n}" for n in names)),
        past=tuple(layers),
    )


def encoder_call(model: PreTrainedModel, task: Task) -> Call:
    """Return the call of a model that reads a text at once, with types if the model tells them apart."""
    config: Any = model.config
    typed = getattr(config, "type_vocab_size", 1) > 1
    batch, sequence = Dim("batch"), Dim("sequence", max=tree.positions(model))
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if typed else []))
    return Call(
        module=Encoder(model, task),
        arguments=tuple(torch.ones(2, 3, dtype=torch.int64) for _ in names),
        shapes=tuple({0: batch, 1: sequence} for _ in names),
        inputs=names,
        outputs=("embedding" if task == "embedding" else "logits",),
    )
