"""What stays, decided before anything ran: how many blocks, heads and neurons, and the facts of such a model."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from compress import tree
from compress.errors import BadSettings
from compress.facts import BlockConfig, Facts, MaskFact
from compress.families import families
from passes._masks import Pattern


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What shall go.

    Attributes:
        heads: share of each block's key-value heads, each with its query heads, or how many stay block by block.
        neurons: the same of the FFN's neurons.
        layers: how many whole blocks.
        multiple: a share of neurons keeps the nearest multiple of this.
        include: patterns of the linears to work on.
        exclude: patterns of those to leave alone.
    """

    heads: float | tuple[int, ...] = 0.0
    neurons: float | tuple[int, ...] = 0.0
    layers: int = 0
    multiple: int = 1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The model to come.

    Attributes:
        facts: its facts.
        groups: per block that stays, how many neighbouring neurons stay or go together.
        notes: what was asked for and what rounding made of it.
    """

    facts: Facts
    groups: tuple[int, ...]
    notes: tuple[str, ...]


def plan(settings: Asked, facts: Facts) -> Plan:
    """Return what these settings make of a model with these facts.

    Raises:
        BadSettings: it cannot be, or changes nothing.
    """
    planned = shaped(settings, facts)
    if planned.facts.layout == facts.layout:
        what = "; ".join(planned.notes) or f"heads = {settings.heads}, neurons = {settings.neurons}, layers = 0"
        raise BadSettings(
            f"nothing would be removed: {what}; ask for more, or for a smaller multiple",
            key="neurons" if settings.neurons else "heads",
        )
    return planned


def shaped(settings: Asked, facts: Facts) -> Plan:
    """Return the same, be it that nothing changes."""
    _check(settings, facts)
    left = _with(facts, facts.layout[: facts.blocks - settings.layers]).after(dropped=facts.dropped + settings.layers)
    table, names = families()[facts.family], set(tree.select(list(left.shapes), settings.include, settings.exclude))
    readers = {
        "heads": _inside(left, table.qkvo[-1], [block.heads for block in left.layout]),
        "neurons": _inside(left, table.down, [block.ffn for block in left.layout]),
    }
    for key, found in readers.items():
        asked = getattr(settings, key)
        if asked and not names & set(found):
            raise BadSettings(f"no block that is worked on has any, got {asked}; leave it out", key=key)
    masks = [left.masks.get(name, MaskFact("unstructured", 0.0)) for name in readers["neurons"]]
    groups = tuple(Pattern.parse(mask.pattern).group or 1 for mask in masks)
    layout, notes = [], dict[str, None]()
    for index, block in enumerate(left.layout):
        heads, neurons = (found[index] if found[index] in names else None for found in readers.values())
        kept, width = _kept_heads(settings, left, index, heads), _kept_neurons(settings, left, index, neurons, groups)
        each = block.heads // max(block.kv_heads, 1)
        layout.append(dataclasses.replace(block, heads=kept * each, kv_heads=kept, ffn=width))
        notes |= dict.fromkeys(_rounded("heads", settings.heads, block.kv_heads, kept) if heads else ())
        notes |= dict.fromkeys(_rounded("neurons", settings.neurons, block.ffn, width) if neurons else ())
    return Plan(facts=_with(left, tuple(layout)), groups=groups, notes=tuple(notes))


def _check(settings: Asked, facts: Facts) -> None:
    """Raise `BadSettings` for what can be seen without a look into the blocks."""
    blocks = facts.blocks - settings.layers
    if blocks < 1:
        raise BadSettings(f"the model has {facts.blocks} blocks and one must stay, got {settings.layers}", key="layers")
    if settings.layers and (settings.include or settings.exclude):
        key = "include" if settings.include else "exclude"
        raise BadSettings("names linears by block, and blocks move up; remove layers by a pass of their own", key=key)
    if settings.layers and any(_content(facts, i) != _content(facts, 0) for i in range(facts.blocks)):
        what = "blocks have unlike shapes, masks, branches or plans, so what stays is not known before they are judged"
        raise BadSettings(f"{what}, got {settings.layers}; remove layers before that", key="layers")
    for key in ("heads", "neurons"):
        asked = getattr(settings, key)
        if isinstance(asked, tuple) and len(asked) != blocks:
            raise BadSettings(f"must be one number for each of the {blocks} blocks, got {len(asked)}", key=key)


def _kept_heads(settings: Asked, facts: Facts, index: int, reader: str | None) -> int:
    """Return how many key-value heads of a block stay; all where no chosen linear reads them."""
    asked, block = settings.heads, facts.layout[index]
    counted = isinstance(asked, tuple)
    kept = asked[index] if isinstance(asked, tuple) else round((1 - asked) * block.kv_heads)
    if reader is None:
        _left_alone("heads", index, block.kv_heads, kept if counted else block.kv_heads)
        return block.kv_heads
    if not 1 <= kept <= block.kv_heads:
        what = f"block {index} has {block.kv_heads} key-value heads and would keep {kept}"
        raise BadSettings(f"{what}; 1 to {block.kv_heads} can stay", key="heads")
    mask, width = facts.masks.get(reader), block.heads // block.kv_heads * block.head_dim
    group = Pattern.parse(mask.pattern).group if mask else 0
    if mask and group and kept < block.kv_heads and width % group:
        what = f"{reader} has a {mask.pattern} mask, whose groups the {width} columns of a head cut"
        raise BadSettings(f"{what}; exclude it, or remove heads before the mask is made", key="heads")
    return kept


def _kept_neurons(settings: Asked, facts: Facts, index: int, reader: str | None, groups: tuple[int, ...]) -> int:
    """Return how many neurons of a block stay: whole groups of its mask, and of `multiple` where a share is asked."""
    asked, width, group = settings.neurons, facts.layout[index].ffn, groups[index]
    if reader is None:
        _left_alone("neurons", index, width, asked[index] if isinstance(asked, tuple) else width)
        return width
    if not isinstance(asked, tuple):
        step = math.lcm(settings.multiple, group)
        near = max(math.floor((1 - asked) * width / step + 0.5), 1) * step
        return min(near, width) if asked else width
    if not 1 <= asked[index] <= width:
        what = f"block {index} has {width} neurons and would keep {asked[index]}"
        raise BadSettings(f"{what}; 1 to {width} can stay", key="neurons")
    if asked[index] % group:
        what = f"block {index} would keep {asked[index]} neurons, and its mask has groups of {group}"
        raise BadSettings(f"{what}; a multiple of {group} would do", key="neurons")
    return asked[index]


def _left_alone(key: str, index: int, has: int, asked: int) -> None:
    if asked != has:
        what = f"block {index} is not worked on and has {has}"
        raise BadSettings(f"{what}, got {asked}; say {has} there", key=key)


def _rounded(key: str, asked: float | tuple[int, ...], was: int, kept: int) -> tuple[str, ...]:
    """Return a note where a share could not be met."""
    if isinstance(asked, tuple) or abs((1 - asked) * was - kept) < 1e-6:
        return ()
    return (f"{key} = {asked:g} of {was} is rounded to {1 - kept / was:.3g}, so that {kept} stay",)


def _with(facts: Facts, layout: tuple[BlockConfig, ...]) -> Facts:
    """Return the facts of a model with these blocks: the first ones made narrower, those after them gone."""
    shapes = {n: _shape(facts, n, layout) for n in facts.shapes if _place(facts, n)[0] < len(layout)}
    rows = {f"{n}.bias": out for n, (out, _) in shapes.items()}
    biases = {n: rows.get(n, size) for n, size in facts.biases.items() if _place(facts, n)[0] < len(layout)}
    norms = {n: size for n, size in facts.norms.items() if _place(facts, n)[0] < len(layout)}
    kept = {key: _of(getattr(facts, key), shapes) for key in ("masks", "branches", "plan")}
    made = facts.after(shapes=shapes, biases=biases, norms=norms, layout=layout, **kept)
    return made.after(parameters=facts.parameters - _counted(facts) + _counted(made))


def _of(table: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {n: found for n, found in table.items() if n in names}


def _counted(facts: Facts) -> int:
    """Return how many parameters the linears of the blocks, their branches, all biases and all norms have."""
    linears = sum(out * inputs for out, inputs in facts.shapes.values())
    branches = sum(rank * sum(facts.shapes[n]) for n, rank in facts.branches.items())
    return linears + branches + sum(facts.biases.values()) + sum(facts.norms.values())


def _shape(facts: Facts, name: str, layout: tuple[BlockConfig, ...]) -> tuple[int, int]:
    """Return what becomes of a linear's (out, in)."""
    table, (place, inner), (out, inputs) = families()[facts.family], _place(facts, name), facts.shapes[name]
    was, now = facts.layout[place], layout[place]
    if inner in table.qkvo[:-1]:
        out = out // was.kv_heads * now.kv_heads
    elif inner == table.qkvo[-1] and was.heads:
        inputs = now.heads * now.head_dim
    elif inner in table.up:
        out = now.ffn
    elif inner == table.down and was.ffn:
        inputs = now.ffn
    return out, inputs


def _place(facts: Facts, name: str) -> tuple[int, str]:
    """Return the block that holds a linear or parameter and its name in there; -1 and its name outside the blocks."""
    blocks = re.escape(families()[facts.family].blocks)
    found = re.fullmatch(rf"(?:.*\.)?{blocks}\.(\d+)\.(.+)", name)
    return (int(found[1]), found[2]) if found else (-1, name)


def _inside(facts: Facts, inner: str, units: Sequence[int]) -> list[str]:
    """Return for each block the full name of the linear that reads its units; empty where it has no units."""
    found = {_place(facts, n): n for n in facts.shapes}
    return [found[i, inner] if count else "" for i, count in enumerate(units)]


def _content(facts: Facts, index: int) -> object:
    """Return what a block's shape, masks, branches and plans are."""
    tables = (facts.masks, facts.branches, facts.plan)
    known = [(*_place(facts, n), found) for table in tables for n, found in table.items()]
    return facts.layout[index], [(inner, found) for place, inner, found in sorted(known, key=str) if place == index]
