"""What is trained, and what that costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from compress import tree
from compress.contracts import Estimate
from compress.facts import BlockConfig, Facts
from compress.families import families
from passes._distillation import Pick
from passes._library import Variant, joined
from passes.bld.settings import BldSettings
from profiles import hidden_of

_VALIDATIONS = 11  # of a training


def alone(found: Sequence[Variant]) -> list[Pick]:
    """Return every variant that is not the parent's, by itself."""
    return [(v,) for v in found if not v.parent]


def pairs(found: Sequence[Variant]) -> Iterator[Pick]:
    """Yield block by block every pair of an attention and an FFN neither of which is the parent's."""
    for _, block in itertools.groupby((v for v in found if not v.parent), key=lambda v: v.block):
        here = list(block)
        yield from itertools.product(*([v for v in here if v.part == part] for part in ("attention", "ffn")))


def cost(facts: Facts, picks: Sequence[Pick], settings: BldSettings) -> Estimate:
    """Return the cost of trainings one after the other, a core doing 3e10 products a second.

    Args:
        facts: of the parent.
        picks: what is trained.
        settings: how.
    """
    hidden, length = hidden_of(facts), facts.positions or 512
    parts = [[weights(facts, v.config, v.part) for v in pick] for pick in picks]
    whole = [sum(weights(facts, joined(pick[0].config, pick), part) for part in ("attention", "ffn")) for pick in picks]
    steps = settings.batch * settings.steps * settings.accumulation
    tokens = length * (3 * steps + _VALIDATIONS * settings.held_out)
    rows = length * (steps + settings.held_out)
    largest, trained = max(whole), sum(map(sum, parts))
    return Estimate(
        trainable=max(map(sum, parts)),
        peak_mib=4 * (tree.held(facts) + 6 * largest + settings.batch * length * 16 * hidden) / 2**20,
        disk_mib=4 * (facts.parameters + trained + 3 * rows * hidden + 3 * largest) / 2**20,
        seconds=tokens * sum(whole) / 3e10 + rows * sum(map(math.prod, facts.shapes.values())) / 3e10,
    )


def weights(facts: Facts, config: BlockConfig, part: str) -> int:
    """Return how many weights the linears of a block's part have."""
    hidden = hidden_of(facts)
    if part == "attention":
        heads = 2 * (config.heads + config.kv_heads) * config.head_dim
        return hidden * (hidden if config.linear_attention else heads)
    return hidden * (hidden if config.linear_ffn else config.ffn * (len(families()[facts.family].up) + 1))
