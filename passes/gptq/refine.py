"""Coordinate descent from a sweep's result: codes, and the scales of groups, move while that lowers the error.

The error of a row is `(w - t) H (w - t)^T`, w = scale * level.  A sweep looks at every column once, with the columns to
come free to be anything; here all others are codes already.  After CDQuant (Nair and Suggala 2024, arXiv 2406.17542),
column after column instead of the best first, so that all rows move at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from passes import _obs
from passes._quant.rounding import FLOOR
from passes.gptq.levels import Ladder

_BLOCK = 128  # columns that are updated at once


def refine(
    levels: Tensor, ladder: Ladder, target: Tensor, hessian: Tensor, mask: Tensor | None, *, steps: bool, cycles: int
) -> tuple[Tensor, Ladder]:
    """Return levels and steps of less error; no row ends with more than it began with.

    Args:
        levels: where to start, `[out, in]`.
        ladder: their steps.
        target: t `[out, in]`.
        hessian: H `[in, in]`, positive definite.
        mask: what may differ from 0.
        steps: whether scales move too.
        cycles: most rounds over all columns; they end when no code moves.
    """
    work = _Descent(levels, ladder, target, hessian, mask)
    for _ in range(cycles):
        if not work.cycle_(steps=steps):
            break
    before, after = (_obs.error(w, target, hessian) for w in (ladder.weight(levels), work.ladder.weight(work.levels)))
    better = (after <= before).unsqueeze(1)
    scale = torch.where(better, work.ladder.scale, ladder.scale)
    return torch.where(better, work.levels, levels), dataclasses.replace(ladder, scale=scale)


class _Descent:
    def __init__(self, levels: Tensor, ladder: Ladder, target: Tensor, hessian: Tensor, mask: Tensor | None) -> None:
        self.levels, self.hessian, self.mask = levels.clone(), hessian, mask
        self.ladder = dataclasses.replace(ladder, scale=ladder.scale.clone())
        self.slope = (ladder.weight(levels) - target) @ hessian  # half the error's gradient by the weights

    def cycle_(self, *, steps: bool) -> int:
        """Go over all groups once; return how many codes moved."""
        moved = 0
        for group, columns in enumerate(self._groups()):
            if steps:
                self._scale_(group, columns)
            for start in range(columns.start, columns.stop, _BLOCK):
                moved += self._codes_(group, slice(start, min(start + _BLOCK, columns.stop)))
        return moved

    def _groups(self) -> Iterator[slice]:
        inputs = self.levels.shape[1]
        size = self.ladder.fact.group_size or inputs
        yield from (slice(start, min(start + size, inputs)) for start in range(0, inputs, size))

    def _scale_(self, group: int, columns: slice) -> None:
        """Give a group the scale of least error, all else given."""
        levels, scale = self.levels[:, columns], self.ladder.scale[:, group]
        ahead = levels @ self.hessian[columns]
        bent = (ahead[:, columns] * levels).sum(1)
        step = -(self.slope[:, columns] * levels).sum(1) / bent.clamp(min=1e-30)
        step = torch.where((bent > 0) & (scale + step > FLOOR), step, 0)
        scale += step
        self.slope += step.unsqueeze(1) * ahead

    def _codes_(self, group: int, columns: slice) -> int:
        """Give the columns of a block, one after the other, the codes of least error; return how many moved."""
        scale, hessian = self.ladder.scale[:, group], self.hessian[columns, columns]
        levels, slope = self.levels[:, columns], self.slope[:, columns].clone()
        before = levels.clone()
        for at in range(levels.shape[1]):
            wanted = levels[:, at] - slope[:, at] / (hessian[at, at] * scale)
            level = self.ladder.nearest(wanted, group)
            if self.mask is not None:
                level.masked_fill_(~self.mask[:, columns.start + at], 0)
            slope[:, at + 1 :] += torch.outer((level - levels[:, at]) * scale, hessian[at, at + 1 :])
            levels[:, at] = level
        moves = levels - before
        self.slope += (moves * scale.unsqueeze(1)) @ self.hessian[columns]
        return int(moves.count_nonzero())
