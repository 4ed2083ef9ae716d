"""Order inputs so that groups of M neighbours can keep more: deal the strong out evenly, then swap while that helps."""

from __future__ import annotations

import torch
from torch import Tensor

_CELLS = 2**24  # of the table of swaps, held at once
_GAIN = 1e-6  # of what is retained; less is noise of float32


def retained(score: Tensor, keep: int, group: int) -> float:
    """Return the sum of the `keep` highest scores of every `group` neighbours along the columns."""
    return float(_kept(score.view(len(score), -1, group), keep).sum(dtype=torch.float64))


def order(score: Tensor, keep: int, group: int, *, rounds: int, seed: int) -> Tensor:
    """Return an order of the columns, int64 `[columns]`, that retains at least what the given one does.

    Columns are dealt to the groups from the strongest on, to and fro; where that is no better than the order as it is,
    this is the start.  Then, round after round, groups are paired at random and each pair swaps the two columns that
    gain most, if any do.

    Args:
        score: float `[rows, columns]`, at least 0; `group` divides the columns.
        keep: N.
        group: M.
        rounds: of pairing.
        seed: of the pairs.
    """
    count = score.shape[1] // group
    starts = [torch.arange(score.shape[1]), zigzag(score.sum(0).cpu(), group)]
    found = max(starts, key=lambda o: retained(score[:, o.to(score.device)], keep, group)).view(count, group)
    random = torch.Generator().manual_seed(seed % 2**63)
    step = max(1, _CELLS // (len(score) * group**3))
    for _ in range(rounds if count > 1 else 0):
        pairs = torch.randperm(count, generator=random)[: count // 2 * 2].view(-1, 2)
        for part in torch.split(pairs, step):
            found[part] = swapped(score, found[part], keep)
    return found.reshape(-1)


def zigzag(strength: Tensor, group: int) -> Tensor:
    """Return an order in which the columns are dealt to groups from the strongest on, every other round backwards."""
    dealt = strength.argsort(descending=True, stable=True).view(group, -1)
    dealt[1::2] = dealt[1::2].flip(1)
    return dealt.t().reshape(-1)


def swapped(score: Tensor, pairs: Tensor, keep: int) -> Tensor:
    """Return pairs of groups, int64 `[pairs, 2, M]` of columns, after the best swap between the two of each pair."""
    count, _, group = pairs.shape
    given = score[:, pairs.to(score.device)]  # [rows, pairs, 2, M]
    now = _kept(given, keep).sum(0).sum(1)
    rest = ~torch.eye(group, dtype=torch.bool, device=score.device)
    at = torch.arange(group, device=score.device).expand(group, group)[rest].view(group, group - 1)
    without = given[..., at]  # [rows, pairs, 2, M, M - 1]
    mine, theirs = (
        torch.cat(
            (
                without[:, :, a, :, None].expand(-1, -1, group, group, group - 1),
                given[:, :, b, None, :, None].expand(-1, -1, group, group, 1),
            ),
            dim=-1,
        )
        for a, b in ((0, 1), (1, 0))
    )
    then = _kept(mine, keep).sum(0) + _kept(theirs, keep).sum(0).transpose(1, 2)  # [pairs, M, M]
    gain, best = (then.view(count, -1) - now[:, None]).max(1)
    gains = (gain > _GAIN * now).cpu()
    row, best = torch.arange(count), best.cpu()
    first, second = (row, 0, best // group), (row, 1, best % group)
    moved = pairs.clone()
    moved[first], moved[second] = pairs[second], pairs[first]
    return torch.where(gains.view(-1, 1, 1), moved, pairs)


def _kept(groups: Tensor, keep: int) -> Tensor:
    return groups.topk(keep, dim=-1, sorted=False).values.sum(-1)
