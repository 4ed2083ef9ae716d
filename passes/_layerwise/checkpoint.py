"""A finished block on disk: the changed linears and their masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from compress import files


def store(path: Path, layers: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> None:
    """Write the parameters of the layers and the new masks, by the layers' names; one file, whole or absent."""
    content = {f"{n}.{inner}": p.detach() for n, layer in layers.items() for inner, p in layer.named_parameters()}
    content |= {f"{n}.mask": mask for n, mask in masks.items()}
    files.write_atomic(path, save({n: t.contiguous() for n, t in content.items()}))


def restore_(path: Path, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Put the parameters back and return the masks."""
    content = load_file(path)
    with torch.no_grad():
        for name, layer in layers.items():
            for inner, parameter in layer.named_parameters():
                parameter.copy_(content[f"{name}.{inner}"])
    return {n: content[f"{n}.mask"] for n in layers if f"{n}.mask" in content}
