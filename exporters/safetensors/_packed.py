"""The tensors of compressed-tensors: codes take the place of weights in the files of a saved model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from compress import files, tensors
from compress.errors import BrokenPromise
from compress.grid import Grid, pack
from compress.skeleton import INDEX
from compress.tensors import Layout


def pack_(folder: Path, grids: Mapping[str, Grid]) -> None:
    """Replace the weights of quantized linears in a saved model's files, one tensor in memory at a time.

    Raises:
        BrokenPromise: no file holds such a weight.
    """
    where: dict[str, str] = {}
    size = 0
    for path in sorted(folder.glob("model*.safetensors")):
        _pack_file_(path, grids)
        held = tensors.places(path)
        where |= dict.fromkeys(held, path.name)
        size += sum(place.layout.size for place in held.values())
    if gone := [n for n in grids if f"{n}.weight_scale" not in where]:
        raise BrokenPromise(f"{gone[0]}: has codes, and no file of {folder} holds its weight")
    if (folder / INDEX).is_file():
        index = files.read_json(folder / INDEX)
        index["metadata"]["total_size"] = size
        files.write_json(folder / INDEX, index | {"weight_map": dict(sorted(where.items()))})


def coded(grid: Grid) -> dict[str, Tensor]:
    """Return the tensors that a linear has in place of its weight `[out, in]`.

    Packed: `weight_packed` int32 `[out, ceil(in * bits / 32)]`, `weight_scale` float32 `[out, groups]`, `weight_shape`
    and, if asymmetric, `weight_zero_point` int32 `[ceil(out * bits / 32), groups]`.  Where inputs become integers,
    `weight` is the codes, int8 `[out, in]`, and if their scale is static it is `input_scale`, float32 `[1]`.
    """
    if grid.activation != "none":
        step = {} if grid.input_scale is None else {"input_scale": grid.input_scale.view(1)}
        return {"weight": grid.codes, "weight_scale": grid.scale, **step}
    zero = {} if grid.zero is None else {"weight_zero_point": words(grid.zero.t(), grid.bits).t()}
    packed = words(grid.codes, grid.bits)
    return {"weight_packed": packed, "weight_scale": grid.scale, "weight_shape": torch.tensor(grid.codes.shape), **zero}


def words(codes: Tensor, bits: int) -> Tensor:
    """Return rows of codes as rows of words, int32 `[rows, ceil(columns * bits / 32)]`, lowest bits first."""
    packed = pack(codes, bits)
    padded = functional.pad(packed, (0, -packed.shape[1] % 4))
    return padded.reshape(-1).view(torch.int32).view(len(padded), padded.shape[1] // 4)  # rows may lie apart


def _pack_file_(path: Path, grids: Mapping[str, Grid]) -> None:
    """Write one file anew."""
    held = tensors.places(path)
    quantized = [n for n in grids if f"{n}.weight" in held]
    made = lru_cache(maxsize=1)(lambda name: coded(grids[name]))  # tensors of one linear are asked for in a row
    layouts = {key: place.layout for key, place in held.items()}
    owners: dict[str, str] = {}
    for name in quantized:
        del layouts[f"{name}.weight"]
        for part, tensor in made(name).items():
            layouts[f"{name}.{part}"] = Layout(tensor.dtype, tuple(tensor.shape))
            owners[f"{name}.{part}"] = name

    def get(key: str) -> Tensor:
        owner = owners.get(key)
        return made(owner)[key.rpartition(".")[2]] if owner else held[key].read()

    tensors.write(path, layouts, get)
