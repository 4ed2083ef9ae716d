"""The settings of PST, and the sparsity that they ask for at a step."""

from __future__ import annotations

from pydantic import Field

from passes._masks import MaskSettings
from passes._train import TaskSettings


class PstSettings(MaskSettings, TaskSettings):
    """Settings of PST."""

    rank: int = Field(8, ge=1, description="rank of the weight's update U V")
    score_rank: int = Field(8, ge=1, description="rank of the score's low-rank part A B")
    beta: float = Field(1.0, ge=0, description="factor of the weight's update")
    alpha1: float = Field(1.0, ge=0, description="factor of the score's low-rank part")
    alpha2: float = Field(1.0, ge=0, description="factor of the score's row and column parts")
    init_std: float = Field(
        0.02, gt=0, description="standard deviation of U and A at the start; the paper's code has 1"
    )
    score_lr: float = Field(1.0, gt=0, description="learning rate of A, B, R and C, as a multiple of lr")
    detach_magnitude: bool = Field(False, description="let U and V feel the weight alone, not its magnitude's score")
    initial_sparsity: float = Field(0.0, ge=0, lt=1, description="share of zeros at the first step")
    prune_warmup: float = Field(0.1, ge=0, le=1, description="share of the steps before the sparsity begins to rise")
    prune_cooldown: float = Field(0.3, ge=0, le=1, description="share of the steps, the last, at the final sparsity")
    refresh: int = Field(4, ge=1, description="steps between two selections of the masks")

    @property
    def settled(self) -> int:
        """The first step at the final sparsity."""
        return self.steps - round(self.prune_cooldown * self.steps)

    def sparsity_at(self, step: int, final: float) -> float:
        """Return the share of zeros at a step, 0 <= step <= steps: constant, cubic, constant (arXiv 1710.01878)."""
        start, end = round(self.prune_warmup * self.steps), self.settled
        if step >= end:
            return final
        if step <= start:
            return self.initial_sparsity
        left = 1 - (step - start) / (end - start)
        return final + (self.initial_sparsity - final) * left**3
