"""Codes and what they stand for as the arrays that kernels read; the codes themselves never change."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from compress.facts import GridFact
from compress.grid import Grid, groups, pack

BLOCKS = (256, 128, 64, 32, 16)  # inputs that share a scale in MatMulNBits; the larger, the faster


def stored_bits(bits: int, blocks: bool = True) -> int:
    """Return how many bits of the file hold a code: blocks know 2, 4 and 8, types of tensors 4 and 8."""
    return next(b for b in ((2, 4, 8) if blocks else (4, 8)) if b >= bits)


def block_size(fact: GridFact, inputs: int) -> int | None:
    """Return the block of MatMulNBits whose repeated scales say just what the grid says, None where none does.

    A group holds a whole number of blocks; a row of one group takes the blocks that need the fewest bytes.
    """
    if groups(inputs, fact.group_size) > 1:
        return next((b for b in BLOCKS if fact.group_size and fact.group_size % b == 0), None)
    return min(BLOCKS, key=lambda b: -(-inputs // b) * (b * stored_bits(fact.bits) // 8 + 4))


def blocks(grid: Grid, size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what MatMulNBits reads: codes low bits first, blocks along the inputs, the last one filled with 0.

    Args:
        grid: of the linear `[out, in]`.
        size: of a block, from `block_size`.

    Returns:
        Codes uint8 `[out, blocks, size * bits / 8]`, scales float32 `[out, blocks]`, and where groups have a code for
        0, these, uint8 `[out, ceil(blocks * bits / 8)]`.
    """
    rows, inputs = grid.codes.shape
    count, bits = -(-inputs // size), stored_bits(grid.bits)
    codes = pack(pad(grid.codes, (0, count * size - inputs)), bits).view(rows, count, -1)
    scale = _repeated(grid.scale, grid, size, count)
    return codes, scale, None if grid.zero is None else pack(_repeated(grid.zero, grid, size, count), bits)


def _repeated(values: Tensor, grid: Grid, size: int, count: int) -> Tensor:
    """Return for every block the value of its group: `[out, groups]` -> `[out, blocks]`."""
    if values.shape[1] == 1:
        return values.expand(-1, count)
    assert grid.group_size is not None
    return values.repeat_interleave(grid.group_size // size, dim=1)[:, :count]


def columns(values: Tensor) -> Tensor:
    """Return values of groups `[out, groups]` for weights `[in, out]`: `[groups, out]`, or `[out]` of whole rows."""
    turned = values.t().contiguous()
    return turned[0] if len(turned) == 1 else turned


def constants(codes: Tensor, bits: int) -> np.ndarray:
    """Return codes as the array of a type of tensors: int4, int8, or the very bytes of floats of 8 bits."""
    if codes.dtype == torch.float8_e4m3fn:
        return codes.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    kind: Any = np.int8 if stored_bits(bits, blocks=False) == 8 else ml_dtypes.int4
    return codes.numpy().astype(kind)


def offsets(grid: Grid) -> tuple[int, int, Tensor]:
    """Return the groups, the inputs of one, and the offsets `[groups, out]`, which the sums over groups multiply."""
    assert grid.offset is not None
    size = grid.group_size or grid.codes.shape[1]
    return grid.offset.shape[1], size, grid.offset.t().contiguous()
