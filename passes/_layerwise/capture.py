"""Calibration windows at the door of the first block, and all that each block is called with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.data.examples import Examples
from compress.errors import BadData
from passes._layerwise.stream import Stream
from passes._train import draw, inputs_of

_HELD_OUT = 8  # one calibration window in so many

Call = tuple[tuple[Any, ...], dict[str, Any]]
Rows = tuple[Examples, Sequence[int]]  # some rows of examples


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Calibration windows that go through the blocks together.

    Attributes:
        calls: per block, all that it is called with but the hidden states.
        real: bool [batch, tokens], False = padding.
        held_out: whether they are for checking alone.
    """

    calls: tuple[Call, ...]
    real: Tensor
    held_out: bool


def windows(artifact: Artifact, batch: int, context: Context, what: str, *streams: Stream) -> list[Chunk]:
    """Return the calibration windows, and put into the streams what the first block reads, unless they are further.

    Windows that are held out, a random eighth and one at least, come last.  No block is run, nor its weights read.

    Args:
        artifact: whose model and tokenizer are used; what lies outside its blocks stands on the context's device.
        batch: windows at once.
        context: data, device and seed.
        what: who needs them, for the message.
        streams: of hidden states, each to be led through the blocks.

    Raises:
        BadData: there are fewer than two, or no data.
    """
    if "calibration" not in context.data:
        raise BadData(f"calibration: {what} needs data, and got none; [data.calibration] gives some")
    examples = context.data["calibration"].examples(artifact.tokenizer)
    count = len(examples)
    if count < 2:
        raise BadData(f"calibration: {what} needs 2 windows or more, one to judge by, got {count}")
    order = draw(0, count, count, context.seed)
    split = count - max(count // _HELD_OUT, 1)
    return lead(artifact, [(examples, order[:split])], [(examples, order[split:])], batch, context.device, *streams)


def lead(
    artifact: Artifact,
    taken: Sequence[Rows],
    held_out: Sequence[Rows],
    batch: int,
    device: torch.device,
    *streams: Stream,
) -> list[Chunk]:
    """Return rows as chunks, those that are held out last, and put what the first block reads into the streams.

    Args:
        artifact: as for `windows`.
        taken: rows of examples.
        held_out: rows for checking alone.
        batch: rows at once.
        device: where what lies outside the blocks stands.
        streams: of hidden states; what is further in them stays where it is.
    """
    pool: list[Tensor] = []
    chunks: list[Chunk] = []
    for (examples, rows), checks in [*((t, False) for t in taken), *((h, True) for h in held_out)]:
        for at in range(0, len(rows), batch):
            inputs = inputs_of(artifact.model, examples.batch(rows[at : at + batch]), device)
            found, hidden = calls(artifact.model, inputs)
            for stream in streams:
                stream.enter(len(chunks), hidden)
            real = inputs["attention_mask"].bool()
            chunks.append(Chunk(calls=_shared(found, pool, {}), real=real, held_out=checks))
    return chunks


def calls(model: PreTrainedModel, inputs: dict[str, Any]) -> tuple[tuple[Call, ...], Tensor]:
    """Return what each block is called with, and the hidden states that the first one is."""
    doors: list[_Door] = []
    with _doors(model, doors), torch.no_grad():
        tree.backbone(model)(**inputs)
    return tuple(d.call for d in doors), doors[0].hidden


@contextmanager
def ended(model: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """While this lasts, the last block of the model gives these hidden states whatever it reads, and none is run."""
    doors: list[_Door] = []
    with _doors(model, doors):
        doors[-1].given = hidden
        yield


class _Door(nn.Module):
    """Stands where a block stands: notes what it is called with and lets the hidden states through as they are.

    Where some are `given`, these come out instead.
    """

    call: Call
    hidden: Tensor
    given: Tensor | None = None

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block  # no child of this module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the hidden states."""
        self.call, self.hidden = (args, kwargs), hidden_states
        return hidden_states if self.given is None else self.given


@contextmanager
def _doors(model: PreTrainedModel, doors: list[_Door]) -> Iterator[None]:
    """Put a door in the place of every block."""
    blocks = tree.blocks(model)
    doors.extend(_Door(block) for block in blocks.values())
    for name, door in zip(blocks, doors, strict=True):
        tree.replace_(model, name, door)
    try:
        yield
    finally:
        for name, block in blocks.items():
            tree.replace_(model, name, block)


def _shared(value: Any, pool: list[Tensor], known: dict[int, Tensor]) -> Any:
    """Return the same with each tensor replaced by an equal one of the pool, where new ones go: masks and tables recur.

    What blocks are called with is the same for most blocks, and for most windows of one length.

    Args:
        value: tensors, and whatever holds them.
        pool: all tensors so far.
        known: by identity, those of this value that were compared already.
    """
    if isinstance(value, Tensor):
        if id(value) not in known:
            kind = (value.shape, value.dtype, value.device)
            alike = (t for t in pool if (t.shape, t.dtype, t.device) == kind and torch.equal(t, value))
            known[id(value)] = next(alike, value)
            if known[id(value)] is value:
                pool.append(value)
        return known[id(value)]
    if isinstance(value, tuple | list):
        return type(value)(_shared(v, pool, known) for v in value)
    return {k: _shared(v, pool, known) for k, v in value.items()} if isinstance(value, dict) else value
