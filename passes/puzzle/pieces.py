"""The options of every part: a variant of its shape, the precision of its linears, the pattern of their zeros."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import profiles
from compress import tree
from compress.errors import BadSettings
from compress.facts import BlockConfig, Facts, GridFact, Planned
from compress.families import families
from compress.profiling import Build
from passes._library import PARTS, Variant, joined, linears_of, variants
from passes._masks import Pattern
from passes.puzzle.settings import PuzzleSettings
from profiles import _precision
from profiles._parts import Block as Part

DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One option of a part.

    Attributes:
        variant: its shape.
        precision: of its linears, by name.
        pattern: of their zeros; `dense` = as they are.
        part: what profiles know it by; None where the part is absent.
        share: of the parent's weights that stay, at most 1.
    """

    variant: Variant
    precision: str
    pattern: str = DENSE
    part: Part | None = None
    share: float = 1.0

    @property
    def name(self) -> str:
        """What tables call it."""
        told = [self.variant.name, *([self.precision] if self.part else []), self.pattern]
        return ", ".join(t for t in told if t != DENSE)

    @property
    def slot(self) -> str:
        """The place that it is an option of."""
        return slot(self.variant)

    @property
    def planned(self) -> Planned:
        """What later passes are to make of its linears."""
        return Planned(grid=grid_of(self.precision), pattern=None if self.pattern == DENSE else self.pattern)

    @property
    def choice(self) -> profiles.Choice | None:
        """What profiles know the time of; None of an absent part."""
        return profiles.Choice(part=self.part, precision=self.precision, pattern=self.pattern) if self.part else None


Pieces = Mapping[str, tuple[Piece, ...]]  # slot -> its options, the parent's own in floats first


def slot(variant: Variant) -> str:
    """Return the name of the part's place."""
    return f"block {variant.block} {variant.part}"


def grid_of(precision: str) -> GridFact | None:
    """Return the codes that a precision stands for, None for floats."""
    return _precision.parse(precision).grid


def pieces(facts: Facts, settings: PuzzleSettings, model_type: str, floats: str) -> tuple[Pieces, list[str]]:
    """Return the options of every part, and what of them was left out and why.

    Args:
        facts: of the parent.
        settings: the space.
        model_type: the architecture, as its configuration spells it.
        floats: type of the graph.

    Raises:
        BadSettings: a variant does not fit.
    """
    hidden, found, notes = profiles.hidden_of(facts), dict[str, tuple[Piece, ...]](), dict[str, None]()
    opened, whole = set(opened_of(facts, settings)), None
    for variant in space_of(facts, settings):
        part = part_of(variant, model_type, hidden)
        kinds = [(floats, DENSE)]
        if part and (variant.block, variant.part) in opened:
            kinds = [(p, z) for p in dict.fromkeys(settings.precisions) for z in dict.fromkeys(settings.patterns)]
        if variant.parent:
            whole = part
        share = min(1.0, part.weights / whole.weights) if part and whole else 0.0
        made = [Piece(variant=variant, precision=p, pattern=z, part=part, share=share) for p, z in kinds]
        fitting = [piece for piece in made if _fits(piece)]
        notes |= dict.fromkeys(f"{p.name}: does not fit {p.part}, and is no option" for p in made if p not in fitting)
        found[slot(variant)] = (*found.get(slot(variant), ()), *fitting)
    if empty := next((name for name, options in found.items() if not options), None):
        raise BadSettings(f"{empty}: no precision or pattern fits it; add {floats} and dense", key="precisions")
    return found, list(notes)


def space_of(facts: Facts, settings: PuzzleSettings) -> tuple[Variant, ...]:
    """Return the variants of all parts; with codes or zeros to choose, the parent's own will do.

    Raises:
        BadSettings: one does not fit, or there is nothing to choose.
    """
    more = len(dict.fromkeys(settings.precisions)) > 1 or len(dict.fromkeys(settings.patterns)) > 1
    return variants(facts, settings, alone=more)


def bare(config: BlockConfig, part: str) -> BlockConfig:
    """Return the shape of a block that has one part of another alone."""
    if part == "attention":
        return dataclasses.replace(config, ffn=0, linear_ffn=False)
    return dataclasses.replace(config, heads=0, kv_heads=0, linear_attention=False)


def part_of(variant: Variant, model_type: str, hidden: int) -> Part | None:
    """Return what profiles know a variant's part by, None where it is absent."""
    return next(iter(profiles.parts_of(bare(variant.config, variant.part), model_type, hidden)), None)


def opened_of(facts: Facts, settings: PuzzleSettings) -> dict[tuple[int, str], list[str]]:
    """Return the parts whose every linear the settings choose, each with its linears, by block and part."""
    chosen = set(tree.select(list(facts.shapes), settings.include, settings.exclude))
    return {key: names for key, names in linears_by_part(facts).items() if chosen.issuperset(names)}


def linears_by_part(facts: Facts) -> dict[tuple[int, str], list[str]]:
    """Return the linears of every part that has some, by block and part."""
    table, found = families()[facts.family], dict[tuple[int, str], list[str]]()
    for name in facts.shapes:
        index, _, inner = f".{name}".partition(f".{table.blocks}.")[2].partition(".")
        for part in PARTS:
            if inner in linears_of(table, part):
                found.setdefault((int(index), part), []).append(name)
    return found


def build_of(facts: Facts, picks: Iterable[Piece]) -> Build:
    """Return the model that one piece of every slot makes, by shapes, codes and zeros."""
    table, linears = families()[facts.family], linears_by_part(facts)
    picked: dict[int, list[Piece]] = {index: [] for index in range(facts.blocks)}
    plan: dict[str, Planned] = {}
    for piece in picks:
        picked[piece.variant.block].append(piece)
        names = linears.get((piece.variant.block, piece.variant.part), []) if piece.part else []
        config, attention = piece.variant.config, piece.variant.part == "attention"
        if config.linear_attention if attention else config.linear_ffn:  # under the name of the part's last linear
            names = [n for n in names if n.endswith(f".{table.qkvo[-1] if attention else table.down}")]
        plan |= dict.fromkeys(names, piece.planned)
    layout = tuple(joined(block, [p.variant for p in picked[i]]) for i, block in enumerate(facts.layout))
    return Build(layout=layout, plan=plan)


def _fits(piece: Piece) -> bool:
    """Tell whether groups of codes and of zeros fit the linears of a narrower part."""
    sizes: Sequence[int] = [inputs for _, inputs in piece.part.linears] if piece.part else []
    grid, pattern = grid_of(piece.precision), piece.pattern
    group = 1 if pattern == DENSE else Pattern.parse(pattern).group
    return all(inputs % group == 0 and (not grid or (grid.group_size or 0) <= inputs) for inputs in sizes)
