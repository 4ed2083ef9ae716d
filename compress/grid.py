"""The grid of a quantized linear: integer codes and what they stand for, which exporters pack as they are.

A weight is `scale * (code - zero)`, or `scale * code + offset`, with one scale (and zero, and offset) for every
`group_size` neighbours along the inputs, the last group of a row being shorter where they do not divide it.  On disk
codes are packed to as many bits as they have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from compress import tensors
from compress.errors import BrokenPromise
from compress.facts import GridFact
from compress.tensors import Layout, Place

Activation = Literal["none", "dynamic"]
BITS = (2, 3, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The codes of one linear's weight and what they stand for.

    Attributes:
        bits: of a code: 2, 3, 4 or 8.
        group_size: inputs that share a scale; None = a whole row.
        codes: int8 `[out, in]`, from -2^(bits-1) to 2^(bits-1) - 1.
        scale: float32 `[out, groups]`, above 0.
        zero: int8 `[out, groups]`, the code that stands for 0; None = 0 (symmetric).
        offset: float32 `[out, groups]`, added to the weight; None = none.  Never together with `zero`.
        activation: what the linear reads: floats (`none`), or integers of 8 bits, scaled when they come (`dynamic`).

    Raises:
        ValueError: they do not fit each other, a code is out of range, or a scale is not finite and above 0.
    """

    bits: int
    group_size: int | None
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    offset: Tensor | None = None
    activation: Activation = "none"

    def __post_init__(self) -> None:
        """Raise `ValueError` unless this is a grid."""
        if self.bits not in BITS:
            raise ValueError(f"codes of {self.bits} bits; there are grids of {', '.join(map(str, BITS))}")
        if self.codes.dtype != torch.int8 or self.codes.dim() != 2:
            raise ValueError(f"codes must be int8 [out, in], got {self.codes.dtype} {list(self.codes.shape)}")
        if self.group_size is not None and not 0 < self.group_size <= self.codes.shape[1]:
            raise ValueError(f"group_size {self.group_size} does not fit {self.codes.shape[1]} inputs")
        if self.zero is not None and self.offset is not None:
            raise ValueError("a grid has a zero or an offset, not both")
        expected = (self.codes.shape[0], groups(self.codes.shape[1], self.group_size))
        kinds = {"scale": torch.float32, "zero": torch.int8, "offset": torch.float32}
        for name, dtype in kinds.items():
            given = getattr(self, name)
            if given is not None and (given.dtype != dtype or tuple(given.shape) != expected):
                what = f"{given.dtype} {list(given.shape)}"
                raise ValueError(f"{name} must be {dtype} {list(expected)}, got {what}")
        if not bool((self.scale > 0).all() and self.scale.isfinite().all()):
            raise ValueError("every scale must be finite and above 0")
        if self.offset is not None and not bool(self.offset.isfinite().all()):
            raise ValueError("every offset must be finite")
        low, high = bounds(self.bits)
        for name, given in (("code", self.codes), ("zero", self.zero)):
            if given is not None and given.numel() and not low <= int(given.min()) <= int(given.max()) <= high:
                raise ValueError(f"every {name} of {self.bits} bits must be from {low} to {high}")

    @property
    def fact(self) -> GridFact:
        """What is known of it without its values."""
        return GridFact(
            bits=self.bits,
            group_size=self.group_size,
            zero=self.zero is not None,
            offset=self.offset is not None,
            activation=self.activation,
        )

    def dequantized(self) -> Tensor:
        """Return the weight, float32 `[out, in]`."""
        steps = self.codes.float()
        if self.zero is not None:
            steps -= self._spread(self.zero.float())
        weight = steps.mul_(self._spread(self.scale))
        return weight if self.offset is None else weight.add_(self._spread(self.offset))

    def check(self, name: str, weight: Tensor, mask: Tensor | None) -> None:
        """Raise `BrokenPromise` unless a linear's weight is what the codes stand for, and 0 where its mask prunes."""
        if weight.shape != self.codes.shape:
            raise BrokenPromise(f"{name}: has codes {list(self.codes.shape)} for a weight {list(weight.shape)}")
        stands_for = self.dequantized().to(weight)
        if not torch.equal(stands_for, weight):
            off = int((stands_for != weight).sum())
            raise BrokenPromise(f"{name}: {off} of {weight.numel()} weights differ from what their codes stand for")
        if mask is not None and bool(stands_for[~mask.to(weight.device)].any()):
            raise BrokenPromise(f"{name}: codes that the mask prunes do not stand for 0")

    def to(self, device: torch.device) -> Grid:
        """Return the grid on a device."""
        moved = {n: t.to(device) for n, t in self._tensors().items()}
        return Grid(bits=self.bits, group_size=self.group_size, activation=self.activation, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        every = {"codes": self.codes, "scale": self.scale, "zero": self.zero, "offset": self.offset}
        return {n: t for n, t in every.items() if t is not None}

    def _spread(self, values: Tensor) -> Tensor:
        return spread(values, self.codes.shape[1], self.group_size)


def facts(grids: Mapping[str, Grid]) -> dict[str, GridFact]:
    """Return what is known of grids without their values; each is read by itself."""
    return {name: grids[name].fact for name in grids}


def bounds(bits: int) -> tuple[int, int]:
    """Return the lowest and the highest code."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def groups(inputs: int, group_size: int | None) -> int:
    """Return how many groups a row has."""
    return -(-inputs // group_size) if group_size else 1


def spread(values: Tensor, inputs: int, group_size: int | None) -> Tensor:
    """Return for every input the value of its group: `[out, groups]` -> `[out, inputs]`."""
    if group_size is None:
        return values.expand(-1, inputs)
    return values.repeat_interleave(group_size, dim=1)[:, :inputs]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return rows of codes as rows of bytes, uint8 `[rows, ceil(columns * bits / 8)]`.

    A code is stored as `code + 2^(bits-1)`; code k of a row begins at bit k * bits, lowest bits first.
    """
    unsigned = (codes.to(torch.int16) - bounds(bits)[0]).to(torch.uint8).cpu().numpy()
    single = np.unpackbits(unsigned[..., None], axis=-1, bitorder="little")[..., :bits]
    return torch.from_numpy(np.packbits(single.reshape(len(unsigned), -1), axis=1, bitorder="little"))


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Return the codes that `pack` packed, int8 `[rows, columns]`."""
    single = np.unpackbits(packed.numpy(), axis=1, count=columns * bits, bitorder="little")
    whole = np.packbits(single.reshape(len(packed), columns, bits), axis=-1, bitorder="little")[..., 0]
    return (torch.from_numpy(whole).to(torch.int16) + bounds(bits)[0]).to(torch.int8)


class StoredGrids(Mapping[str, Grid]):
    """The grids of a file that `write` wrote, read at each access.

    Args:
        path: the file.
        cards: what `card` returned of each.
    """

    def __init__(self, path: Path, cards: Mapping[str, Mapping[str, Any]]) -> None:
        self._places, self._cards = tensors.places(path), cards

    def __getitem__(self, name: str) -> Grid:
        return _read(name, self._cards[name], self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)


class KeptGrids(MutableMapping[str, Grid]):
    """Grids that go to a folder as soon as they are set, a file each.

    Args:
        folder: where they go.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._cards = folder, dict[str, dict[str, Any]]()

    def __getitem__(self, name: str) -> Grid:
        return _read(name, self._cards[name], tensors.places(self._path(name)))

    def __setitem__(self, name: str, grid: Grid) -> None:
        write(self._path(name), {name: grid})
        self._cards[name] = card(grid)

    def __delitem__(self, name: str) -> None:
        del self._cards[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def card(grid: Grid) -> dict[str, Any]:
    """Return what must be known to read a grid, as JSON."""
    return {
        "bits": grid.bits,
        "group_size": grid.group_size,
        "shape": list(grid.codes.shape),
        "activation": grid.activation,
    }


def write(path: Path, grids: Mapping[str, Grid]) -> None:
    """Write grids, of which one is held at a time; codes are packed."""
    layouts: dict[str, Layout] = {}
    for name in grids:
        grid = grids[name]
        rows, inputs = grid.codes.shape
        for part, tensor in grid._tensors().items():
            layouts[f"{name}.{part}"] = Layout(tensor.dtype, tuple(tensor.shape))
        layouts[f"{name}.codes"] = Layout(torch.uint8, (rows, -(-inputs * grid.bits // 8)))

    def read(key: str) -> Tensor:
        name, _, part = key.rpartition(".")
        grid = grids[name]
        return pack(grid.codes, grid.bits) if part == "codes" else grid._tensors()[part]

    tensors.write(path, layouts, read)


def _read(name: str, about: Mapping[str, Any], places: Mapping[str, Place]) -> Grid:
    parts = ("codes", "scale", "zero", "offset")
    found = {p: places[f"{name}.{p}"].read() for p in parts if f"{name}.{p}" in places}
    found["codes"] = unpack(found["codes"], about["bits"], about["shape"][1])
    return Grid(bits=about["bits"], group_size=about["group_size"], activation=about["activation"], **found)
