"""How variants begin without training: the formulas, on tensors alone.

narrower FFN           the neurons of highest worth: rows of up and gate, columns of down
fewer heads, pooled    means of neighbouring key heads, and of value heads: [new, old / new, ...].mean(1)
fewer heads, selected  key heads of highest worth; each leads a group, behind it whole groups of the others' queries,
whose columns in the output projection are 0
linear attention       W = W_o repeat(W_v), b = W_o repeat(b_v) + b_o: every token attends to itself alone
linear FFN             W = W_down W_up, b = W_down b_up + b_down: the gate, or the nonlinearity, is 1
"""

from __future__ import annotations

import torch
from torch import Tensor


def pooled(rows: Tensor, heads: int, kept: int) -> Tensor:
    """Return the means of neighbouring heads, `[kept * width, ...]`.

    Args:
        rows: float `[heads * width, ...]`, of keys or values: a weight, or a bias.
        heads: how many there are.
        kept: how many there will be; divides them.
    """
    means = rows.float().view(kept, heads // kept, -1, *rows.shape[1:]).mean(1)
    return means.reshape(-1, *rows.shape[1:]).to(rows.dtype)


def led(leaders: Tensor, heads: int) -> Tensor:
    """Return the order in which the old key heads' queries stand: each leader, then an equal share of the others.

    Args:
        leaders: int64 [kept] ascending, the key heads that stay; their number divides the heads.
        heads: how many there are.

    Returns:
        int64 [kept, heads / kept]; the first column is the leaders.
    """
    others = torch.ones(heads, dtype=torch.bool)
    others[leaders] = False
    behind = others.nonzero().view(len(leaders), heads // len(leaders) - 1)
    return torch.cat([leaders[:, None], behind], 1)


def spread(index: Tensor, width: int) -> Tensor:
    """Return the rows of heads, int64 [n * width], from the numbers of the heads, int64 [n]."""
    return (index[:, None] * width + torch.arange(width)).reshape(-1)


def repeated(rows: Tensor, heads: int, each: int) -> Tensor:
    """Return values as the output projection reads them: every head `each` times, `[heads * each * width, ...]`.

    Args:
        rows: `[heads * width, ...]`, a weight or a bias.
        heads: value heads.
        each: query heads that one of them serves.
    """
    return rows.view(heads, -1, *rows.shape[1:]).repeat_interleave(each, 0).reshape(-1, *rows.shape[1:])


def composed(
    outer: Tensor, inner: Tensor, outer_bias: Tensor | None = None, inner_bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the one linear that is two in a row, in the outer one's type.

    Args:
        outer: float [out, width], the weight of the linear that reads.
        inner: float [width, in], the weight of the one that is read.
        outer_bias: float [out].
        inner_bias: float [width].
    """
    weight = (outer.float() @ inner.float()).to(outer.dtype)
    if inner_bias is None:
        return weight, outer_bias
    bias = outer.float() @ inner_bias.float()
    return weight, (bias if outer_bias is None else bias + outer_bias.float()).to(outer.dtype)
