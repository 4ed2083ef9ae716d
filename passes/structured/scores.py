"""What the heads and neurons of a block are worth; the highest stay.

A unit is a run of neighbouring input columns of the linear that reads it: a key-value head with its query heads in
front of the output projection, a neuron in front of the down projection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def by_weights(reader: Tensor, makers: Iterable[Tensor], units: int) -> Tensor:
    """Return each unit's product of norms, float32 [units]: |W_read[:, unit]| * prod |W_make[unit, :]|.

    Args:
        reader: [out, in], the weight that reads the units.
        makers: [units * rows, any] each, the weights whose output is linear in the unit: up and gate, or the values.
        units: how many there are.
    """
    score = reader.float().view(len(reader), units, -1).square().sum((0, 2)).sqrt()
    for maker in makers:
        score = score * maker.float().reshape(units, -1).norm(dim=1)
    return score


def by_output(reader: Tensor, gram: Tensor) -> Tensor:
    """Return what each unit adds to the output, float32 [units]: mean_t |W_read[:, unit] x_t[unit]|^2.

    Args:
        reader: [out, in], the weight that reads the units.
        gram: float [units, width, width], the mean over tokens of x x^T within each unit.
    """
    units, width, _ = gram.shape
    weight = reader.float().view(len(reader), units, width)
    return torch.einsum("oua,uab,oub->u", weight, gram, weight)


def gram_of(x: Tensor, units: int) -> Tensor:
    """Return the sum over tokens of x x^T within each unit, float32 [units, width, width].

    Args:
        x: float [tokens, in].
        units: how many there are; they share the columns evenly.
    """
    parts = x.float().view(len(x), units, -1).transpose(0, 1)
    return parts.transpose(1, 2) @ parts


def lowest(score: Sequence[float], count: int) -> list[int]:
    """Return the places of the lowest scores, ascending; of equal ones those that come first."""
    return sorted(sorted(range(len(score)), key=lambda i: score[i])[:count])
