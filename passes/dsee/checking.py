"""What DSEE leaves alone when it makes the model smaller, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.errors import BrokenPromise
from compress.facts import BlockConfig
from passes import _keeping, _masks


def check(before: Artifact, after: Artifact, layout: tuple[BlockConfig, ...], changes: Collection[str]) -> None:
    """Raise `BrokenPromise` unless the model is the old one with rows and columns taken out, and some retrained.

    Args:
        before: the pass's cached input.
        after: its output.
        layout: the shapes that were planned.
        changes: names of the parameters whose values may differ.
    """
    old, new = ({**a.model.state_dict(), **{f"{n}.mask": m for n, m in a.masks.items()}} for a in (before, after))
    if odd := old.keys() ^ new.keys():
        raise BrokenPromise(f"tensors or masks came or went: {', '.join(sorted(odd))}")
    for name, now, asked in zip(tree.blocks(after.model), tree.layout(after.model), layout, strict=True):
        if f"{name}.{tree.family(after.model).down}" in after.masks:  # maybe of a pattern that rounds once more
            asked = dataclasses.replace(asked, ffn=now.ffn)
        if now != asked:
            raise BrokenPromise(f"{name} is {now}, and {asked} was asked for")
    if tree.tied(before.model) != tree.tied(after.model):
        raise BrokenPromise("head and input embedding are no longer tied as they were")
    for name in old.keys() - set(changes):
        if not cut_out(old[name], new[name]):
            raise BrokenPromise(f"{name}: is not what it was less rows or columns, though it is not trained")
    _keeping.check_zeros(after.model, after.masks)


def cut_out(old: Tensor, new: Tensor) -> bool:
    """Tell whether a tensor is another one, bit for bit, less some of its rows or of its columns."""
    if old.shape == new.shape:
        return _masks.same_bits(old, new)
    axes = [axis for axis, (was, now) in enumerate(zip(old.shape, new.shape, strict=True)) if was != now]
    if len(axes) != 1 or old.dtype != new.dtype:
        return False
    left = iter(_rows(old.transpose(0, axes[0])))
    return all(any(row == other for other in left) for row in _rows(new.transpose(0, axes[0])))


def _rows(tensor: Tensor) -> list[bytes]:
    flat = tensor.detach().cpu().contiguous().reshape(len(tensor), -1)
    return [row.tobytes() for row in flat.view(torch.uint8).numpy()]
