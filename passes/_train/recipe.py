"""What training is made of: its settings, what is trained, the learning rate, the order of the data, the precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from compress import tree
from compress.contracts import PassSettings

Schedule = Literal["linear", "cosine", "constant"]

STRIDE = 1_000_003  # between the seeds of two epochs or steps
TURN = 15_485_863  # between those of two passes


class TrainSettings(PassSettings):
    """What every pass that trains takes."""

    steps: int = Field(200, ge=1, description="optimizer steps")
    lr: float = Field(1e-3, gt=0, description="highest learning rate")
    batch: int = Field(8, ge=1, description="sequences at once")
    accumulation: int = Field(1, ge=1, description="batches whose gradients are averaged into one step")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    schedule: Schedule = Field("linear", description="how the learning rate falls to 0 after that, or that it stays")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, of everything trained")
    clip: float = Field(1.0, ge=0, description="largest norm of a step's gradient; 0 = no limit")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the matrix products; auto = bf16 on a GPU that has it, else fp32"
    )
    recompute: bool = Field(False, description="compute each block again in the backward: less memory, more time")
    checkpoint_every: int = Field(50, ge=1, description="steps between two checkpoints, of which a killed run resumes")


@dataclass(frozen=True)
class Group:
    """Tensors that are trained alike.

    Attributes:
        parameters: by a name that is unique over all groups.
        lr: their highest learning rate.
        weight_decay: their share of AdamW's decay.
        masks: of some of them, bool of their shape, True = kept: nothing else has a gradient, so that AdamW's moments
            of a pruned weight stay zero, as it does.
    """

    parameters: Mapping[str, nn.Parameter]
    lr: float
    weight_decay: float = 0.0
    masks: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Trained:
    """What training did.

    Attributes:
        curve: loss of each step, before its update.
        validations: (step, value) of each validation; empty without one.
        best: the step whose state stayed.
    """

    curve: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0


def lr_factor(step: int, steps: int, warmup: float, schedule: Schedule) -> float:
    """Return the share of the highest learning rate at a step, 0 <= step < steps; never 0."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    left = 1 - (step - rise) / (steps - rise)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[schedule]


def draw(number: int, count: int, batch: int, seed: int) -> list[int]:
    """Return the examples of batch `number`: epoch after epoch without gaps, each in a random order of its own."""
    batch = min(batch, count)
    orders: dict[int, list[int]] = {}
    chosen = []
    for at in range(number * batch, (number + 1) * batch):
        epoch = at // count
        if epoch not in orders:
            random = torch.Generator().manual_seed((seed + STRIDE * epoch) % 2**63)
            orders[epoch] = torch.randperm(count, generator=random).tolist()
        chosen.append(orders[epoch][at % count])
    return chosen


def autocast(settings: TrainSettings, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which matrix products have the precision that the settings ask for."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if settings.precision == "bf16" or (settings.precision == "auto" and able):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def inputs_of(model: PreTrainedModel, batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    """Return what to call the model with for a batch, without labels and without a cache."""
    decoder = tree.family(model).decoder
    names = ["input_ids", "attention_mask", *([] if decoder else ["token_type_ids"])]
    found = {n: batch[n].to(device) for n in names if n in batch}
    return {**found, "use_cache": False} if decoder else found


@contextmanager
def frozen(model: nn.Module, settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Freeze the model, dropout off, while the context lasts; what is trained is thawed inside.

    A model in half precision is held in fp32 meanwhile unless a GPU's autocast takes it as it is; every parameter has
    its own precision again at the end.
    """
    kept = {n: p.dtype for n, p in model.named_parameters()}
    half = any(d in (torch.bfloat16, torch.float16) for d in kept.values())
    if half and (device.type == "cpu" or isinstance(autocast(settings, device), nullcontext)):
        model.float()
    model.requires_grad_(False).eval()
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(kept.get(name, parameter.dtype))
            parameter.requires_grad_(True).grad = None


@contextmanager
def recomputed(blocks: Iterable[nn.Module], wanted: bool = True) -> Iterator[None]:
    """Keep only the inputs of each block while the context lasts; the backward computes the rest again."""
    changed = list(blocks) if wanted else []
    for block in changed:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in changed:
            del block.forward
