"""The settings of structured pruning."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from passes._narrowing import Asked
from passes._train import TrainSettings

Share = Annotated[float, Field(ge=0, lt=1)]


class StructuredSettings(TrainSettings):
    """Settings of structured pruning; those of training are for the criteria that learn."""

    heads: Share | tuple[int, ...] = Field(
        0.0,
        description="share of the attention heads to remove in each block, or how many to keep, block by block; "
        "with grouped queries a key-value head and its query heads count as one",
    )
    neurons: Share | tuple[int, ...] = Field(
        0.25, description="share of the FFN neurons to remove in each block, or how many to keep, block by block"
    )
    layers: int = Field(0, ge=0, description="how many whole blocks to remove; what stays is then made narrower")
    multiple: int = Field(
        128, ge=1, description="a share of neurons keeps the nearest multiple of this, which kernels like; 1 = any"
    )
    criterion: Literal["magnitude", "activation", "gates"] = Field(
        "magnitude", description="what heads and neurons are worth: by weights, by what they add, or learned"
    )
    layer_criterion: Literal["similarity", "das"] = Field(
        "similarity", description="which blocks go: those that change their input least, or those whose absence costs "
        "the least loss, found by trials of `steps` rounds"
    )  # fmt: skip
    rank: int = Field(8, ge=1, description="with 'gates': rank of the update that is trained beside them and dropped")
    penalty: float = Field(1e-4, ge=0, description="with 'gates': weight of their l1 norm in the loss")
    rate: float = Field(0.5, gt=0, description="with 'das': how far a round moves a block's chance of being skipped")

    @property
    def asked(self) -> Asked:
        """What shall go."""
        return Asked(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Asked)})
