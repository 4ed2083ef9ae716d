"""What blocks are called with, on disk: tensors in a safetensors file, and how they lie in the calls in JSON.

Workers read from there what one batch needs, so that no process holds more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import files, tensors
from compress.errors import BadModel
from compress.tensors import Layout, Place
from passes._layerwise import Call, Chunk

_CARD, _TENSORS = "chunks.json", "chunks.safetensors"
_TENSOR = "tensor"  # the key of an entry that stands for a tensor, which no argument of a block is called

_Pool = dict[int, tuple[str, Tensor]]  # by identity, tensors and what they are called on disk


def pack(folder: Path, chunks: Sequence[Chunk]) -> None:
    """Write chunks into an existing folder, unless it has them.

    Raises:
        BadModel: a block is called with something that is neither a tensor nor JSON.
    """
    if (folder / _CARD).exists():
        return
    pool: _Pool = {}
    card = [
        {
            "held_out": c.held_out,
            "real": _packed(c.real, pool),
            "calls": [_packed(list(call), pool) for call in c.calls],
        }
        for c in chunks
    ]
    named = dict(pool.values())
    layouts = {n: Layout(t.dtype, tuple(t.shape)) for n, t in named.items()}
    tensors.write(folder / _TENSORS, layouts, lambda name: named[name])
    files.write_json(folder / _CARD, card)


class Packed:
    """What `pack` wrote, read as it is asked for.

    Args:
        folder: where.
        index: of the block whose calls are wanted.
        device: of the tensors.

    Attributes:
        training: the numbers of the chunks to train on.
        held_out: and of those to judge by.
    """

    def __init__(self, folder: Path, index: int, device: torch.device) -> None:
        self._places, self._index, self._device = tensors.places(folder / _TENSORS), index, device
        self._card = files.read_json(folder / _CARD)
        self.training, self.held_out = (
            [n for n, chunk in enumerate(self._card) if chunk["held_out"] is held_out] for held_out in (False, True)
        )

    def real(self, number: int) -> Tensor:
        """Return which tokens of a chunk are no padding, bool [batch, tokens]."""
        found: Tensor = _unpacked(self._card[number]["real"], self._places).to(self._device)
        return found

    def call(self, number: int, dtype: torch.dtype) -> Call:
        """Return what the block is called with for a chunk beside hidden states, floats in this precision."""
        args, kwargs = _put(_unpacked(self._card[number]["calls"][self._index], self._places), self._device, dtype)
        return tuple(args), kwargs


def _packed(value: Any, pool: _Pool) -> Any:
    """Return the same as JSON, tensors by their place in the pool."""
    if isinstance(value, Tensor):
        name, _ = pool.setdefault(id(value), (f"t{len(pool)}", value))
        return {_TENSOR: name}
    if isinstance(value, tuple | list):
        return [_packed(v, pool) for v in value]
    if isinstance(value, dict):
        return {k: _packed(v, pool) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BadModel(f"blocks are called with a {type(value).__name__}, which cannot be kept on disk for other processes")


def _unpacked(value: Any, places: dict[str, Place]) -> Any:
    if isinstance(value, list):
        return tuple(_unpacked(v, places) for v in value)
    if isinstance(value, dict):
        read = value.keys() == {_TENSOR}
        return places[value[_TENSOR]].read() if read else {k: _unpacked(v, places) for k, v in value.items()}
    return value


def _put(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the same on a device, floats in a precision."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, tuple):
        return tuple(_put(v, device, dtype) for v in value)
    return {k: _put(v, device, dtype) for k, v in value.items()} if isinstance(value, dict) else value
