"""Which linears get which grid, told before anything runs."""

from __future__ import annotations

from collections.abc import Iterable

from compress import tree
from compress.errors import BadSettings
from compress.facts import Facts, GridFact
from passes._quant.settings import QuantSettings

_GROUP_SIZE = 128


def chosen(names: Iterable[str], settings: QuantSettings) -> dict[str, int]:
    """Return the bits of every linear that is to be quantized, by name in order.

    Raises:
        BadSettings: a pattern matches nothing, or nothing is left.
    """
    every = tree.select(list(names), settings.include, settings.exclude)
    bits: dict[str, int | str] = dict.fromkeys(every, settings.bits)
    for pattern, given in settings.layers.items():
        try:
            bits |= dict.fromkeys(tree.select(every, (pattern,), ()), given)
        except BadSettings as error:
            raise BadSettings(str(error), key="layers") from None
    found = {n: int(b) for n, b in bits.items() if b != "float"}
    if not found:
        raise BadSettings("leaves every linear in floats; quantize one at least", key="layers")
    return found


def planned(facts: Facts, settings: QuantSettings) -> dict[str, GridFact]:
    """Return the grid of every linear that is to be quantized.

    Raises:
        BadSettings: a grid does not fit a linear or contradicts itself, or a linear has codes already.
    """
    found = {n: _fact(bits, settings) for n, bits in chosen(facts.shapes, settings).items()}
    for name, fact in found.items():
        _check(name, fact, facts, settings)
    return found


def _fact(bits: int, settings: QuantSettings) -> GridFact:
    size = settings.group_size
    if size is None:
        size = -1 if bits == 8 else _GROUP_SIZE
    return GridFact(
        bits=bits,
        group_size=None if size == -1 else size,
        zero=not settings.symmetric,
        activation=settings.activation,
    )


def _check(name: str, fact: GridFact, facts: Facts, settings: QuantSettings) -> None:
    inputs = facts.shapes[name][1]
    if fact.group_size == 0:
        raise BadSettings("must be above 0, or -1 for whole rows, got 0", key="group_size")
    if fact.group_size is not None and fact.group_size > inputs:
        what = f"{name} has {inputs} inputs, fewer than a group of {fact.group_size}"
        raise BadSettings(f"{what}; -1 (whole rows) or a size up to {inputs} would do", key="group_size")
    if fact.activation == "dynamic" and (fact.bits != 8 or fact.zero or fact.group_size is not None):
        what = f"{name}: integer inputs go with 8 bits, symmetric, in whole rows"
        raise BadSettings(f"{what}, got {fact.bits} bits; leave it 'none'", key="activation")
    if name in facts.grids and not settings.again:
        what = f"{name} has codes of {facts.grids[name].bits} bits already"
        raise BadSettings(f"{what}; exclude it, or again = true rounds what they stand for once more", key="again")
