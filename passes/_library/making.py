"""Blocks as variants have them: put into a copy of a block, to be trained and scored, or into the model for good."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress import blocks, tree
from compress.artifact import Artifact
from compress.errors import BadModel
from compress.facts import BlockConfig
from compress.families import Family
from passes._library.folder import Library
from passes._library.space import PARTS, Part, Variant, joined, prefixes

State = Mapping[str, Tensor]
MASK = ".mask"  # ends the name of a mask in a state, after its linear's


def masks_of(state: State) -> dict[str, Tensor]:
    """Return the masks in a state, bool `[out, in]`, by the name of the linear within the block."""
    return {n.removesuffix(MASK): t for n, t in state.items() if n.endswith(MASK)}


def state_of(block: nn.Module, table: Family, part: Part) -> dict[str, Tensor]:
    """Return the parameters of a block's part, norms that it alone reads among them: the very tensors, detached."""
    starts = tuple(f"{prefix}." for prefix in prefixes(table, part))
    return {n: p.detach() for n, p in block.named_parameters() if n.startswith(starts)}


def module(artifact: Artifact, variant: Variant | Sequence[Variant], state: State) -> nn.Module:
    """Return a copy of the parent's block with a part made so, for training and scoring.

    Args:
        artifact: the parent, which stays as it is.
        variant: what to make; or two of one block, for both its parts.
        state: all parameters of these parts by name within the block, as `initial` or the library has them, nothing
            for a part that is the parent's; masks among them are for whoever trains, and not looked at.

    Raises:
        BadModel: the state is not this variant's.
    """
    picks = (variant,) if isinstance(variant, Variant) else tuple(variant)
    name, table = name_of(artifact.model, picks[0].block), tree.family(artifact.model)
    with artifact.opened(name) as block:
        made = copied(block, artifact.model)
    reshape_(made, artifact.model, joined(tree.shape(made, table), picks))
    for pick in picks:
        _fill_(made, table, pick, state)
    return made


def assembled(artifact: Artifact, picks: Sequence[Variant], states: Library | Mapping[str, State]) -> nn.Module:
    """Return a copy of the parent's block with parts as `realise_` makes them.

    Args:
        artifact: the parent, which stays as it is.
        picks: one variant, or two of one block; what is not named stays the parent's.
        states: as `realise_` takes them.

    Raises:
        BadModel: no state for a pick, or it is not the variant's.
    """
    chosen = {pick.part: pick for pick in picks}
    made = (_state(states, pick, chosen) for pick in picks if not pick.parent)
    return module(artifact, picks, {name: tensor for state in made for name, tensor in state.items()})


@contextmanager
def swapped(model: PreTrainedModel, index: int, block: nn.Module) -> Iterator[None]:
    """Let another block stand at a place of the model inside."""
    name = name_of(model, index)
    own = model.get_submodule(name)
    tree.replace_(model, name, block)
    try:
        yield
    finally:
        tree.replace_(model, name, own)


def realise_(
    artifact: Artifact, picks: Mapping[tuple[int, str], Variant], states: Library | Mapping[str, State]
) -> Artifact:
    """Give blocks the parts that were picked, for good, and return the artifact with masks and plan that fit.

    Args:
        artifact: the parent; its model is changed in place, one block opened at a time.
        picks: by block and part; what is not named stays the parent's.
        states: the library, where a part trained together with the block's other pick goes first; or states by key.

    Raises:
        BadModel: no state for a pick, or it is not the variant's.
    """
    model, table = artifact.model, tree.family(artifact.model)
    masks = artifact.new_masks()
    for index, name in enumerate(tree.blocks(model)):
        chosen = {part: picks[index, part] for part in PARTS if (index, part) in picks}
        found = [(pick, _state(states, pick, chosen)) for pick in chosen.values() if not pick.parent]
        if not found:
            continue
        with artifact.opened(name) as block:
            reshape_(block, model, joined(tree.shape(block, table), chosen.values()))
            for pick, state in found:
                _fill_(block, table, pick, state)
        masks.update({f"{name}.{n}": mask for _, state in found for n, mask in masks_of(state).items()})
    linears = tree.block_linears(model)
    plan = {n: planned for n, planned in artifact.plan.items() if n in linears}
    return artifact.after(masks=_Only(masks, linears), plan=plan, library=None)


def name_of(model: PreTrainedModel, index: int) -> str:
    """Return the name of a block."""
    return list(tree.blocks(model))[index]


def copied(block: nn.Module, model: PreTrainedModel) -> nn.Module:
    """Return a copy of a block that shares the model's configuration, so that what is set there still reaches it."""
    return copy.deepcopy(block, {id(model.config): model.config})


def reshape_(block: nn.Module, model: PreTrainedModel, config: BlockConfig) -> None:
    """Give a block of the model another shape."""
    blocks.reshape_(block, tree.family(model), config, norm_first=tree.norm_first(model))


def _state(states: Library | Mapping[str, State], pick: Variant, chosen: Mapping[Part, Variant]) -> State:
    if isinstance(states, Library):
        beside = next((other for part, other in chosen.items() if part != pick.part), None)
        together = states.state(pick, beside=beside) if beside else None
        found: State | None = states.state(pick) if together is None else together
    else:
        found = states.get(pick.key)
    if found is None:
        raise BadModel(f"{pick.key}: no such block was made; make it, or do not pick it")
    return found


@torch.no_grad()
def _fill_(block: nn.Module, table: Family, pick: Variant, state: State) -> None:
    """Copy a part's state into a block of its shape; the parent's has none."""
    if pick.parent:
        return
    for name, parameter in state_of(block, table, pick.part).items():
        given = state.get(name)
        if given is None or given.shape != parameter.shape:
            what = "is missing" if given is None else f"is {list(given.shape)} for {list(parameter.shape)}"
            raise BadModel(f"{pick.key}: {name} {what} in what was kept of it; make the library anew")
        parameter.copy_(given)


class _Only(Mapping[str, Tensor]):
    """The masks of linears that are there, each read when it is asked for."""

    def __init__(self, masks: Mapping[str, Tensor], linears: Mapping[str, nn.Linear]) -> None:
        self._masks, self._names = masks, [n for n in masks if n in linears]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
