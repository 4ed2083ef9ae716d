"""What a pass that trains leaves alone, checked: masks, zeros under them, every bit that is not trained.

`check` is the whole promise of a pass under fixed masks (`ensures`); a pass that makes masks takes the parts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.errors import BrokenPromise
from passes import _masks, _pruned
from passes._masks import Rule


def check(before: Artifact, after: Artifact, changes: Collection[str], *, unmasked: Collection[str] = ()) -> None:
    """Raise `BrokenPromise` unless masks, zeros, ties and all but the named tensors are what they were.

    Args:
        before: the pass's cached input.
        after: its output.
        changes: names of the parameters that may differ.
        unmasked: linears that gave their mask up.
    """
    check_masks(before, after, unmasked)
    check_zeros(after.model, after.masks)
    check_rest(before, after, changes)


def check_masks(before: Artifact, after: Artifact, unmasked: Collection[str] = ()) -> None:
    """Raise `BrokenPromise` unless the masks are those of before, less those that were given up."""
    if after.masks.keys() != before.masks.keys() - set(unmasked):
        raise BrokenPromise(f"masks came or went: {', '.join(sorted(after.masks.keys() ^ before.masks.keys()))}")
    for name, mask in after.masks.items():
        if not torch.equal(mask, before.masks[name]):
            raise BrokenPromise(f"{name}: its mask changed")


def check_zeros(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Raise `BrokenPromise` unless every weight that a mask prunes is zero."""
    for name, mask in masks.items():
        weight: Tensor = model.get_submodule(name).weight.detach()  # type: ignore[operator]
        if torch.any(weight[~mask.to(weight.device)] != 0):
            raise BrokenPromise(f"{name}: weights that the mask prunes are not zero")


def check_pruned(rule: Rule, before: Artifact, after: Artifact, names: Collection[str]) -> None:
    """Raise `BrokenPromise` unless the named linears have the rule's masks, others theirs, and all hold their zeros."""
    _pruned.check_masked(after, names)
    rule.check(before.masks, {n: after.masks[n] for n in names})
    was, now = ({n: m for n, m in a.masks.items() if n not in names} for a in (before, after))
    check_masks(before.after(masks=was), after.after(masks=now))
    check_zeros(after.model, after.masks)


def check_rest(before: Artifact, after: Artifact, changes: Collection[str], came: Collection[str] = ()) -> None:
    """Raise `BrokenPromise` unless tensors, ties and every bit beside the named parameters are what they were.

    Args:
        before: the pass's cached input.
        after: its output.
        changes: names of the parameters that may differ.
        came: names of the parameters that are new.
    """
    if tree.tied(before.model) != tree.tied(after.model):
        raise BrokenPromise("head and input embedding are no longer tied as they were")
    old, new = before.model.state_dict(), after.model.state_dict()
    if odd := old.keys() ^ new.keys() ^ set(came):
        raise BrokenPromise(f"tensors came or went: {', '.join(sorted(odd))}")
    for name in old.keys() - set(changes):
        if not _masks.same_bits(old[name], new[name]):
            raise BrokenPromise(f"{name}: changed, though it is not trained")
