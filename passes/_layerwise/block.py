"""One block of the walk: its linears observed, changed and checked, group after group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.errors import BadModel, BrokenPromise
from passes._layerwise.inputs import Inputs, Layer, Sums
from passes._layerwise.observe import groups, reads
from passes._layerwise.stream import Stream
from passes._layerwise.windows import Chunk

Change = Callable[[Sequence[Layer]], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Block:
    """An opened block with all that is needed to change it.

    Attributes:
        index: its number.
        module: its weights real.
        layers: the linears to change, by full name.
        chunks: the calibration windows.
        now: their hidden states at its door.
        dense: a copy of the unchanged module and what it reads in the unchanged model, or None.
        seed: of the choice of held-out rows.
    """

    index: int
    module: nn.Module
    layers: Mapping[str, nn.Linear]
    chunks: Sequence[Chunk]
    now: Stream
    dense: tuple[nn.Module, Stream] | None
    seed: int

    def change_(self, change_: Change, old: Mapping[str, Tensor], *, by_group: bool, gram: bool) -> dict[str, Tensor]:
        """Change the linears and return their new masks.

        Args:
            change_: as `walk_` has it.
            old: masks from before.
            by_group: whether each group of linears that read the same tensor sees the groups before it changed.
            gram: whether products between inputs are gathered.
        """
        found = groups(self.module, self.layers, self.now.get(0), self.chunks[0].calls[self.index])
        masks: dict[str, Tensor] = {}
        for together in [[g] for g in found] if by_group else [found]:
            layers = self._observe(together, gram)
            made = change_(layers)
            _check(layers, made, old)
            masks |= made
            del layers  # before the next are gathered
        return masks

    def _observe(self, together: Sequence[Sequence[str]], gram: bool) -> list[Layer]:
        """Gather what groups of linears read."""
        names = [group[0] for group in together]
        sums = [Sums(gram, self._rows(self.layers[n].in_features)) for n in names]
        for number, chunk in enumerate(self.chunks):
            now = self._reads(self.module, self.now, names, number)
            dense: list[Tensor] | list[None] = [None] * len(now)
            if self.dense:
                dense = self._reads(*self.dense, names, number)
            for each, x, target in zip(sums, now, dense, strict=True):
                (each.hold_out if chunk.held_out else each.add)(x, target)
        inputs = [each.inputs() for each in sums]
        for name, found in zip(names, inputs, strict=True):
            _finite(name, found)
        return [Layer(n, self.layers[n], found) for g, found in zip(together, inputs, strict=True) for n in g]

    def _reads(self, module: nn.Module, stream: Stream, names: Sequence[str], number: int) -> list[Tensor]:
        inner = {id(layer): n for n, layer in self.module.named_modules()}
        layers = [module.get_submodule(inner[id(self.layers[n])]) for n in names]
        return reads(module, layers, stream.get(number), self.chunks[number], self.index)

    def _rows(self, width: int) -> Tensor:
        """Return which of all held-out tokens are kept for a linear of so many inputs."""
        tokens = sum(int(c.real.sum()) for c in self.chunks if c.held_out)
        random = torch.Generator().manual_seed(self.seed % 2**63)
        return torch.randperm(tokens, generator=random)[:width].sort().values


def _finite(name: str, inputs: Inputs) -> None:
    given = (inputs.square, inputs.held_out, inputs.cross, inputs.held_out_dense)
    if not all(bool(t.isfinite().all()) for t in given if t is not None):
        raise BadModel(
            f"{name}: reads values that are NaN or infinite; the weights before it are so, or overflow their precision"
        )


def _check(layers: Sequence[Layer], made: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> None:
    """Raise unless what a pass left of the layers can be kept."""
    if foreign := made.keys() - {layer.name for layer in layers}:
        raise BrokenPromise(f"{min(foreign)}: was given a mask, and it is not among the layers to change")
    for layer in layers:
        weight = layer.linear.weight.detach()
        if not weight.isfinite().all():
            raise BadModel(f"{layer.name}: its new weights are NaN or infinite")
        mask = made[layer.name] if layer.name in made else old.get(layer.name)
        if mask is None:
            continue
        if mask.shape != weight.shape or mask.dtype != torch.bool:
            what = f"{str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}"
            raise BrokenPromise(f"{layer.name}: its mask is {what}, and must be bool {list(weight.shape)}")
        if torch.any(weight[~mask.to(weight.device)] != 0):
            raise BrokenPromise(f"{layer.name}: weights that its mask prunes are not zero")
