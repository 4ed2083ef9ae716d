"""What AWQ promises beside its grids: what was divided, and that codes are the nearest to what was multiplied."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.artifact import Artifact
from compress.errors import BrokenPromise
from compress.grid import Grid, bounds, spread
from passes._folding import Pair


def check(before: Artifact, after: Artifact, pairs: Sequence[Pair]) -> None:
    """Raise `BrokenPromise` unless what is folded into was divided by scales above 0, and codes are of scaled weights.

    A norm tells its scales, so that each code of the linears that read it must be the nearest to its weight times the
    scale, or the last one on its side.  Where a later pair divides rows of such a linear, those rows are left out.

    Args:
        before: the pass's input.
        after: its output.
        pairs: all whose linears have codes.
    """
    divided = {pair.before: pair.first for pair in pairs if pair.linear}
    names = set(before.tensor_names())
    for pair in pairs:
        parts = [f"{pair.before}.{part}" for part in ("weight", "bias") if f"{pair.before}.{part}" in names]
        for name in parts[1:] if pair.linear else parts:
            was, now = before.tensor(name), after.tensor(name)
            if not (bool(now.isfinite().all()) and torch.equal(was.sign(), now.sign().to(was.device))):
                raise BrokenPromise(f"{name}: is more than divided by scales above 0")
        if pair.linear:
            continue
        was, now = (artifact.tensor(parts[0]).float() for artifact in (before, after))
        scale = (was / now.to(was.device)).masked_fill(was == 0, torch.nan)  # a channel without weight tells none
        for name in pair.after:
            rows = slice(None, divided.get(name))
            old = before.tensor(f"{name}.weight")[rows]
            slack = 4 * torch.finfo(old.dtype).eps  # of a weight
            _check_nearest(name, old.float() * scale, after.grids[name].to(old.device), rows, slack)


def _check_nearest(name: str, wanted: Tensor, grid: Grid, rows: slice, slack: float) -> None:
    codes, (lowest, highest) = grid.codes[rows], bounds(grid.bits)
    step = spread(grid.scale, grid.codes.shape[1], grid.group_size)[rows]
    off = (wanted - grid.dequantized()[rows]) / step
    most = 0.5 + slack * 2**grid.bits
    wrong = ((off > most) & (codes != highest)) | ((off < -most) & (codes != lowest))
    if bool(wrong.any()):
        raise BrokenPromise(f"{name}: {int(wrong.sum())} codes are not the nearest to what their scaled weights are")
