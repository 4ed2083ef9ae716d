"""What every pass that prunes tells and promises: the share of zeros, the masks, and that nothing else changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.errors import BrokenPromise
from compress.facts import Facts
from compress.known import told
from passes import _masks


class Readable(Protocol):
    """A model's tensors one at a time, and its masks."""

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Masks bool `[out, in]` by linear."""

    def tensor_names(self) -> list[str]:
        """Return the names of all tensors."""

    def tensor(self, name: str) -> Tensor:
        """Return one tensor."""


def facts_of(artifact: Artifact) -> Facts:
    """Return what an artifact tells of itself: codes, a plan, and which masks, how sparse; not their patterns."""
    masks = {name: _masks.fact(artifact.masks[name]) for name in artifact.masks}
    return told(artifact).after(masks=masks)


def share_of_model(artifact: Artifact, masks: Mapping[str, Tensor]) -> str:
    """Return, in words, which shares of the block linears and of the model the masks prune."""
    zeros = sum(int((~masks[n]).sum()) for n in masks)
    prunable = sum(linear.weight.numel() for linear in tree.block_linears(artifact.model).values())
    parameters = sum(p.numel() for p in artifact.model.parameters())
    return (
        f"masks now prune {zeros / prunable:.2%} of the {prunable:,} weights of all block linears, "
        f"{zeros / parameters:.2%} of the {parameters:,} parameters of the model"
    )


def check_masked(after: Artifact, names: Collection[str]) -> None:
    """Raise `BrokenPromise` unless each of the linears has a mask."""
    if missing := [n for n in names if n not in after.masks]:
        raise BrokenPromise(f"{missing[0]}: has no mask, though the pass works on it")


def check_rest(before: Readable, after: Artifact, names: Collection[str], *, updates: bool = False) -> None:
    """Raise `BrokenPromise` unless only the named linears changed, and these only as pruning changes them.

    Tensors are read one at a time.

    Args:
        before: what the pass was given.
        after: what it left.
        names: the linears that it pruned.
        updates: whether weights that stay may have other values.
    """
    for name in before.masks.keys() - set(names):
        if not (name in after.masks and torch.equal(before.masks[name], after.masks[name])):
            raise BrokenPromise(f"{name}: its mask changed, though the pass leaves it alone")
    masked = {f"{n}.weight": n for n in names}
    if came_or_went := set(before.tensor_names()) ^ set(after.tensor_names()):
        raise BrokenPromise(f"tensors came or went: {', '.join(sorted(came_or_went))}")
    for name in before.tensor_names():
        was, now = before.tensor(name), after.tensor(name)
        if name in masked:
            mask = after.masks[masked[name]].to(was.device)
            if updates and was.shape == now.shape and was.dtype == now.dtype:
                was = now.to(was.device)
            was = was.masked_fill(~mask, 0)
        if not _masks.same_bits(was, now):
            raise BrokenPromise(f"{name}: differs from what it was by more than zeros under its mask")
