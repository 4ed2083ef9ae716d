"""The processes that train one model together: each on batches of its own, gradients averaged over all.

A step of `size` processes with n batches each takes the very batches of one process with `size * n`, so that both
give the same model but for the order of sums.  Sharded, each process holds its part of every parameter, gradient and
moment (`fully_shard`), and a block is whole only while it computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from compress import tree
from compress.contracts import PassSettings
from compress.errors import BadSettings


class TeamSettings(PassSettings):
    """What a pass takes that several processes can train."""

    processes: int = Field(
        1, ge=1, description="processes of this machine that train together, each `accumulation` batches a step"
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="what each of them holds: the whole model, or a part of every parameter, gradient and moment",
    )

    def check_team(self) -> None:
        """Raise `BadSettings` for one process that would share with nobody."""
        if self.sharding != "none" and self.processes == 1:
            what = f"shards over several processes, got {self.sharding!r} with processes = 1"
            raise BadSettings(f"{what}; processes = 2, or leave it out", key="sharding")


class Team:
    """One process among those that train together; alone unless `join` found others.

    Attributes:
        rank: its number, from 0; the first one writes and tells.
        size: how many there are.
    """

    def __init__(self, state: Any = None) -> None:
        self._state = state
        self.rank: int = state.process_index if state else 0
        self.size: int = state.num_processes if state else 1

    @classmethod
    def join(cls, device: torch.device) -> Team:
        """Return the team of a process that `accelerate launch` started; it waits for the others."""
        from accelerate import PartialState  # seconds, which a process that trains alone need not wait for

        return cls(PartialState(cpu=device.type == "cpu"))

    @property
    def device(self) -> torch.device:
        """The device that this process of a joined team works on."""
        found: torch.device = self._state.device
        return found if found.type == "cuda" else torch.device(found.type)

    def batch(self, number: int) -> int:
        """Return which batch of all is this process's own of that number."""
        return number * self.size + self.rank

    def average_(self, parameters: Iterable[Tensor]) -> None:
        """Let every gradient be the mean over the processes; those of sharded parameters are already."""
        for gradient in (p.grad for p in parameters) if self.size > 1 else ():
            if gradient is not None and not isinstance(gradient, DTensor):
                gradient.copy_(self._mean(gradient))

    def mean(self, value: float) -> float:
        """Return a value's mean over the processes, the same in all of them."""
        return value if self.size == 1 else float(self._mean(torch.tensor(value, device=self.device)))

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            self._state.wait_for_everyone()

    def shard_(self, model: PreTrainedModel) -> None:
        """Leave each process a part of every parameter, block by block."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        units: list[nn.Module] = [*tree.blocks(model).values(), model]
        for unit in units:
            if any(True for _ in unit.parameters()):
                fully_shard(unit, mesh=mesh)

    def _mean(self, tensor: Tensor) -> Tensor:
        from accelerate.utils import reduce

        found: Tensor = reduce(tensor, "mean")
        return found


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all parts that the processes hold; all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """Return what this process holds of a whole tensor that is distributed as another of its shape is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def own(tensor: Tensor) -> Tensor:
    """Return the values that lie in this process; what is written there stays."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
