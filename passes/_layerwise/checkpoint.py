"""A finished block on disk: its parameters, and the masks and codes that were made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from compress import files, grids, masks, tensors
from compress.grid import Grid
from compress.grids import StoredGrids
from compress.tensors import Layout


class Checkpoint:
    """Where a block is kept once it is changed: a file of parameters, which comes last, beside those of what was made.

    Args:
        folder: that exists.
        index: the block's number.
        block: whose parameters are kept, those of norms too.
        layers: its linears that are to change, by name.
    """

    def __init__(self, folder: Path, index: int, block: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
        self._weights, self._masks = folder / f"{index:05d}.safetensors", folder / f"{index:05d}-masks.safetensors"
        self._grids, self._cards = folder / f"{index:05d}-grids.safetensors", folder / f"{index:05d}-grids.json"
        self._parameters = dict(block.named_parameters())
        self._shapes = {n: (layer.out_features, layer.in_features) for n, layer in layers.items()}

    def exists(self) -> bool:
        """Tell whether the block was kept."""
        return self._weights.exists()

    def keep(self, made: Mapping[str, Tensor | Grid]) -> None:
        """Keep the block as it is, and the masks and codes made of its linears."""
        new_masks = {n: m for n, m in made.items() if isinstance(m, Tensor)}
        new_grids = {n: g for n, g in made.items() if isinstance(g, Grid)}
        masks.write(self._masks, new_masks, {n: self._shapes[n] for n in new_masks})
        grids.write(self._grids, new_grids)
        files.write_json(self._cards, {n: grids.card(g) for n, g in new_grids.items()})
        layouts = {n: Layout(p.dtype, tuple(p.shape)) for n, p in self._parameters.items()}
        tensors.write(self._weights, layouts, lambda name: self._parameters[name])

    def restore_(self) -> tuple[Mapping[str, Tensor], Mapping[str, Grid]]:
        """Put the parameters back and return the masks and the codes."""
        places = tensors.places(self._weights)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(places[name].read())
        made = tensors.places(self._masks)
        kept = masks.StoredMasks(self._masks, {n: shape for n, shape in self._shapes.items() if n in made})
        return kept, StoredGrids(self._grids, files.read_json(self._cards))
