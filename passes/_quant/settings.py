"""What every pass that quantizes takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from compress.contracts import PassSettings
from compress.facts import Activation, Format
from passes._candidates import Choose, Windows

Bits = Literal[2, 3, 4, 8]
InputRange = Literal["max", "mse"]
DYNAMIC = "'dynamic': linears also read integers of 8 bits; needs bits = 8 and whole rows"


class QuantSettings(PassSettings):
    """Settings of a pass that turns weights into codes."""

    bits: Literal[2, 3, 4, 8, "plan"] = Field(
        4,
        description="of a code: 2, 3, 4 or 8; 'plan': each linear gets the codes that an earlier pass chose for it, "
        "or stays in floats where it chose none",
    )
    group_size: int | None = Field(
        None, ge=-1, description="inputs that share a scale; -1 = a whole row; empty = 128, or a whole row at 8 bits"
    )
    symmetric: bool = Field(
        True, description="whether code 0 stands for 0 everywhere, which TensorRT needs; false = a code of each group"
    )
    layers: Mapping[str, Bits | Literal["float"]] = Field(
        {},
        description="bits of the linears whose names match a pattern, as in include: the last that matches holds; "
        "'float' leaves them as they are",
    )
    average_bits: float | None = Field(
        None,
        gt=0,
        le=8,
        description="mean bits of the weights that get codes (codes alone, without scales) not to be exceeded: the "
        "bits of each linear then come from what they cost in quality; those of `layers` stay and count, floats do not",
    )
    choices: tuple[Bits, ...] = Field(
        (2, 3, 4, 8), min_length=1, description="with average_bits: the bits that a linear may get"
    )
    choose: Choose = "layer"
    choose_windows: Windows = 8
    activation: Activation = Field(
        "none",
        description=f"{DYNAMIC}; 'static': their steps are found on calibration data and kept, as TensorRT needs them",
    )
    again: bool = Field(False, description="whether linears that have codes already may be quantized once more")

    @property
    def codes(self) -> Format:
        """What codes are: integers, unless a pass has other ones."""
        return "int"


class StaticSettings(QuantSettings):
    """Settings of a pass that can also find the steps of what linears read; others narrow `activation`."""

    input_range: InputRange = Field(
        "mse",
        description="with activation = 'static', how far codes of inputs reach: to the largest ('max'), or to where "
        "what is clipped and what is rounded cost least together, in squares ('mse')",
    )
