"""Whether linears with static inputs read them rounded: by what that loses, measured in torch, where no GPU need be."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from compress.artifact import Artifact
from compress.context import Context
from compress.engines import choice
from compress.engines.choice import EXACT, INTEGER
from compress.evaluate import ModelScorer
from compress.measure import digits
from compress.reading import reading, static

Kernels = Literal["auto", "exact", "fast"]


def choose(artifact: Artifact, kernels: Kernels, tolerance: float, context: Context) -> dict[str, Any]:
    """Return the `choice` of the manifest, and note it; nothing where there is none to make.

    Args:
        artifact: whose model is measured with its inputs as floats, and rounded.
        kernels: `exact` reads floats, `fast` codes, `auto` codes where they lose no more than the tolerance.
        tolerance: as `compress.engines.choice` measures losses.
        context: with calibration data, or without, and then `auto` cannot know and reads floats.
    """
    changes, source = static(artifact.grids), context.data.get("calibration")
    if not changes or kernels == "exact":
        return {}
    what, allowed = f"static inputs of {len(changes)} linears", tolerance if kernels == "auto" else None
    if source is None and allowed is not None:
        why = "no data to measure on what rounded inputs lose"
        context.report.note(f"{what} stay floats: {why}; a pipeline has data, and kernels = 'fast' needs none")
        return {"chosen": EXACT, "why": why}
    lost, windows = choice.Losses(), 0
    if source is not None:
        examples = source.examples(artifact.tokenizer)
        windows = min(choice.WINDOWS, len(examples))
        ours = ModelScorer(artifact.model, calling=partial(reading, artifact.model, changes))
        scorers = {EXACT: ModelScorer(artifact.model), INTEGER: ours}
        lost = choice.losses(scorers, examples, artifact.task, context.report)[INTEGER]
    taken = allowed is None or lost["lost"] <= allowed
    loses = f"rounding them loses {digits(lost['lost'], 2)}" if lost else "what rounding them loses nobody knows"
    context.report.note(f"{what} {'become codes' if taken else 'stay floats'}: {loses}")
    tried = {INTEGER: lost}
    return {"chosen": INTEGER if taken else EXACT, "tolerance": allowed, "windows": windows, "tried": tried}
