"""A search for steps that lose less than the narrowest ones that clip nothing.

The measure is the rounding error of each group, `sum_j h_j e_j^2` or `e^T H_gg e` with e = W - Q(W): what clipping a
few large weights costs against what narrower steps save on all others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from compress.facts import GridFact
from compress.grid import bounds, groups
from passes._quant.rounding import FLOOR, Steps, span

_NARROWEST = {2: 0.3, 3: 0.4, 4: 0.5, 8: 0.8}  # share of the span at which a search ends, by bits
_CANDIDATES = 24
_POLISH = 4  # rounds of least squares on the scale, codes given, and new codes
_AT_ONCE = 2**22  # weights


@torch.no_grad()
def search(weight: Tensor, fact: GridFact, importance: Tensor | None = None) -> Steps:
    """Return the best steps of a search between the span and a share of it; of no group worse than the span.

    Each candidate is the span times a factor, with a zero also the codes beside it; the best is polished by turns of
    least squares on the scale and new codes.  Weights that are 0 always stand on a code and have no say.

    Args:
        weight: `[out, in]`.
        fact: of the grid.
        importance: of the inputs' errors, `[in]` such as the mean of x^2, or H `[in, in]`, whose blocks on the groups'
            diagonal are used; plain squares unless given.
    """
    count = max(_AT_ONCE // weight.shape[1], 1)
    blocks = _importance(importance, weight, fact.group_size)
    found = [_search(rows, fact, blocks) for rows in torch.split(weight.float(), count)]
    zeros = [f.zero for f in found if f.zero is not None]
    return Steps(torch.cat([f.scale for f in found]), torch.cat(zeros) if zeros else None)


def _importance(importance: Tensor | None, weight: Tensor, group_size: int | None) -> Tensor:
    """Return the importance of each group's inputs, `[groups, size]` or `[groups, size, size]`; padding has none."""
    inputs = weight.shape[1]
    count = groups(inputs, group_size)
    size = group_size or inputs
    missing = count * size - inputs
    given = torch.ones(inputs, device=weight.device) if importance is None else importance.float()
    if given.dim() == 1:
        return functional.pad(given, (0, missing)).view(count, size)
    whole = functional.pad(given, (0, missing, 0, missing)).view(count, size, count, size)
    return whole.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


class _Candidates:
    """Groups of rows `[out, groups, size]`, and the best steps that were tried so far."""

    def __init__(self, groups_: Tensor, fact: GridFact, importance: Tensor, start: Steps) -> None:
        self.groups, self.importance, (self.low, self.high) = groups_, importance, bounds(fact.bits)
        self.scale = start.scale
        self.zero = None if start.zero is None else start.zero.float()
        self.error = self._error(self.groups - self._levels(self.scale, self.zero) * self.scale.unsqueeze(2))

    def try_(self, scale: Tensor, zero: Tensor | None) -> None:
        """Keep the steps where they are better."""
        error = self._error(self.groups - self._levels(scale, zero) * scale.unsqueeze(2))
        better = error < self.error
        self.error, self.scale = torch.where(better, error, self.error), torch.where(better, scale, self.scale)
        if zero is not None and self.zero is not None:
            self.zero = torch.where(better, zero, self.zero)

    def polish_(self) -> None:
        """Try the scales of least error for the codes of the best steps."""
        levels = self._levels(self.scale, self.zero)
        weighed = self._weighed(levels)
        fitted = (weighed * self.groups).sum(2) / (weighed * levels).sum(2).clamp(min=1e-30)
        self.try_(torch.where(fitted > FLOOR, fitted, self.scale), self.zero)

    def _levels(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Return codes less the zero."""
        scaled = self.groups / scale.unsqueeze(2)
        if zero is None:
            return scaled.clamp_(self.low, self.high).round_()
        return torch.clamp(scaled, self.low - zero.unsqueeze(2), self.high - zero.unsqueeze(2)).round_()

    def _weighed(self, values: Tensor) -> Tensor:
        if self.importance.dim() == 2:
            return values * self.importance
        return torch.einsum("ogi,gij->ogj", values, self.importance)

    def _error(self, off: Tensor) -> Tensor:
        return (self._weighed(off) * off).sum(2)


def _search(weight: Tensor, fact: GridFact, importance: Tensor) -> Steps:
    rows, inputs = weight.shape
    count, size = importance.shape[:2]
    start = span(weight, fact)
    padded = functional.pad(weight, (0, count * size - inputs)).view(rows, count, size)
    found = _Candidates(padded, fact, importance, start)
    whole, zero = found.scale, found.zero
    shifts = (0,) if zero is None else (0, -1, 1)
    for factor in torch.linspace(_NARROWEST[fact.bits], 1, _CANDIDATES).tolist():
        for shift in shifts:
            moved = None if zero is None else (zero + shift).clamp_(found.low, found.high)
            found.try_((whole * factor).clamp_(min=FLOOR), moved)
    for _ in range(_POLISH):
        found.polish_()
    return Steps(found.scale, None if found.zero is None else found.zero.to(torch.int8))
