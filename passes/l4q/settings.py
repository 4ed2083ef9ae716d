"""The settings of L4Q."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from passes._quant import DYNAMIC, QuantSettings
from passes._train import Objective, TaskSettings

Borders = Literal["move", "stay", "none"]  # between codes


class L4QSettings(QuantSettings, TaskSettings):
    """Settings of L4Q."""

    activation: Literal["none", "dynamic"] = Field("none", description=DYNAMIC)
    rank: int = Field(4, ge=1, description="rank of the update of each linear")
    alpha: float | None = Field(None, gt=0, description="the update is scaled by alpha / rank; empty = 2 * rank")
    lr: float = Field(3e-3, gt=0, description="highest learning rate of A and B")
    lr_steps: float = Field(
        5e-3, gt=0, description="highest learning rate of the steps' logarithms: about their relative change in a step"
    )
    scale_gradients: bool = Field(
        False,
        description="whether a step's gradient is divided by sqrt(weights in its group * highest code), as in LSQ",
    )
    borders: Borders = Field(
        "move",
        description="where weights change their codes: 'move' = with the trained steps, as published; 'stay' = where "
        "the first steps have them, so that a trained step stretches what its codes stand for; 'none' = nowhere: "
        "steps stretch floats, and floats are left for a quantizer that makes up for what rounding loses",
    )
    offset: bool = Field(
        False, description="whether each group also trains a real offset, which few engines take; not under masks"
    )
    init: Literal["span", "search"] = Field(
        "search",
        description="the first steps: the narrowest that clip nothing, or those of least squared error; with `again`, "
        "codes on an equal grid keep theirs",
    )
    loss: Objective = Field(
        "kl", description="the distance to the dense parent's outputs, the task's own loss on training data, or both"
    )
    warm_steps: int = Field(
        0,
        ge=0,
        description="steps for which each block is trained by itself first, the weights themselves and their steps, "
        "towards the dense parent's output on calibration windows",
    )
    warm_lr: float = Field(
        0.01, gt=0, description="with warm_steps: highest learning rate of the weights, as a share of a linear's step"
    )

    @property
    def scale(self) -> float:
        """The factor alpha of B A."""
        return 2.0 if self.alpha is None else self.alpha / self.rank
