"""The settings of recovery."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from pydantic import Field

from passes._train import TaskSettings

Method = Literal["sparse_delta", "mask_lora", "full", "scale_bias_norm", "ia3", "ln_tuning", "hira", "lora", "adalora"]
Support = Literal["squared-gradients", "top-magnitude", "lottery"]

FILLING = ("lora", "adalora")  # what these leave has no zeros
KEEPING: tuple[Method, ...] = (
    "sparse_delta", "mask_lora", "full", "hira", "scale_bias_norm", "ia3", "ln_tuning",
)  # fmt: skip
RANKED = ("mask_lora", "hira", *FILLING)

ONLY_WITH: Mapping[str, Collection[str]] = {
    "rank": RANKED,
    "alpha": ("mask_lora", *FILLING),
    "share": ("sparse_delta",),
    "support": ("sparse_delta",),
    "probes": ("sparse_delta",),
    "bias": ("scale_bias_norm",),
    "orthogonality": ("adalora",),
}


class RecoverSettings(TaskSettings):
    """Settings of recovery; `include` and `exclude` choose the linears."""

    method: Method = Field("sparse_delta", description="what is trained; 'lora' and 'adalora' on dense linears only")
    rank: int = Field(16, ge=1, description="rank of each linear's update; of 'adalora', their mean at the end")
    alpha: float | None = Field(None, gt=0, description="the update is scaled by alpha / rank; empty = 2 * rank")
    share: float = Field(
        0.05, gt=0, le=1, description="of the weights that are not pruned, the share that 'sparse_delta' trains"
    )
    support: Support = Field(
        "squared-gradients",
        description="which these are: those of largest squared gradient, of largest value, or those that move most "
        "when all are trained for `steps` steps first",
    )
    probes: int = Field(16, ge=1, description="batches over which 'squared-gradients' are summed")
    bias: bool = Field(True, description="with 'scale_bias_norm': train the bias of every linear that has one")
    orthogonality: float = Field(0.1, ge=0, description="weight of 'adalora''s pull towards orthogonal factors")

    @property
    def scale(self) -> float:
        """The factor s of an additive update."""
        return 2.0 if self.alpha is None else self.alpha / self.rank

    @property
    def first_rank(self) -> int:
        """The rank of every linear of which 'adalora' prunes its way down."""
        return max(self.rank + 1, round(1.5 * self.rank))

    @property
    def settled(self) -> int:
        """The steps at the end over which the ranks of 'adalora' stay as they are."""
        return max(self.steps // 3, 1)
