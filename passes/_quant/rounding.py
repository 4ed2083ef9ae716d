"""The steps of a grid, and rounding to it: one rule for every pass, in float32.

Weights `[out, in]`; groups of neighbours along `in`, as in `compress/grid.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compress.facts import GridFact
from compress.grid import DTYPES, FP8_MOST, Grid, bounds, groups, spread

FLOOR = 2.0**-20  # of a scale, so that none vanishes in float16


@dataclass(frozen=True)
class Steps:
    """How wide the steps of each group are, and which code stands for 0.

    Attributes:
        scale: float32 `[out, groups]`, above 0.
        zero: int8 `[out, groups]`; None = 0 everywhere.
    """

    scale: Tensor
    zero: Tensor | None = None


def span(weight: Tensor, fact: GridFact) -> Steps:
    """Return the narrowest steps that clip nothing.

    Symmetric: `max(|min W / lowest code|, |max W / highest code|)` (L4Q, arXiv 2402.04902, section 3.4).  With a zero:
    the range, widened to hold 0, over `2^bits - 1`.  Floats of 8 bits: `max |W| / 448`.  A group of zeros alone gets
    steps of 1.
    """
    low_code, high_code = (-FP8_MOST, FP8_MOST) if fact.format == "fp8" else bounds(fact.bits)
    low, high = _ranges(weight, fact.group_size)
    return _steps(low.clamp(max=0), high.clamp(min=0), low_code, high_code, asymmetric=fact.zero)


def codes(weight: Tensor, steps: Steps, fact: GridFact) -> Tensor:
    """Return the nearest codes, int8 or float8_e4m3fn `[out, in]`: clamped first, then rounded half to even."""
    inputs = weight.shape[1]
    scaled = weight.float() / spread(steps.scale, inputs, fact.group_size)
    if fact.format == "fp8":
        return scaled.clamp_(-FP8_MOST, FP8_MOST).to(DTYPES["fp8"])
    low, high = bounds(fact.bits)
    if steps.zero is None:
        return scaled.clamp_(low, high).round_().to(torch.int8)
    zero = spread(steps.zero.float(), inputs, fact.group_size)
    return scaled.clamp_(low - zero, high - zero).round_().add_(zero).to(torch.int8)


def grid(weight: Tensor, steps: Steps, fact: GridFact) -> Grid:
    """Return the grid of a weight rounded to the nearest codes."""
    made = codes(weight, steps, fact)
    return Grid(
        bits=fact.bits,
        group_size=fact.group_size,
        codes=made,
        scale=steps.scale,
        zero=steps.zero,
        activation=fact.activation,
    )


def integers(x: Tensor) -> Tensor:
    """Return what linears read where inputs are rounded to unsigned 8 bits, float [..., tokens, in].

    All of a sequence have one step, `s = (max(x, 0) - min(x, 0)) / 255`, and one code that stands for 0, as ONNX's
    DynamicQuantizeLinear defines them for what comes at once.
    """
    dims = tuple(range(max(x.dim() - 2, 0), x.dim()))
    low, high = x.amin(dims, keepdim=True).clamp(max=0), x.amax(dims, keepdim=True).clamp(min=0)
    step = ((high - low) / 255).clamp(min=torch.finfo(x.dtype).tiny)
    zero = (-low / step).round()
    return ((x / step).round().add_(zero).clamp_(0, 255) - zero) * step


def _ranges(weight: Tensor, group_size: int | None) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest weight of each group, float32 `[out, groups]`."""
    rows, inputs = weight.shape
    count = groups(inputs, group_size)
    missing = count * group_size - inputs if group_size else 0
    whole = functional.pad(weight.float(), (0, missing)).view(rows, count, -1)
    return whole.amin(-1), whole.amax(-1)


def _steps(low: Tensor, high: Tensor, low_code: float, high_code: float, *, asymmetric: bool) -> Steps:
    empty = (low == 0) & (high == 0)
    wide = (high - low) / (high_code - low_code) if asymmetric else torch.maximum(low / low_code, high / high_code)
    scale = wide.clamp(min=FLOOR).masked_fill(empty, 1)
    if not asymmetric:
        return Steps(scale)
    zero = (low_code - low / scale).round().clamp(low_code, high_code)
    return Steps(scale, zero.to(torch.int8))
