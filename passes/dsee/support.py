"""Where the sparse part of the update lies: N positions of a weight, chosen before any training and without data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from passes._masks import keep_top

Kind = Literal["decomposition", "top-magnitude", "random"]

_GROWTH = 2  # ranks added at once
_SWEEPS = 4  # alternations at each rank


def support_of(weight: Tensor, mask: Tensor | None, kind: Kind, *, entries: int, rank: int, seed: int) -> Tensor:
    """Return `entries` positions in the flat weight, int64, ascending; those that a mask prunes come last.

    Args:
        weight: W `[out, in]`.
        mask: bool `[out, in]`, True = kept, or None.
        kind: what speaks for a position: `|W - U V|` of the decomposition, `|W|`, or chance.
        entries: N, at most out * in.
        rank: of the decomposition.
        seed: of its start, or of chance.
    """
    weight = weight.detach().float()
    if kind == "decomposition":
        score = (weight - low_rank(weight, rank, entries, seed)).abs()
    elif kind == "top-magnitude":
        score = weight.abs()
    else:
        score = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)).to(weight.device)
    if mask is not None:
        score = score.masked_fill(~mask.to(score.device), -1)
    return keep_top(score, 1 - entries / score.numel()).view(-1).nonzero().view(-1)


def low_rank(weight: Tensor, rank: int, entries: int, seed: int) -> Tensor:
    """Return U V `[out, in]` of W = U V + S + rest, S holding at most `entries` numbers: what S hides is not fitted.

    Greedy and bilateral: U and V are fitted in turn to W - S, S then being W - U V where that is largest; V begins with
    a few random rows and grows by as many directions of what is left, until it has `rank` rows.

    Args:
        weight: W, float `[out, in]`.
        rank: of U V, at most min(out, in).
        entries: of S.
        seed: of V's first rows.
    """
    random = torch.Generator().manual_seed(seed)
    v = torch.randn(min(_GROWTH, rank), weight.shape[1], generator=random).to(weight)
    plain = weight.clone()  # W - S
    while True:
        for _ in range(_SWEEPS):
            u = torch.linalg.qr(plain @ v.t()).Q
            v = u.t() @ plain
            found: Tensor = u @ v
            hidden = (weight - found).view(-1).abs_().topk(entries).indices
            plain = weight.clone().put_(hidden, found.take(hidden))
        if len(v) == rank:
            return found
        rest = plain - found
        u = torch.linalg.qr(rest[:, : min(_GROWTH, rank - len(v))]).Q
        v = torch.cat([v, u.t() @ rest])
