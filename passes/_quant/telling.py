"""What quantizing comes to in bytes, planned or done."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

from compress import tree
from compress.contracts import Estimate
from compress.facts import Facts, GridFact
from compress.grid import groups

_SEARCH = 80  # passes over a weight
_READ = {"none": "", "dynamic": ", integer inputs asked for", "static": ", inputs of 8 bits with steps of their own"}


def size(shape: tuple[int, int], fact: GridFact) -> float:
    """Return the bytes of a linear's codes, float32 scales, and zeros or offsets."""
    rows, inputs = shape
    steps = rows * groups(inputs, fact.group_size)
    return rows * math.ceil(inputs * fact.bits / 8) + steps * (4 + fact.zero * fact.bits / 8 + 4 * fact.offset)


def told(planned: Mapping[str, GridFact], shapes: Mapping[str, tuple[int, int]], width: int) -> Iterator[str]:
    """Yield a line for each kind of grid: how many linears, and their bytes before and after.

    Args:
        planned: the grids by linear.
        shapes: of the linears.
        width: bytes of a weight before.
    """
    kinds = defaultdict[GridFact, list[str]](list)
    for name, fact in planned.items():
        kinds[fact].append(name)
    for fact, names in kinds.items():
        before = sum(math.prod(shapes[n]) for n in names) * width
        after = sum(size(shapes[n], fact) for n in names)
        where = "by whole rows" if fact.group_size is None else f"in groups of {fact.group_size}"
        zeros = " with zeros" if fact.zero else ""
        yield (
            f"quantized {len(names)} linears to {fact.told} {where}{zeros}{_READ[fact.activation]}: "
            f"{before / 2**20:.3g} MiB -> {after / 2**20:.3g} MiB"
        )


def kept(facts: Facts, planned: Mapping[str, GridFact]) -> float:
    """Return the bytes of all codes and steps."""
    return sum(size(facts.shapes[n], fact) for n, fact in planned.items())


def cost(facts: Facts, planned: Mapping[str, GridFact], *, searched: bool) -> Estimate:
    """Return the cost of rounding as it is, without data: one linear at a time beside the model.

    Args:
        facts: of the model.
        planned: the grids to come.
        searched: whether steps are searched for.
    """
    sizes = [math.prod(facts.shapes[n]) for n in planned] or [0]
    model, codes = 4 * facts.parameters, 0 if facts.stored else sum(sizes)
    return Estimate(
        peak_mib=(4 * tree.held(facts) + codes + 24 * max(sizes)) / 2**20,
        disk_mib=(model + kept(facts, planned)) / 2**20,
        seconds=sum(sizes) * (_SEARCH if searched else 4) / 2e8 + model / 1e9,
    )
