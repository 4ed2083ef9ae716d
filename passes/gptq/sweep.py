"""Column by column: round, and let the columns to come make up for the error.

Tensors: weights `[out, in]`, C upper triangular `[in, in]` with `C^T C = H^-1`, masks bool `[out, in]` (True = kept),
all on one device.  Frantar et al. 2022, GPTQ (arXiv 2210.17323), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passes.gptq.levels import Ladder

_BLOCK = 128  # columns that are updated at once; the result does not depend on it


def sweep(weight: Tensor, upper: Tensor, order: Tensor, ladder: Ladder, mask: Tensor | None) -> Tensor:
    """Return the levels of every weight, `[out, in]`.

    In the given order, column j becomes the nearest level q, then `e = (w_j - q) / C_jj` and `w_k -= e C_jk` for all
    columns k to come.  What a mask prunes becomes 0, whatever was added to it by then, and the columns to come make up
    for that too.

    Args:
        weight: what is to be rounded; it need not be 0 under the mask.
        upper: C of the inputs in that order.
        order: the inputs, int64 `[in]`; groups stay where they are.
        ladder: the steps.
        mask: what may differ from 0.
    """
    work = weight[:, order]
    levels = torch.empty_like(work)
    diagonal, columns = upper.diagonal(), order.tolist()
    for start in range(0, len(columns), _BLOCK):
        stop = min(start + _BLOCK, len(columns))
        errors = torch.empty_like(work[:, start:stop])
        for at in range(start, stop):
            group = ladder.group(columns[at])
            scale = ladder.scale[:, group]
            level = ladder.nearest(work[:, at] / scale, group)
            if mask is not None:
                level.masked_fill_(~mask[:, columns[at]], 0)
            error = (work[:, at] - scale * level) / diagonal[at]
            work[:, at + 1 : stop] -= torch.outer(error, upper[at, at + 1 : stop])
            levels[:, at], errors[:, at - start] = level, error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    return levels[:, order.argsort()]
