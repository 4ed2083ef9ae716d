"""Hidden states on their way through the blocks: on disk for whoever resumes, and in memory where they fit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from compress import files, tensors
from compress.tensors import Layout

MEMORY = 2**30  # bytes of one stream that are held in memory; what is more is read from disk, chunk by chunk


class Stream:
    """The hidden states of every chunk, each at the door of some block, overwritten as they pass on.

    A chunk's file bears the block's number, so that each is found again where it was.

    Args:
        folder: for the files; made if it is not there.
        device: of the tensors.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device, self._memory = folder, device, dict[int, Tensor]()
        folder.mkdir(parents=True, exist_ok=True)
        self._at: dict[int, int] = {}
        for path in sorted(folder.glob("*.safetensors")):
            chunk, block = map(int, path.stem.split("-"))
            if chunk in self._at:  # killed between two files: the later one is whole
                self._path(chunk).unlink()
            self._at[chunk] = block

    def enter(self, chunk: int, hidden: Tensor) -> None:
        """Put a chunk at the door of the first block, unless it is further already."""
        if chunk not in self._at:
            self.put(chunk, 0, hidden)

    def at(self, chunk: int) -> int:
        """Return the number of the block at whose door a chunk is."""
        return self._at[chunk]

    def passed(self, block: int) -> bool:
        """Tell whether every chunk is past the block of this number."""
        return all(at > block for at in self._at.values())

    def get(self, chunk: int) -> Tensor:
        """Return a chunk's hidden states, [batch, tokens, hidden]."""
        if chunk in self._memory:
            return self._memory[chunk]
        hidden = tensors.places(self._path(chunk))["hidden"].read().to(self._device)
        self._hold(chunk, hidden)
        return hidden

    def put(self, chunk: int, block: int, hidden: Tensor) -> None:
        """Put a chunk at the door of a block and forget what it was."""
        old = self._path(chunk) if chunk in self._at else None
        self._memory.pop(chunk, None)
        self._at[chunk] = block
        layout = Layout(hidden.dtype, tuple(hidden.shape))
        tensors.write(self._path(chunk), {"hidden": layout}, lambda _: hidden)
        if old:
            old.unlink()
        self._hold(chunk, hidden)

    def keep(self, chunk: int, path: Path) -> None:
        """Let a chunk's file stand at a second place too, where it stays when the chunk passes on."""
        partial = path.with_name(f"{path.name}.new")
        partial.unlink(missing_ok=True)
        with files.disk_errors(path):
            files.link(str(self._path(chunk)), str(partial))
            partial.replace(path)

    def _hold(self, chunk: int, hidden: Tensor) -> None:
        if sum(h.nbytes for h in self._memory.values()) + hidden.nbytes <= MEMORY:
            self._memory[chunk] = hidden

    def _path(self, chunk: int) -> Path:
        return self._folder / f"{chunk:05d}-{self._at[chunk]:05d}.safetensors"
