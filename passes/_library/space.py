"""The search space of one model: which variants each part of each block has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from compress import tree
from compress.errors import BadSettings
from compress.facts import BlockConfig, Facts
from compress.families import Family, families
from passes._library.settings import LINEAR, NONE, PARENT, SpaceSettings, keys_of, share_of
from passes._masks import Pattern

Part = Literal["attention", "ffn"]
PARTS: tuple[Part, ...] = ("attention", "ffn")
_FIELDS = {"attention": ("heads", "kv_heads", "linear_attention"), "ffn": ("ffn", "linear_ffn")}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One choice for one part of one block.

    Attributes:
        block: its number, from 0.
        part: which of its two.
        name: as the settings say it.
        config: the shape of the parent's block with this part changed.
        group: how many neighbouring neurons stay or go together, those of a group of an N:M mask.
        select: whether fewer key heads are some of the parent's, or else means of them.
    """

    block: int
    part: Part
    name: str
    config: BlockConfig
    group: int = 1
    select: bool = False

    @property
    def key(self) -> str:
        """A name of its own among all variants, good for files: `03-ffn-50%`."""
        return f"{self.block:02d}-{self.part}-{self.name.replace(' ', '-')}"

    @property
    def parent(self) -> bool:
        """Whether it is the part as it is."""
        return self.name == PARENT


def joined(config: BlockConfig, picks: Iterable[Variant]) -> BlockConfig:
    """Return the shape of a block with the parts that are picked, each by its own variant."""
    fields = {field: getattr(pick.config, field) for pick in picks for field in _FIELDS[pick.part]}
    return dataclasses.replace(config, **fields)


def prefixes(table: Family, part: Part) -> tuple[str, ...]:
    """Return the modules within a block that are this part's own; all parameters of the block are in one of the two."""
    own = (table.attention,) if part == "attention" else table.ffn
    return (*own, *table.norms[PARTS.index(part) :][:1])


def linears_of(table: Family, part: Part) -> tuple[str, ...]:
    """Return the names within a block of the linears that a part has, if it is whole."""
    return table.qkvo if part == "attention" else (*table.up, table.down)


def variants(facts: Facts, settings: SpaceSettings, *, alone: bool = False) -> tuple[Variant, ...]:
    """Return the search space, block after block, in each attention then FFN, the parent first.

    Of variants that rounding makes the same, the first one stays.

    Args:
        facts: of the parent.
        settings: the space.
        alone: whether the parent's own parts will do, where nothing else can be chosen.

    Raises:
        BadSettings: a variant that the settings name fits no block, or breaks masks, or the parent is the only one.
    """
    if facts.branches:
        some = min(facts.branches)
        what = f"{some} has a branch beside its weight, and blocks are made of plain linears"
        raise BadSettings(f"{what}; choose blocks before branches are added")
    chosen = set(tree.select(list(facts.shapes), settings.include, settings.exclude))
    found: list[Variant] = []
    for part in PARTS:
        space = _Space(facts, settings, part)
        opened = [i for i in range(facts.blocks) if space.linears(i) and chosen.issuperset(space.linears(i))]
        told = [name for name in getattr(settings, part) if name != PARENT and space.fits(name, opened)]
        if lost := [n for n in told if part in settings.model_fields_set and not any(space.made(i, n) for i in opened)]:
            raise BadSettings(f"no block can have it, got {lost[0]!r}; leave it out", key=part)
        for index, block in enumerate(facts.layout):
            parent = Variant(block=index, part=part, name=PARENT, config=block)
            made = [v for name in told if index in opened and (v := space.made(index, name))]
            found += _unlike([parent, *made])
    if not alone and all(v.parent for v in found):
        shapes = ", ".join(dict.fromkeys(f"{b.kv_heads} key heads and {b.ffn} neurons" for b in facts.layout))
        what = f"nothing could be chosen but the blocks as they are, of {shapes}"
        raise BadSettings(f"{what}; name other variants, more linears, or a smaller multiple", key="ffn")
    order = {part: place for place, part in enumerate(PARTS)}
    return tuple(sorted(found, key=lambda v: (v.block, order[v.part])))  # stable: the parent stays first


