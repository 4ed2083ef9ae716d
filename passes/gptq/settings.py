"""The settings of GPTQ."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from passes._layerwise import REFERENCE, SEQUENTIAL, LayerwiseSettings
from passes._quant import StaticSettings


class GptqSettings(LayerwiseSettings, StaticSettings):
    """Settings of GPTQ."""

    sequential: Literal["linear", "block"] = Field("linear", description=SEQUENTIAL)
    reference: Literal["quantized", "dense"] = Field("dense", description=REFERENCE)
    steps: Literal["span", "search"] = Field(
        "search", description="of a group: the narrowest that clip nothing, or those whose rounding costs least under H"
    )
    order: Literal["activation", "none"] = Field(
        "activation", description="of the columns: those that read the largest inputs first, or as they stand"
    )
    damping: float = Field(0.01, ge=0, le=10, description="added to the diagonal of H, as a share of its mean")
    refine: Literal["none", "codes", "steps"] = Field(
        "steps", description="after the sweep: nothing, codes move while that lowers the error, or codes and scales do"
    )
    refine_cycles: int = Field(10, ge=1, description="most rounds over all columns of a linear")
