"""Which scales of its inputs cost linears least when they are rounded.

Tensors: weights float32 `[out, in]`, H `[in, in]` the mean of x x^T, scales above 0.  Lin et al. 2023, AWQ (arXiv
2306.00978), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from compress.facts import GridFact
from compress.grid import groups
from passes import _quant
from passes._folding import Pair

POINTS = 20  # of the grid over r
_LEAST = 1e-4  # of the mean input, so that a channel that is never read has a scale; and beside a weight's share


def best(weights: Sequence[Tensor], facts: Sequence[GridFact], gram: Tensor, pair: Pair) -> Tensor | None:
    """Return the scale of each channel, [channels], that loses least; None where none is better than no scale.

    Args:
        weights: of the linears that read the channels.
        facts: their grids.
        gram: H of their inputs.
        pair: what they are of.
    """
    energies = [energy(w, gram).clamp(min=1e-30) for w in weights]

    def lost(scale: Tensor) -> float:
        each = zip(weights, facts, energies, strict=True)
        return float(sum(energy(rounded(w, scale, fact) - w, gram) / whole for w, fact, whole in each))

    found, least = None, lost(torch.ones_like(gram[0]))
    for scale in candidates(weights, facts, gram, pair):
        if (now := lost(pair.spread(scale))) < least:
            found, least = scale, now
    return found


def candidates(weights: Sequence[Tensor], facts: Sequence[GridFact], gram: Tensor, pair: Pair) -> Iterator[Tensor]:
    """Yield `x^r / (w^(1-r) + 1e-4)` for r from 0 on, its largest and smallest scales being each other's inverse.

    x is the root of the mean square of what a channel gives, w the mean of its weights as shares of the largest of
    their group; of query heads that share a channel, and of all linears that read it, the mean.
    """
    read = pair.gathered(gram.diagonal().sqrt()).mean(1)
    if not bool(read.any()):
        return
    read = read.clamp(min=_LEAST * float(read.mean()))
    rows = torch.cat([shares(w, fact.group_size) for w, fact in zip(weights, facts, strict=True)])
    held = pair.gathered(rows.mean(0)).mean(1)
    for point in range(POINTS):
        ratio = point / POINTS
        scale = read**ratio / (held ** (1 - ratio) + _LEAST)
        yield scale / (scale.max() * scale.min()).sqrt()


def shares(weight: Tensor, group_size: int | None) -> Tensor:
    """Return each weight's size as a share of the largest of its group, `[out, in]`; 0 in a group of zeros."""
    rows, inputs = weight.shape
    count = groups(inputs, group_size)
    missing = count * group_size - inputs if group_size else 0
    sizes = functional.pad(weight.abs(), (0, missing)).view(rows, count, -1)
    sizes = sizes / sizes.amax(-1, keepdim=True).clamp(min=1e-30)
    return sizes.view(rows, -1)[:, :inputs]


def rounded(weight: Tensor, scale: Tensor, fact: GridFact) -> Tensor:
    """Return `Q(W diag(s)) diag(s)^-1`, with the narrowest steps that clip nothing; s is [in]."""
    scaled = weight * scale
    return _quant.grid(scaled, _quant.span(scaled, fact), fact).dequantized() / scale


def energy(weight: Tensor, gram: Tensor) -> Tensor:
    """Return `tr(W H W^T)`, the mean square of what a weight makes of its inputs, summed over its outputs."""
    return ((weight @ gram) * weight).sum()
