"""The settings of global distillation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from passes._train import TaskSettings, TeamSettings

Layers = Literal["blocks", "last"]


class GkdSettings(TeamSettings, TaskSettings):
    """Settings of global distillation; `include` and `exclude` choose the block linears, all else is trained."""

    lr: float = Field(1e-4, gt=0, description="highest learning rate")
    held_out: float | None = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the training examples that only choose the best state, the one whose outputs are nearest "
        "to the parent's; 0 = the last state stays",
    )
    cosine: float = Field(1.0, ge=0, description="weight of 1 - cosine, summed over the matched hidden states")
    kl: float = Field(1.0, ge=0, description="weight of the distance between the outputs")
    lm: float = Field(0.0, ge=0, description="weight of the task's own loss")
    temperature: float = Field(1.0, gt=0, description="by which logits are divided before their KL, times its square")
    layers: Layers = Field("blocks", description="whose hidden states are matched: every block's, or the last one's")
