"""Masks on disk: a bit a weight, unpacked one at a time when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress import tensors
from compress.tensors import Layout, Place

Shape = tuple[int, int]


class StoredMasks(Mapping[str, Tensor]):
    """The masks of a file that `write` wrote: bool `[out, in]` by linear, a tensor of its own at each access.

    Args:
        path: the file.
        shapes: of the masks, since bits are padded to whole bytes.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Shape]) -> None:
        places = tensors.places(path)
        self._places = {n: (places[n], inputs) for n, (_, inputs) in shapes.items()}

    def __getitem__(self, name: str) -> Tensor:
        return _unpacked(*self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class KeptMasks(MutableMapping[str, Tensor]):
    """Masks that are packed into a folder as soon as they are set, a file each.

    Args:
        folder: where they go.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._inputs = folder, dict[str, int]()

    def __getitem__(self, name: str) -> Tensor:
        inputs = self._inputs[name]
        return _unpacked(tensors.places(self._path(name))[name], inputs)

    def __setitem__(self, name: str, mask: Tensor) -> None:
        write(self._path(name), {name: mask}, {name: (mask.shape[0], mask.shape[1])})
        self._inputs[name] = mask.shape[1]

    def __delitem__(self, name: str) -> None:
        del self._inputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def write(path: Path, masks: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> None:
    """Write masks, each asked for once; the first weight of a row is the highest bit of its first byte."""
    packed = {n: Layout(torch.uint8, (rows, -(-inputs // 8))) for n, (rows, inputs) in shapes.items()}
    tensors.write(path, packed, lambda name: torch.from_numpy(np.packbits(masks[name].cpu().numpy(), axis=1)))


def _unpacked(place: Place, inputs: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(place.read().numpy(), axis=1, count=inputs).view(bool))
