"""The settings of DSEE."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from passes._masks import MaskSettings
from passes._narrowing import Asked
from passes._train import TaskSettings
from passes.dsee.support import Kind


class DseeSettings(MaskSettings, TaskSettings):
    """Settings of DSEE; `include` and `exclude` choose what is pruned, `linears` what of it is updated."""

    linears: Literal["qv", "all"] = Field(
        "qv", description="which linears get the update: queries and values (GPT-2's fused q, k, v too), or all"
    )
    rank: int = Field(16, ge=0, description="rank of the update's low-rank part; 0 = none")
    alpha: float | None = Field(None, gt=0, description="the update is scaled by alpha / rank; empty = 2 * rank")
    entries: int = Field(64, ge=0, description="entries of the update's sparse part in each linear; 0 = none")
    support: Kind = Field(
        "decomposition",
        description="where these entries lie: where the weight differs most from a low-rank matrix, "
        "where it is largest, or anywhere",
    )
    tune_steps: int = Field(200, ge=1, description="optimizer steps before the mask is made; `steps` are those after")
    mask_from: Literal["update", "weight", "both"] = Field(
        "update", description="what the mask of an updated linear is drawn from: |update|, |W| or |W + update|"
    )
    merge: Literal["inside", "branch"] = Field(
        "inside",
        description="the update goes under the mask and into the weight, or its low-rank part stays beside the weight",
    )

    structured_heads: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="instead of masks: share of each block's attention heads to remove, those of the lowest score of "
        "queries and values; with grouped queries a key-value head and its query heads count as one",
    )
    structured_neurons: float = Field(
        0.0, ge=0, lt=1, description="instead of masks: share of each block's FFN neurons to remove, by trained gates"
    )
    multiple: int = Field(128, ge=1, description="with structured_neurons: the nearest multiple of this stays")
    penalty: float = Field(1e-4, ge=0, description="with structured_neurons: weight of the gates' l1 norm in the loss")

    @property
    def structured(self) -> bool:
        """Whether heads and neurons are removed instead of masks made."""
        return bool(self.structured_heads or self.structured_neurons)

    @property
    def asked(self) -> Asked:
        """What shall be removed."""
        return Asked(
            heads=self.structured_heads,
            neurons=self.structured_neurons,
            multiple=self.multiple,
            include=self.include,
            exclude=self.exclude,
        )

    @property
    def scale(self) -> float:
        """The factor s of the update."""
        return 2.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    @property
    def form(self) -> str:
        """The reparametrisation of an updated linear."""
        return "mask_lora" if self.merge == "inside" else "branch"
