"""Grids on disk: codes packed to as many bits as they have (floats as they are), one grid read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import tensors
from compress.facts import GridFact
from compress.grid import Grid, pack, unpack
from compress.tensors import Layout, Place


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


def facts(grids: Mapping[str, Grid]) -> dict[str, GridFact]:
    """Return what is known of grids without their values; each is read by itself."""
    return {name: grids[name].fact for name in grids}


def card(grid: Grid) -> dict[str, Any]:
    """Return what must be known to read a grid, as JSON."""
    return {
        "bits": grid.bits,
        "group_size": grid.group_size,
        "shape": list(grid.codes.shape),
        "activation": grid.activation,
        "format": grid.fact.format,
    }


def write(path: Path, grids: Mapping[str, Grid]) -> None:
    """Write grids, of which one is held at a time; codes are packed."""
    layouts: dict[str, Layout] = {}
    for name in grids:
        grid = grids[name]
        rows, inputs = grid.codes.shape
        for part, tensor in grid.tensors.items():
            layouts[f"{name}.{part}"] = Layout(tensor.dtype, tuple(tensor.shape))
        kept = torch.uint8 if _packs(grid) else grid.codes.dtype
        layouts[f"{name}.codes"] = Layout(kept, (rows, -(-inputs * grid.bits // 8)))

    def read(key: str) -> Tensor:
        name, _, part = key.rpartition(".")
        grid = grids[name]
        return pack(grid.codes, grid.bits) if part == "codes" and _packs(grid) else grid.tensors[part]

    tensors.write(path, layouts, read)


def _packs(grid: Grid) -> bool:
    return grid.codes.dtype == torch.int8


def _read(name: str, about: Mapping[str, Any], places: Mapping[str, Place]) -> Grid:
    parts = ("codes", "scale", "zero", "offset", "input_scale")
    found = {p: places[f"{name}.{p}"].read() for p in parts if f"{name}.{p}" in places}
    if found["codes"].dtype == torch.uint8:
        found["codes"] = unpack(found["codes"], about["bits"], about["shape"][1])
    return Grid(bits=about["bits"], group_size=about["group_size"], activation=about["activation"], **found)
