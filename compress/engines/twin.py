"""The model as something else needs it, without changing it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


@contextmanager
def twin(model: PreTrainedModel, dtype: torch.dtype, device: str | None = None) -> Iterator[PreTrainedModel]:
    """Yield the model in evaluation mode, its parameters of one type, on one device; without gradients.

    The model itself where it is so already (its modes are restored afterwards), else a copy.  Buffers, such as the
    frequencies of rotary positions, keep their precision.

    Args:
        model: stays as it is.
        dtype: of the parameters.
        device: `cpu` or the like; None = where the model is.
    """
    wanted = torch.device(device) if device else model.device
    if any(p.dtype != dtype or p.device != wanted for p in model.parameters()):
        model = copy.deepcopy(model).to(wanted)  # type: ignore[arg-type]
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            yield model.train(False)
    finally:
        for module, training in modes.items():
            module.training = training
