"""What every pass takes that trains blocks one by one towards the parent's outputs."""

from __future__ import annotations

from pydantic import Field

from passes._train import TrainSettings


class DistilSettings(TrainSettings):
    """Settings of the training of one block, and of what it is judged by."""

    steps: int = Field(200, ge=0, description="optimizer steps of each training; 0 = blocks as they begin")
    held_out: int = Field(32, ge=1, description="calibration windows by which the best state of a block is chosen")
    threads: int = Field(
        1, ge=1, description="CPU threads of one training: they decide the last bits of what it gives, its company none"
    )