class _Space:
    """The variants of one part."""

    def __init__(self, facts: Facts, settings: SpaceSettings, part: Part) -> None:
        self.facts, self.settings, self.part = facts, settings, part
        self.table = families()[facts.family]
        self._names: dict[tuple[int, str], str] = {}
        for name in facts.shapes:
            index, _, inner = f".{name}".partition(f".{self.table.blocks}.")[2].partition(".")
            self._names[int(index), inner] = name

    def linears(self, index: int) -> list[str]:
        """Return the names of the linears that a block's part has."""
        inside = linears_of(self.table, self.part)
        return [self._names[index, inner] for inner in inside if (index, inner) in self._names]

    def fits(self, name: str, opened: Sequence[int]) -> bool:
        """Tell whether a variant can be made where the part is open; one that only the defaults name may be left out.

        Raises:
            BadSettings: the settings name it and it cannot be made.
        """
        if not opened:
            return False
        if keys_of(name) is not None and not self.table.groups:
            if "attention" in self.settings.model_fields_set:
                what = f"a key head of {self.table.name} serves one query head, and can serve no more"
                raise BadSettings(f"{what}, got {name!r}; leave it out", key="attention")
            return False
        try:
            self._check_masks(name, opened)
        except BadSettings as error:
            if {self.part, error.key} & self.settings.model_fields_set:
                raise
            return False
        return True

    def made(self, index: int, name: str) -> Variant | None:
        """Return the variant of this name, if the block has it."""
        block, group = self.facts.layout[index], 1
        if self.part == "attention":
            config = self._attention(index, name)
        else:
            group = self._pattern(index, self.table.down).group or 1
            config = self._ffn(block, name, group)
        if config is None:
            return None
        select = self.settings.kv == "select" and 0 < config.kv_heads < block.kv_heads
        return Variant(block=index, part=self.part, name=name, config=config, group=group, select=select)

    def _attention(self, index: int, name: str) -> BlockConfig | None:
        block, asked = self.facts.layout[index], keys_of(name)
        if asked is None:
            gone = dataclasses.replace(block, heads=0, kv_heads=0, linear_attention=name == LINEAR)
            return gone if block.heads or name == NONE else None
        if not block.kv_heads:
            return None
        if isinstance(asked, int):
            if asked < block.kv_heads and block.kv_heads % asked:
                what = f"{asked} does not divide the {block.kv_heads} key heads of block {index}"
                raise BadSettings(f"{what}, got {name!r}; {_divisors(block.kv_heads)} would do", key="attention")
            return dataclasses.replace(block, kv_heads=asked) if asked <= block.kv_heads else None
        whole = [n for n in range(1, block.kv_heads + 1) if block.kv_heads % n == 0]
        return dataclasses.replace(block, kv_heads=min(whole, key=lambda n: (abs(n - asked * block.kv_heads), n)))

    def _ffn(self, block: BlockConfig, name: str, group: int) -> BlockConfig | None:
        share = share_of(name)
        if share is None:
            gone = dataclasses.replace(block, ffn=0, linear_ffn=name == LINEAR)
            return gone if block.ffn or name == NONE else None
        if not block.ffn:
            return None
        step = math.lcm(self.settings.multiple, group)
        width = max(math.floor(share * block.ffn / step + 0.5), 1) * step
        return dataclasses.replace(block, ffn=min(width, block.ffn))

    def _check_masks(self, name: str, opened: Sequence[int]) -> None:
        """Raise `BadSettings` where a mask would not outlive the variant."""
        masked = [n for i in opened for n in self.linears(i) if n in self.facts.masks]
        if not masked:
            return
        if name == LINEAR:
            what = f"'linear' is a product of two linears, which fills the zeros of {masked[0]}"
            raise BadSettings(f"{what}; leave it out, or choose blocks before pruning", key=self.part)
        if keys_of(name) is None:
            return
        if self.settings.kv == "pool":
            what = f"means of key heads fill the zeros of {masked[0]}, got {name!r} with 'pool'"
            raise BadSettings(f"{what}; 'select' keeps them", key="kv")
        for index in opened:
            block, reader = self.facts.layout[index], self.table.qkvo[-1]
            group, width = self._pattern(index, reader).group, block.heads // max(block.kv_heads, 1) * block.head_dim
            if group and width % group:
                what = f"{self._names[index, reader]} has a mask in groups of {group}, and a key head {width} columns"
                raise BadSettings(f"{what}, which cut them, got {name!r}; leave it out", key="attention")

    def _pattern(self, index: int, inner: str) -> Pattern:
        mask = self.facts.masks.get(self._names.get((index, inner), ""))
        return Pattern.parse(mask.pattern) if mask else Pattern()


def _unlike(found: Iterable[Variant]) -> list[Variant]:
    """Return the first of all that have the same shape."""
    kept: dict[BlockConfig, Variant] = {}
    for variant in found:
        kept.setdefault(variant.config, variant)
    return list(kept.values())


def _divisors(count: int) -> str:
    return " or ".join(str(n) for n in range(1, count) if count % n == 0)
