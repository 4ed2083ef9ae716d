"""What the heads and neurons of a block are worth; the highest stay.

A unit is a run of neighbouring input columns of the linear that reads it: a key-value head with its query heads in
front of the output projection, a neuron in front of the down projection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from passes import _masks


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


def keep(score: Tensor, count: int, group: int = 1) -> Tensor:
    """Return the units that stay, int64 [count] ascending: those of the highest score, the later ones of equals.

    Args:
        score: float [units].
        count: how many; a multiple of the group.
        group: how many neighbours stay or go together, by the sum of their scores; divides the units.
    """
    together = score.view(-1, group).sum(1)
    groups = _masks.keep_n_of_m(together.view(1, -1), count // group, len(together)).view(-1).nonzero().view(-1)
    return (groups[:, None] * group + torch.arange(group, device=groups.device)).reshape(-1).cpu()


def lowest(score: Sequence[float], count: int) -> list[int]:
    """Return the places of the lowest scores, ascending; of equal ones those that come first."""
    return sorted(sorted(range(len(score)), key=lambda i: score[i])[:count])
