"""Which linears get which grid, told before anything runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

from compress import tree
from compress.errors import BadSettings
from compress.facts import Facts, GridFact
from passes import _plans
from passes._quant.settings import QuantSettings, StaticSettings

_GROUP_SIZE = 128
_OF_GRIDS = ("group_size", "symmetric", "layers", "activation", "input_range", "format")
_CHOICE = ("choices", "choose", "choose_windows")  # settings that only a choice has a use for


def are_open(settings: QuantSettings) -> bool:
    """Tell whether a linear may get any of the settings' choices where candidates are asked for, or `bits` alone."""
    given = settings.model_fields_set
    return "choices" in given or "bits" not in given


def choices_of(settings: QuantSettings, *, open_: bool) -> tuple[int, ...]:
    """Return the bits that a linear may get which no pattern fixes, fewest first."""
    return tuple(sorted(set(settings.choices))) if open_ or settings.bits == "plan" else (settings.bits,)


def choices(names: Iterable[str], settings: QuantSettings, *, open_: bool) -> dict[str, tuple[int, ...]]:
    """Return the bits that every linear to quantize may get, fewest first, by name in order.

    Args:
        names: of linears.
        settings: how to quantize.
        open_: whether those that no pattern fixes may get each of the settings' choices.

    Raises:
        BadSettings: a pattern matches nothing, or nothing is left.
    """
    every = tree.select(list(names), settings.include, settings.exclude)
    bits: dict[str, tuple[int, ...] | None] = dict.fromkeys(every, choices_of(settings, open_=open_))
    for pattern, given in settings.layers.items():
        try:
            found = tree.select(every, (pattern,), ())
        except BadSettings as error:
            raise BadSettings(str(error), key="layers") from None
        bits |= dict.fromkeys(found, None if given == "float" else (given,))
    kept = {n: b for n, b in bits.items() if b is not None}
    if not kept:
        raise BadSettings("leaves every linear in floats; quantize one at least", key="layers")
    return kept


def planned(facts: Facts, settings: QuantSettings) -> dict[str, GridFact]:
    """Return the grid of every linear that is to be quantized, with the `others` that it may get with `average_bits`.

    With bits = "plan", none where the plan leaves all linears in floats.

    Raises:
        BadSettings: a grid does not fit a linear or contradicts itself, a linear has codes already, no choice of
            bits keeps their mean low enough, or no plan is there to follow.
    """
    if settings.bits == "plan":
        return _from_plan(facts, settings)
    _check_mean(settings)
    _check_inputs(settings)
    found = possible(facts, settings, open_=settings.average_bits is not None)
    if settings.average_bits is not None:
        _check_reach(settings.average_bits, found, facts)
    return found


def possible(facts: Facts, settings: QuantSettings, *, open_: bool) -> dict[str, GridFact]:
    """Return the grid that every linear to quantize may get, all choices of bits among them if these are open.

    Raises:
        BadSettings: a grid does not fit a linear or contradicts itself, or a linear has codes already.
    """
    found: dict[str, GridFact] = {}
    for name, bits in choices(facts.shapes, settings, open_=open_).items():
        *others, most = (_fact(b, settings) for b in bits)
        for each in (most, *others):
            _check(name, each, facts, settings)
        found[name] = dataclasses.replace(most, others=tuple(others))
    return found


def allowed(mean: float, weights: int) -> int:
    """Return the most bits that so many weights may have together, the mean being the decimal that was written."""
    return math.floor(Fraction(str(mean)) * weights)


def _from_plan(facts: Facts, settings: QuantSettings) -> dict[str, GridFact]:
    """Return the grids that an earlier pass planned of the chosen linears."""
    _plans.check(facts, settings, "bits", "average_bits", *_CHOICE, *_OF_GRIDS)
    found = {n: p.grid for n, p in _plans.chosen(facts, settings).items() if p.grid}
    for name, fact in found.items():
        for each in fact.possible:
            _check(name, each, facts, settings)
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
        format=settings.codes,
    )


def _check_mean(settings: QuantSettings) -> None:
    """Raise unless what belongs to `average_bits` comes with it, and nothing that it replaces."""
    given = settings.model_fields_set
    if settings.average_bits is not None and "bits" in given:
        what = f"comes from the choices where average_bits is given, got {settings.bits}"
        raise BadSettings(f"{what}; leave one of them out", key="bits")
    for key in _CHOICE:
        if settings.average_bits is None and key in given:
            raise BadSettings(f"only with average_bits, got {getattr(settings, key)}; leave it out", key=key)


def _check_inputs(settings: QuantSettings) -> None:
    """Raise unless what belongs to static inputs comes with them, and they with nothing that a choice would judge."""
    static = settings.activation == "static"
    if isinstance(settings, StaticSettings) and not static and "input_range" in settings.model_fields_set:
        what = f"only with activation = 'static', got {settings.input_range!r}"
        raise BadSettings(f"{what}; leave it out", key="input_range")
    if static and settings.average_bits is not None:
        what = "needs 8 bits everywhere, which leaves average_bits nothing to choose, got 'static'"
        raise BadSettings(f"{what}; leave one of them out", key="activation")


def _check_reach(mean: float, planned: Mapping[str, GridFact], facts: Facts) -> None:
    """Raise unless the fewest bits of every linear have such a mean."""
    sizes = {n: math.prod(facts.shapes[n]) for n in planned}
    least, weights = sum(min(p.bits for p in f.possible) * sizes[n] for n, f in planned.items()), sum(sizes.values())
    if least > allowed(mean, weights):
        what = f"no choice of bits has so low a mean, got {mean:g}"
        lowest = math.ceil(1e4 * least / weights) / 1e4
        raise BadSettings(f"{what}; {lowest:g} can be reached, less with other choices or layers", key="average_bits")


def _check(name: str, fact: GridFact, facts: Facts, settings: QuantSettings) -> None:
    inputs = facts.shapes[name][1]
    if fact.format == "fp8" and (fact.bits != 8 or fact.zero or fact.activation == "dynamic"):
        what = f"{name}: codes that are floats go with bits = 8, symmetric, and inputs that stay floats or are 'static'"
        raise BadSettings(f"{what}, got 'fp8' for {fact.bits} bits; leave it 'int'", key="format")
    if fact.group_size == 0:
        raise BadSettings("must be above 0, or -1 for whole rows, got 0", key="group_size")
    if fact.group_size is not None and fact.group_size > inputs:
        what = f"{name} has {inputs} inputs, fewer than a group of {fact.group_size}"
        raise BadSettings(f"{what}; -1 (whole rows) or a size up to {inputs} would do", key="group_size")
    if fact.activation != "none" and (fact.bits != 8 or fact.zero or fact.group_size is not None):
        what = f"{name}: integer inputs go with 8 bits, symmetric, in whole rows"
        raise BadSettings(f"{what}, got {fact.bits} bits; leave it 'none'", key="activation")
    if name in facts.grids and not settings.again:
        what = f"{name} has codes of {facts.grids[name].told} already"
        raise BadSettings(f"{what}; exclude it, or again = true rounds what they stand for once more", key="again")
