"""What a choice promises: shapes of the space, tensors of the library, all else as it was, and a plan for the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.errors import BrokenPromise
from compress.facts import Facts, Planned
from passes import _library, _masks
from passes._library import MASK, Library, Part, Variant
from passes._pruned import facts_of
from passes.puzzle.pieces import DENSE, bare, grid_of, linears_by_part, opened_of, space_of
from passes.puzzle.settings import PuzzleSettings

_GROUPS = (2, 4, 8, 16, 32)  # of zeros, M of N:M


def check(before: Artifact, after: Artifact, settings: PuzzleSettings) -> None:
    """Raise `BrokenPromise` unless `after` is `before` with parts of its blocks replaced by those of its library.

    Without a library, or after a second round of training, changed parts are held to their shapes alone.
    """
    if tree.tied(before.model) != tree.tied(after.model):
        raise BrokenPromise("head and input embedding are no longer tied as they were")
    _check_equal("outside the blocks", _outside(before), _outside(after))
    facts = facts_of(before)
    library = Library(before.library) if before.library and not settings.refine else None
    for (index, part), variant in _picked(_space(facts, settings, library), after).items():
        now = _state(after, index, part)
        if variant.parent:
            _check_equal(f"block {index}, {part}", _state(before, index, part), now)
        elif library:
            _check_equal(f"block {index}, {part} {variant.name}", library.state(variant) or {}, now)
    for name in after.masks:
        if bool(after.tensor(f"{name}.weight")[~after.masks[name]].any()):
            raise BrokenPromise(f"{name}: weights that its mask prunes are not zero")
    _check_plan(after, facts, settings)


def _space(facts: Facts, settings: PuzzleSettings, library: Library | None) -> list[Variant]:
    """Return the variants that may stand there: those of the library, or all that the settings may have meant.

    Neurons stay in whole groups of an N:M mask, and no artifact tells N:M of its masks; a library tells the groups.
    """
    found = list(space_of(facts, settings))
    if library:
        return [v for v in found if v.parent] + library.variants()
    inside = {n for (_, part), names in linears_by_part(facts).items() if part == "ffn" for n in names}
    for group in _GROUPS if inside & facts.masks.keys() else ():
        masks = {n: dataclasses.replace(facts.masks[n], pattern=f"1:{group}") for n in inside & facts.masks.keys()}
        facts = facts.after(masks={**facts.masks, **masks})
        found += (v for v in space_of(facts, settings) if v.part == "ffn" and not v.parent)
    return found


def _picked(space: Sequence[Variant], after: Artifact) -> dict[tuple[int, Part], Variant]:
    """Return which variant stands in every part, by its shape.

    Raises:
        BrokenPromise: another number of blocks, or a shape that is not of the space.
    """
    layout, places = tree.layout(after.model), dict.fromkeys((v.block, v.part) for v in space)
    if len(layout) != 1 + max(index for index, _ in places):
        raise BrokenPromise(f"{len(layout)} blocks are left, and a choice leaves all of them")
    found = dict[tuple[int, Part], Variant]()
    for variant in space:
        if bare(variant.config, variant.part) == bare(layout[variant.block], variant.part):
            found.setdefault((variant.block, variant.part), variant)
    for index, part in places:
        if (index, part) not in found:
            raise BrokenPromise(f"block {index}, {part}: {layout[index]} is of no variant of the space")
    return found


def _check_plan(after: Artifact, facts: Facts, settings: PuzzleSettings) -> None:
    linears = tree.block_linears(after.model)
    if odd := after.plan.keys() ^ linears.keys():
        what = "is planned and not there" if min(odd) in after.plan else "is not planned"
        raise BrokenPromise(f"{min(odd)}: {what}")
    grids = {grid_of(p) for p in settings.precisions} | {None}
    patterns = {None if p == DENSE else p for p in settings.patterns} | {None}
    inside = {n for names in opened_of(facts, settings).values() for n in names}
    for name, planned in after.plan.items():
        if (
            planned.grid not in grids
            or planned.pattern not in patterns
            or (name not in inside and planned != Planned())
        ):
            raise BrokenPromise(f"{name}: is planned as {planned}, which the settings do not offer")


def _check_equal(what: str, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    if odd := old.keys() ^ new.keys():
        raise BrokenPromise(f"{what}: tensors came or went: {', '.join(sorted(odd))}")
    for name, tensor in new.items():
        if not _masks.same_bits(old[name].to(tensor), tensor):
            raise BrokenPromise(f"{what}: {name} differs from what it was to be")


def _outside(artifact: Artifact) -> dict[str, Tensor]:
    inside = tuple(f"{name}." for name in tree.blocks(artifact.model))
    return {n: artifact.tensor(n) for n in artifact.tensor_names() if not n.startswith(inside)}


def _state(artifact: Artifact, index: int, part: Part) -> dict[str, Tensor]:
    """Return the parameters and masks of a part, by name within the block."""
    name, table = list(tree.blocks(artifact.model))[index], tree.family(artifact.model)
    with artifact.opened(name) as block:
        found = {n: t.clone() for n, t in _library.state_of(block, table, part).items()}
    linears = [n.removesuffix(".weight") for n in found if n.endswith(".weight")]
    return found | {f"{n}{MASK}": mask for n in linears if (mask := artifact.masks.get(f"{name}.{n}")) is not None}
