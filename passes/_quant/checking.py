"""What a pass that quantizes promises: the grids that were planned, weights that are their codes, nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from compress.artifact import Artifact
from compress.errors import BrokenPromise
from compress.facts import GridFact
from compress.grid import Grid
from passes import _masks


def check(before: Artifact, after: Artifact, planned: Mapping[str, GridFact], changes: Collection[str] = ()) -> None:
    """Raise `BrokenPromise` unless only what was planned came true, masks and their zeros being what they were.

    A zero under a mask is one in the codes too, so that N of M is what it was.  Tensors are read one at a time.

    Args:
        before: the pass's input.
        after: its output.
        planned: the grid of every linear that was to be quantized.
        changes: names of parameters beside those linears' weights that may differ.
    """
    if odd := after.grids.keys() ^ (before.grids.keys() | planned.keys()):
        raise BrokenPromise(f"{min(odd)}: has codes that nobody planned, or none where they were")
    if odd := after.masks.keys() ^ before.masks.keys():
        raise BrokenPromise(f"{min(odd)}: its mask came or went")
    for name in before.masks:
        if not torch.equal(before.masks[name], after.masks[name]):
            raise BrokenPromise(f"{name}: its mask changed")
    for name in after.grids:
        grid = after.grids[name]
        if name not in planned and not _same(before.grids[name], grid):
            raise BrokenPromise(f"{name}: its codes changed, though the pass leaves it alone")
        if name in planned and grid.fact not in planned[name].possible:
            raise BrokenPromise(f"{name}: was to become {planned[name]}, and is {grid.fact}")
        grid.check(name, after.tensor(f"{name}.weight"), after.masks.get(name))
    _check_rest(before, after, {f"{n}.weight" for n in planned} | set(changes))


def _same(old: Grid, new: Grid) -> bool:
    return old.fact == new.fact and all(_masks.same_bits(t, new.tensors[n]) for n, t in old.tensors.items())


def _check_rest(before: Artifact, after: Artifact, changes: Collection[str]) -> None:
    if odd := set(before.tensor_names()) ^ set(after.tensor_names()):
        raise BrokenPromise(f"tensors came or went: {', '.join(sorted(odd))}")
    for name in before.tensor_names():
        was, now = before.tensor(name), after.tensor(name)
        if name in changes:
            if was.shape != now.shape or was.dtype != now.dtype:
                raise BrokenPromise(f"{name}: has another shape or precision")
        elif not _masks.same_bits(was, now):
            raise BrokenPromise(f"{name}: changed, though the pass leaves it alone")
