"""What every pass that walks the blocks with calibration windows takes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.contracts import PassSettings

SEQUENTIAL = (
    "when the inputs of a linear are taken: after the linears before it in its block have changed, so that it can make "
    "up for what they lost, or, in one run, before any of its block has"
)
REFERENCE = (
    "what the output of a changed linear is held against: what its old weight makes of the inputs that it gets now, or "
    "what the model gave before anything changed"
)


class LayerwiseSettings(PassSettings):
    """Settings of a walk over the blocks; a pass narrows `reference` to the words that are its own."""

    sequential: Literal["linear", "block"] = Field("block", description=SEQUENTIAL)
    reference: Literal["sparse", "quantized", "dense"] = Field("sparse", description=REFERENCE)
    batch: int = Field(8, ge=1, description="calibration windows at once")
