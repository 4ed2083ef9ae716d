"""A library held to what the pass that made it declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from compress import tree
from compress.artifact import Artifact
from compress.errors import BadModel, BrokenPromise
from compress.facts import Facts
from passes import _pruned
from passes._distillation import Pick
from passes._library import MASK, Library, digest, masks_of


def facts_of(before: Artifact, after: Artifact) -> Facts:
    """Return what the given model tells of itself, with the groups of its masks as the library was made with them.

    Neurons stay in whole groups of an N:M mask, and no artifact tells N:M of its masks.
    """
    facts, table = _pruned.facts_of(before), tree.family(before.model)
    groups = {v.block: v.group for v in Library(after.library).variants() if v.part == "ffn"} if after.library else {}
    masks = dict(facts.masks)
    for index, name in enumerate(tree.blocks(before.model)):
        down, group = f"{name}.{table.down}", groups.get(index, 1)
        if group > 1 and down in masks:
            masks[down] = dataclasses.replace(masks[down], pattern=f"1:{group}")
    return facts.after(masks=masks)


def check(before: Artifact, after: Artifact, picks: Iterable[Pick]) -> None:
    """Raise `BrokenPromise` unless the model is what it was and its library has every pick, sound and its own.

    Args:
        before: the pass's cached input.
        after: its output.
        picks: what was to be trained.
    """
    _pruned.check_rest(before, after, ())
    if after.masks.keys() != before.masks.keys() or after.plan != before.plan:
        raise BrokenPromise("masks or plans came or went, and the model was to stay as it is")
    if after.library is None:
        raise BrokenPromise("the model comes without a library")
    library = Library(after.library)
    try:
        library.check(digest(after))
    except BadModel as error:
        raise BrokenPromise(str(error)) from None
    for pick in picks:
        _check_pick(library, pick)


def _check_pick(library: Library, pick: Pick) -> None:
    for variant in pick:
        beside = next((v for v in pick if v != variant), None)
        state, record = library.state(variant, beside=beside), library.record(variant, beside=beside)
        if state is None or record is None:
            raise BrokenPromise(f"{variant.key}: is not in the library, and was to be made")
        masks = masks_of(state)
        for name, tensor in state.items():
            if not name.endswith(MASK) and not torch.isfinite(tensor).all():
                raise BrokenPromise(f"{variant.key}: {name} is NaN or infinite in the library")
        for name, mask in masks.items():
            if (state[f"{name}.weight"][~mask] != 0).any():
                raise BrokenPromise(f"{variant.key}: weights of {name} that its mask prunes are not zero")
        if not record["after"] <= record["before"]:
            what = f"{record['after']:.4g} on held-out windows, and began with {record['before']:.4g}"
            raise BrokenPromise(f"{variant.key}: was left with an error of {what}")
