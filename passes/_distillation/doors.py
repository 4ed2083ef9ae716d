"""What the parent's blocks read and give, on disk block by block as long as somebody learns from it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from compress import tensors
from passes._layerwise import Chunk, Stream, pass_


class Doors:
    """The hidden states of all chunks at the doors of blocks; what a block gives stands at the door of the next.

    Args:
        folder: for the files; made if it is not there.
        stream: the parent's hidden states, which are led on by `lead_`.
        chunks: the windows.
    """

    def __init__(self, folder: Path, stream: Stream, chunks: Sequence[Chunk]) -> None:
        self._folder, self._stream, self._chunks = folder, stream, chunks

    def lead_(self, index: int, block: nn.Module, *, wanted: bool) -> None:
        """Lead the chunks past a block of the parent, all of them being at its door or beyond it.

        Args:
            index: the block's number.
            block: with its weights.
            wanted: whether what it reads and gives is kept.
        """
        if wanted:
            self._keep(index)
        pass_(block, index, self._chunks, self._stream)
        if wanted:
            self._keep(index + 1)

    def forget(self, index: int) -> None:
        """Give the room of a door back, if it takes any."""
        shutil.rmtree(_door(self._folder, index), ignore_errors=True)

    def _keep(self, index: int) -> None:
        """Keep the chunks that stand at a door."""
        door = _door(self._folder, index)
        door.mkdir(parents=True, exist_ok=True)
        for number in range(len(self._chunks)):
            path = door / _file(number)
            if self._stream.at(number) == index and not path.exists():
                self._stream.keep(number, path)


def read(folder: Path, index: int, number: int, device: torch.device) -> Tensor:
    """Return a chunk's hidden states at a door, [batch, tokens, hidden]."""
    return tensors.places(_door(folder, index) / _file(number))["hidden"].read().to(device)


def _door(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}"


def _file(number: int) -> str:
    return f"{number:05d}.safetensors"
