"""What a walk over the blocks will cost, by facts alone."""

from __future__ import annotations

import math
from collections.abc import Collection

from compress import tree
from compress.contracts import Estimate
from compress.facts import Facts
from passes._layerwise.settings import LayerwiseSettings

_WINDOWS = 128  # of the calibration


def cost(
    facts: Facts, names: Collection[str], settings: LayerwiseSettings, *, gram: bool, work: float = 0, kept: float = 0
) -> Estimate:
    """Return the cost: the model, what one linear's inputs and weight need, and two forwards of the calibration.

    The calibration is counted with 128 windows, and a core with 3e10 products a second.

    Args:
        facts: of the model.
        names: linears that are changed; of none, the cost is to read and write the model.
        settings: of the walk.
        gram: whether products between inputs are gathered.
        work: products beside those of forwards and grams.
        kept: bytes on disk beside the model's weights.
    """
    shapes = [facts.shapes[n] for n in names]
    model, weights = 4 * facts.parameters, sum(map(math.prod, shapes))
    if not shapes:
        return Estimate(peak_mib=4 * tree.held(facts) / 2**20, disk_mib=model / 2**20, seconds=model / 1e9)
    widest, largest = max(i for _, i in shapes), max(map(math.prod, shapes))
    tokens = _WINDOWS * (facts.positions or 512)
    hidden = 4 * tokens * min(i for _, i in shapes) * (2 if settings.reference == "dense" else 1)
    grams = sum(i * i for _, i in shapes) if gram else 0
    return Estimate(
        peak_mib=(4 * tree.held(facts) + hidden + 24 * largest + (16 * widest**2 if gram else 0)) / 2**20,
        disk_mib=(2 * model + kept + 2 * hidden) / 2**20,
        seconds=(2 * tokens * (2 * weights + grams) + work) / 3e10 + model / 1e9,
    )
