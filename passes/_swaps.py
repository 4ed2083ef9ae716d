"""Better masks by swaps: in each row, prune one kept weight and restore one pruned, while that lowers the error.

The error of a row is `d H d^T` with d what its weights lack of the target and H the mean of x x^T over tokens, so a
swap is judged exactly, without a forward pass.  Warm start from any mask; the error never rises, counts stay as they
are, and within N:M a swap stays inside its group.  SparseSwaps (arXiv 2512.10922) restores the old weight; where
weights may change, the best value is restored instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CELLS = 2**24  # of the table of all swaps, held at once
_GAIN = 1e-5  # of a row's error; less is noise of float32


def swaps(
    weight: Tensor,
    mask: Tensor,
    target: Tensor,
    hessian: Tensor,
    *,
    allowed: Tensor,
    values: Tensor | None = None,
    group: int = 0,
    cycles: int = 50,
) -> tuple[Tensor, Tensor]:
    """Return a weight and a mask, both `[out, in]`, with the counts of the given ones and at most their error.

    Args:
        weight: float `[out, in]`, zero where the mask prunes.
        mask: bool `[out, in]`, True = kept.
        target: float `[out, in]`, the weight that would make no error.
        hessian: H `[in, in]`.
        allowed: bool `[out, in]`, what may be kept.
        values: float `[out, in]`, what a restored weight becomes; None = whatever is best.
        group: swaps stay inside groups of so many columns; 0 = anywhere in the row.
        cycles: most swaps of a row.
    """
    group = group or weight.shape[1]
    weight, mask = weight.clone(), mask.clone()
    rows = torch.arange(len(weight), device=weight.device)
    for part in torch.split(rows, max(1, _CELLS // (weight.shape[1] * group))):
        active = part
        for _ in range(cycles):
            lacks = target[active] - weight[active]
            own = None if values is None else values[active]
            gain, out, back, value = best(weight[active], mask[active], lacks, hessian, allowed[active], own, group)
            going = gain > _GAIN * ((lacks @ hessian) * lacks).sum(1)
            active, out, back, value = active[going], out[going], back[going], value[going]
            if not len(active):
                break
            weight[active, out], mask[active, out] = 0.0, False
            weight[active, back], mask[active, back] = value, True
    return weight, mask


def best(
    weight: Tensor, mask: Tensor, lacks: Tensor, hessian: Tensor, allowed: Tensor, values: Tensor | None, group: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of each row what its best swap lowers the error by, what it prunes, what it restores, and to which value.

    With c = H d, pruning u adds `w_u^2 H_uu + 2 w_u c_u` to the error and makes c_p `c'_p = c_p + w_u H_up`; restoring
    p with the value v then adds `v^2 H_pp - 2 v c'_p`, least at `v = c'_p / H_pp`.

    Args:
        weight: w `[out, in]`, zero where the mask prunes.
        mask: True = kept.
        lacks: d `[out, in]`, target less weight.
        hessian: H `[in, in]`.
        allowed: what may be kept.
        values: v `[out, in]`; None = the best.
        group: columns that a swap stays within; divides `in`.

    Returns:
        gain, float `[out]` (-inf where a row has no swap), two int64 `[out]`, and float `[out]`.
    """
    rows, columns = weight.shape
    parts = columns // group
    pull, diagonal = lacks @ hessian, hessian.diagonal()
    loss = (weight.square() * diagonal + 2 * weight * pull).masked_fill(~mask, torch.inf)
    blocks = torch.stack([hessian[at : at + group, at : at + group] for at in range(0, columns, group)])
    table = blocks * weight.view(rows, parts, group, 1) + pull.view(rows, parts, 1, group)  # c', by u and p
    if values is None:
        table = table.square_().div_(-diagonal.view(parts, 1, group))
    else:
        own = values.view(rows, parts, 1, group)
        table = table.mul_(-2 * own).add_(own.square() * diagonal.view(parts, 1, group))
    table = table.add_(loss.view(rows, parts, group, 1))
    table = table.masked_fill_((mask | ~allowed).view(rows, parts, 1, group), torch.inf)
    change, at = table.view(rows, -1).min(1)
    first = at // (group * group) * group
    out, back = first + at // group % group, first + at % group
    row = torch.arange(rows, device=weight.device)
    free = (pull[row, back] + weight[row, out] * hessian[out, back]) / diagonal[back]
    return -change, out, back, free if values is None else values[row, back]
