"""The settings of a pass that prunes in one walk."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from passes._layerwise import REFERENCE, LayerwiseSettings
from passes._rules import PruneSettings


class OneshotSettings(LayerwiseSettings, PruneSettings):
    """Settings of a pass that prunes in one walk."""

    reference: Literal["sparse", "dense"] = Field("sparse", description=REFERENCE)
    densities: Literal["uniform", "owl"] = Field(
        "uniform", description="every block as sparse as every other, or the denser the more outliers it has"
    )
    owl_lambda: float = Field(0.08, gt=0, lt=0.5, description="with 'owl': half of what densities may lie apart")
    owl_threshold: float = Field(5.0, gt=0, description="with 'owl': times the mean score, from which on is an outlier")
    refine: Literal["none", "swaps"] = Field(
        "none", description="whether kept and pruned weights of a row change places while that lowers its error"
    )
    refine_cycles: int = Field(50, ge=1, description="with 'swaps': most swaps of a row")
