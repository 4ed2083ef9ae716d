"""What blockwise local distillation takes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from passes._distillation import DistilSettings
from passes._library import SpaceSettings


class BldSettings(SpaceSettings, DistilSettings):
    """Settings of blockwise local distillation."""

    coupling: Literal["decoupled", "coupled"] = Field(
        "decoupled",
        description="each variant beside the parent's other part, which is frozen; or then also each pair of an "
        "attention and an FFN together, as many trainings as there are pairs",
    )
