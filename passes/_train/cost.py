"""What a training will cost, by facts alone."""

from __future__ import annotations

from compress.contracts import Estimate
from compress.facts import Facts
from passes._train.recipe import TrainSettings


def cost(facts: Facts, settings: TrainSettings, trained: int, *, blockwise: bool = False) -> Estimate:
    """Return the cost; the classifier of a task model is not counted, for its size is not among the facts.

    A core is counted with 3e10 products a second.

    Args:
        facts: of the model.
        settings: how it is trained.
        trained: parameters that are trained.
        blockwise: one block at a time beside the dense parent, instead of end to end.
    """
    width = sum(inputs for _, inputs in facts.shapes.values())
    products = sum(out * inputs for out, inputs in facts.shapes.values())
    head = 0 if blockwise or facts.task != "causal-lm" else facts.vocabulary
    tokens = settings.batch * (facts.positions or 512)
    kept = 4 * tokens * (3 * width // (facts.blocks if blockwise else 1) + 3 * head)
    work = 3 * tokens * (products + head * width // len(facts.shapes)) * settings.steps * settings.accumulation
    return Estimate(
        trainable=trained,
        peak_mib=(4 * (2 if blockwise else 1) * facts.parameters + 16 * trained + kept) / 2**20,
        disk_mib=(4 * facts.parameters + 12 * trained) / 2**20,
        seconds=work / 3e10,
    )
