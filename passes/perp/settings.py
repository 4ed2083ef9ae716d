"""The settings of PERP."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from passes._train import TrainSettings

Subset = Literal["biases", "norms", "head", "mask_lora", "scale_lora", "lora_prune", "lora"]


class PerpSettings(TrainSettings):
    """Settings of PERP."""

    train: tuple[Subset, ...] = Field(
        ("norms", "mask_lora"), min_length=1, description="what is trained; at most one of the low-rank forms"
    )
    rank: int = Field(16, ge=1, description="rank of the update of each linear")
    alpha: float | None = Field(None, gt=0, description="the update is scaled by alpha / rank; empty = 2 * rank")
    mode: Literal["retrain", "reconstruct"] = Field(
        "retrain", description="end to end on training data, or block by block against the dense parent"
    )
    window: Literal["module", "block"] = Field(
        "module",
        description="with 'reconstruct': attention and MLP each by itself, or whole blocks; each takes `steps`",
    )
    inputs: Literal["sparse", "dense"] = Field(
        "sparse", description="with 'reconstruct': blocks read what the blocks before give now, or gave in the parent"
    )
    drop_mask: bool = Field(False, description="with 'lora': let the update fill the zeros and give up the masks")

    @property
    def scale(self) -> float:
        """The factor s of the additive update."""
        return 2.0 if self.alpha is None else self.alpha / self.rank
