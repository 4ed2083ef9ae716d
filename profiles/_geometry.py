"""The parts of a model, of a block, and of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.errors import BadSettings
from compress.facts import BlockConfig, Facts
from compress.families import family_of
from profiles._parts import Attention, Base, Block, Choice, Ffn, Linear


def hidden_of(facts: Facts) -> int:
    """Return the width of the residual."""
    if facts.head:
        return facts.head[1][1]
    table = family_of(facts.family)
    return next(shape[0] for name, shape in facts.shapes.items() if name.endswith(table.down))


def base_of(facts: Facts, model_type: str) -> Choice:
    """Return what stands outside the blocks of a model."""
    hidden = hidden_of(facts)
    inside = sum(part.parameters for block in facts.layout for part in parts_of(block, model_type, hidden))
    part = Base(family=model_type, hidden=hidden, vocabulary=facts.vocabulary, elements=facts.parameters - inside)
    return Choice(part=part)


def parts_of(block: BlockConfig, family: str, hidden: int) -> tuple[Block, ...]:
    """Return the parts of a block that are there, or linears in their place: attention, FFN, both or none."""
    found: list[Block] = []
    if block.heads:
        found.append(
            Attention(family=family, hidden=hidden, heads=block.heads, kv_heads=block.kv_heads, head_dim=block.head_dim)
        )
    if block.linear_attention:
        found.append(Linear(family=family, hidden=hidden, place="attention"))
    if block.ffn:
        found.append(Ffn(family=family, hidden=hidden, neurons=block.ffn))
    if block.linear_ffn:
        found.append(Linear(family=family, hidden=hidden, place="ffn"))
    return tuple(found)


def parse(text: str, family: str) -> Block:
    """Return the part that a text names.

    `attention:HIDDEN,HEADS,KV_HEADS,HEAD_DIM`, `ffn:HIDDEN,NEURONS`, `linear:attention,HIDDEN` or `linear:ffn,HIDDEN`.

    Raises:
        BadSettings: it names none.
    """
    forms: dict[str, tuple[type[Any], dict[str, str], Sequence[str]]] = {
        "attention:": (Attention, {}, ("hidden", "heads", "kv_heads", "head_dim")),
        "ffn:": (Ffn, {}, ("hidden", "neurons")),
        "linear:attention,": (Linear, {"place": "attention"}, ("hidden",)),
        "linear:ffn,": (Linear, {"place": "ffn"}, ("hidden",)),
    }
    for form, (made, fixed, names) in forms.items():
        sizes = text.removeprefix(form).split(",")
        if text.startswith(form) and len(sizes) == len(names) and all(n.strip().isdigit() and int(n) for n in sizes):
            block: Block = made(family=family, **fixed, **dict(zip(names, map(int, sizes), strict=True)))
            return block
    known = " or ".join(f"{form}{','.join(names).upper()}" for form, (_, _, names) in forms.items())
    raise BadSettings(f"must be {known}, got {text!r}", key="shape")
