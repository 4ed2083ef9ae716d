"""Calibration windows on their way through the blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BadData
from passes._train import autocast, draw, inputs_of
from passes.perp.settings import PerpSettings

_HELD_OUT = 8  # one calibration window in so many


@dataclass
class Chunk:
    """Calibration windows that go through the blocks together.

    Attributes:
        calls: per block, all that it is called with but the hidden states.
        hidden: what the current block reads, [batch, tokens, hidden].
        weight: 1 = a token, 0 = padding, [batch, tokens, 1].
        attended: what the current block's attention returns.
    """

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    hidden: Tensor
    weight: Tensor
    attended: Any = None


def chunks_of(artifact: Artifact, settings: PerpSettings, context: Context) -> tuple[list[Chunk], list[Chunk]]:
    """Return the calibration windows to train on and those to judge by, at the door of the first block."""
    examples = context.data["calibration"].examples(artifact.tokenizer)
    count = len(examples)
    if count < 2:
        raise BadData(f"calibration: 'reconstruct' needs 2 windows or more, one to judge by, got {count}")
    order = draw(0, count, count, context.seed)
    split = count - max(count // _HELD_OUT, 1)
    parts = order[:split], order[split:]
    size = settings.batch
    training, held_out = (
        [_chunk(artifact, examples.batch(part[at : at + size]), settings, context) for at in range(0, len(part), size)]
        for part in parts
    )
    return training, held_out


def _chunk(artifact: Artifact, batch: dict[str, Tensor], settings: PerpSettings, context: Context) -> Chunk:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hidden: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden.extend(args[:1] if not hidden else ())
        calls.append((args[1:], kwargs))

    model = artifact.model
    hooks = [b.register_forward_pre_hook(keep, with_kwargs=True) for b in tree.blocks(model).values()]
    inputs = inputs_of(model, batch, context.device)
    try:
        with torch.no_grad(), autocast(settings, context.device):
            tree.backbone(model)(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Chunk(calls=calls, hidden=hidden[0], weight=inputs["attention_mask"].unsqueeze(-1).float())


def first(output: Any) -> Tensor:
    """Return the hidden states of what a block or its attention returned."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def energy(values: Tensor, chunk: Chunk) -> Tensor:
    """Return the mean square over the tokens that are no padding."""
    return (values.float().square() * chunk.weight).sum() / (chunk.weight.sum() * values.shape[-1])
