"""A finished block on disk: the changed linears and their masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from compress import masks, tensors
from compress.tensors import Layout


class Checkpoint:
    """Where a block is kept once it is changed: a file of parameters, which comes last, beside one of masks.

    Args:
        folder: that exists.
        index: the block's number.
        layers: its changed linears, by name.
    """

    def __init__(self, folder: Path, index: int, layers: Mapping[str, nn.Linear]) -> None:
        self._weights, self._masks = folder / f"{index:05d}.safetensors", folder / f"{index:05d}-masks.safetensors"
        self._parameters = {f"{n}.{inner}": p for n, layer in layers.items() for inner, p in layer.named_parameters()}
        self._shapes = {n: (layer.out_features, layer.in_features) for n, layer in layers.items()}

    def exists(self) -> bool:
        """Tell whether the block was kept."""
        return self._weights.exists()

    def keep(self, made: Mapping[str, Tensor]) -> None:
        """Keep the layers as they are, and the masks made of them."""
        masks.write(self._masks, made, {n: self._shapes[n] for n in made})
        layouts = {n: Layout(p.dtype, tuple(p.shape)) for n, p in self._parameters.items()}
        tensors.write(self._weights, layouts, lambda name: self._parameters[name])

    def restore_(self) -> Mapping[str, Tensor]:
        """Put the parameters back and return the masks."""
        places = tensors.places(self._weights)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(places[name].read())
        made = tensors.places(self._masks)
        return masks.StoredMasks(self._masks, {n: shape for n, shape in self._shapes.items() if n in made})
