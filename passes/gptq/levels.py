"""Steps of a grid and what stands on them: a level is a code less the zero, so that a weight is scale times level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.facts import GridFact
from compress.grid import Grid, bounds, spread
from passes._quant import Steps


@dataclass(frozen=True)
class Ladder:
    """The steps of one linear.

    Attributes:
        fact: of its grid.
        scale: float32 `[out, groups]`.
        zero: float32 `[out, groups]`, whole numbers.
    """

    fact: GridFact
    scale: Tensor
    zero: Tensor

    @staticmethod
    def of(steps: Steps, fact: GridFact) -> Ladder:
        """Return steps as a ladder."""
        zero = torch.zeros_like(steps.scale) if steps.zero is None else steps.zero.float()
        return Ladder(fact, steps.scale, zero)

    def group(self, column: int) -> int:
        """Return the group of an input."""
        return column // self.fact.group_size if self.fact.group_size else 0

    def nearest(self, wanted: Tensor, group: int) -> Tensor:
        """Return the nearest levels of one group's column: clamped first, then rounded half to even.

        Args:
            wanted: weights over the scale, `[out]`.
            group: its number.
        """
        low, high = bounds(self.fact.bits)
        zero = self.zero[:, group]
        return torch.clamp(wanted, low - zero, high - zero).round_()

    def weight(self, levels: Tensor) -> Tensor:
        """Return the weight of levels `[out, in]`."""
        return levels * spread(self.scale, levels.shape[1], self.fact.group_size)

    def grid(self, levels: Tensor) -> Grid:
        """Return levels `[out, in]` as a grid."""
        codes = levels + spread(self.zero, levels.shape[1], self.fact.group_size)
        zero = self.zero.to(torch.int8) if self.fact.zero else None
        return Grid(
            bits=self.fact.bits, group_size=self.fact.group_size, codes=codes.to(torch.int8),
            scale=self.scale, zero=zero, activation=self.fact.activation,
        )  # fmt: skip
