"""The step of what linears read, found once for all on calibration windows.

Formula: `input_scale = c / 127` (fp8: `c / 448`) with c the largest |x| that is read (`max`), or the share of it, by
eighths of an octave, that loses least of `sum (x - Q(x))^2` over all that is read (`mse`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compress.facts import Format, GridFact
from compress.grid import FP8_MOST, Grid, bounds
from compress.reading import rounded
from passes._layerwise import SIZE_BITS, Inputs, Layer
from passes._quant.rounding import FLOOR
from passes._quant.settings import InputRange

_SHARES = 64  # of the widest range that are tried, the least of them 1/235
_POINTS = 8  # that stand for all inputs of one size


def weights(planned: Mapping[str, GridFact]) -> dict[str, GridFact]:
    """Return grids as they are before their linears' inputs have steps: such inputs are floats."""
    return {n: dataclasses.replace(f, activation="none") if f.activation == "static" else f for n, f in planned.items()}


def with_steps(
    made: Mapping[str, Grid], layers: Sequence[Layer], planned: Mapping[str, GridFact], range_: InputRange
) -> dict[str, Grid]:
    """Return grids with the steps of static inputs.

    Args:
        made: of what `weights` returned.
        layers: with what they read, counted by size.
        planned: what their grids are to become.
        range_: how far their codes reach.
    """
    static = {layer.name: layer.inputs for layer in layers if planned[layer.name].activation == "static"}
    return {
        n: dataclasses.replace(g, activation="static", input_scale=step(static[n], g.fact.format, range_))
        if n in static
        else g
        for n, g in made.items()
    }


def step(inputs: Inputs, format_: Format, range_: InputRange) -> Tensor:
    """Return the step, float32 scalar, rounded up to what bfloat16 holds, so that every precision has the very same.

    Args:
        inputs: with peaks, and for `mse` counted by size; of nothing but zeros the step is 1.
        format_: of the codes.
        range_: how far they reach.
    """
    assert inputs.peak is not None
    most, peak = FP8_MOST if format_ == "fp8" else bounds(8)[1], inputs.peak.max()
    if not bool(peak > 0):
        return torch.ones_like(peak)
    found = peak / most
    if range_ == "mse":
        steps = found * 2 ** (-torch.arange(_SHARES, device=peak.device) / 8)
        found = steps[torch.stack([_lost(inputs, s, format_) for s in steps]).argmin()]
    bits = found.clamp(min=FLOOR).view(torch.int32) + 0xFFFF
    made: Tensor = (bits >> 16 << 16).view(torch.float32)
    return made


def _lost(inputs: Inputs, step_: Tensor, format_: Format) -> Tensor:
    """Return `sum (x - Q(x))^2`, float64, inputs of one size taken to be spread evenly."""
    assert inputs.sizes is not None
    assert inputs.peak is not None
    held: Tensor = inputs.sizes.nonzero()
    width = 2**SIZE_BITS // _POINTS
    within = torch.arange(_POINTS, device=held.device) * width + width // 2
    x = ((held << SIZE_BITS) + within).int().view(torch.float32).clamp(max=inputs.peak.max())
    each = (x - rounded(x, step_, format_)).double().square().mean(1)
    lost: Tensor = each @ inputs.sizes[held[:, 0]].double()
    return lost
