"""What linears that read the same may become: rounded as they are or scaled, on plain or on narrower steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.facts import GridFact
from compress.grid import Grid
from passes import _quant
from passes._folding import Pair
from passes.awq.scales import best


@dataclass(frozen=True)
class Attempt:
    """What the linears may become.

    Attributes:
        what: in words.
        scale: of the channels that they read; None = none.
        inputs: what each of their inputs is divided by, [in].
        grids: of each linear, of its weight times that.
    """

    what: str
    scale: Tensor | None
    inputs: Tensor
    grids: Sequence[Grid]

    def weights(self) -> Iterator[Tensor]:
        """Yield of each linear the weight that does the same where inputs are not divided."""
        yield from (grid.dequantized() / self.inputs for grid in self.grids)


def attempts(
    weights: Sequence[Tensor], facts: Sequence[GridFact], gram: Tensor, pair: Pair | None, *, clip: bool
) -> Iterator[Attempt]:
    """Yield attempts, first plain rounding and last what was asked for.

    Args:
        weights: of the linears, float32 `[out, in]`.
        facts: their grids.
        gram: H of their inputs.
        pair: what they are of, if their inputs can be divided.
        clip: whether steps are narrowed too.
    """
    tried: list[tuple[str, str, Tensor | None, Tensor]] = [
        ("rounding to nearest", "narrower steps", None, torch.ones_like(gram[0]))
    ]
    scale = None if pair is None else best(weights, facts, gram, pair)
    if pair is not None and scale is not None:
        tried.append(("scales", "scales and narrower steps", scale, pair.spread(scale)))
    for plain, narrower, channels, inputs in tried:
        scaled = [(weight * inputs, fact) for weight, fact in zip(weights, facts, strict=True)]
        grids = [_quant.grid(w, _quant.span(w, fact), fact) for w, fact in scaled]
        yield Attempt(plain, channels, inputs, grids)
        if clip:
            seen = gram / torch.outer(inputs, inputs)
            grids = [_quant.grid(w, _quant.search(w, fact, seen), fact) for w, fact in scaled]
            yield Attempt(narrower, channels, inputs, grids)
