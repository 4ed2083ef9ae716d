"""One block of the walk: its linears observed, changed and checked, group after group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.errors import BadModel, BrokenPromise
from compress.grid import Grid
from passes._layerwise.capture import Chunk
from passes._layerwise.inputs import Inputs, Layer, Sums
from passes._layerwise.observe import groups, reads
from passes._layerwise.stream import Stream

Made = Tensor | Grid  # a mask, or codes
Change = Callable[[Sequence[Layer]], Mapping[str, Made]]


@dataclass(frozen=True, kw_only=True)
class Block:
    """An opened block with all that is needed to change it.

    Attributes:
        index: its number.
        name: its name in the model.
        layers: the linears to change, by full name.
        ways: the module that is changed, and the hidden states at its door; then, with reference "dense", a copy of it
            as it was, and what that read in the unchanged model.
        chunks: the calibration windows.
        seed: of the choice of held-out rows.
    """

    index: int
    name: str
    layers: Mapping[str, nn.Linear]
    ways: Sequence[tuple[nn.Module, Stream]]
    chunks: Sequence[Chunk]
    seed: int

    def change_(
        self, change_: Change, old: Mapping[str, Tensor], *, by_group: bool, gram: bool, sizes: bool
    ) -> dict[str, Made]:
        """Change the linears and return their new masks or codes.

        Args:
            change_: as `walk_` has it.
            old: masks from before.
            by_group: whether each group of linears that read the same tensor sees the groups before it changed.
            gram: whether products between inputs are gathered.
            sizes: whether inputs are counted by size.
        """
        module, stream = self.ways[0]
        found = groups(module, self.layers, stream.get(0), self.chunks[0], self.index)
        every: dict[str, Made] = {}
        for together in [[g] for g in found] if by_group else [found]:
            layers = self._observe(together, gram, sizes)
            made = change_(layers)
            _check(layers, made, old)
            every |= {n: m.to(torch.device("cpu")) for n, m in made.items()}
            del layers  # before the next are gathered
        return every

    def _observe(self, together: Sequence[Sequence[str]], gram: bool, sizes: bool) -> list[Layer]:
        """Gather what groups of linears read."""
        first = [group[0].removeprefix(f"{self.name}.") for group in together]
        observed = [[module.get_submodule(n) for n in first] for module, _ in self.ways]
        sums = [self._sums(self.layers[group[0]], gram, sizes) for group in together]
        for number, chunk in enumerate(self.chunks):
            read = [
                reads(module, layers, stream.get(number), chunk, self.index)
                for layers, (module, stream) in zip(observed, self.ways, strict=True)
            ]
            for each, *x in zip(sums, *read, strict=True):
                (each.hold_out if chunk.held_out else each.add)(*x)
        gathered = [(group, each.inputs()) for group, each in zip(together, sums, strict=True)]
        for group, inputs in gathered:
            _finite(group[0], inputs)
        return [Layer(name, self.layers[name], inputs) for group, inputs in gathered for name in group]

    def _sums(self, layer: nn.Linear, gram: bool, sizes: bool) -> Sums:
        """Return empty sums that will keep a random choice of held-out tokens, as many as the linear has inputs."""
        tokens = sum(int(c.real.sum()) for c in self.chunks if c.held_out)
        random = torch.Generator().manual_seed(self.seed % 2**63)
        rows = torch.randperm(tokens, generator=random)[: layer.in_features].sort().values
        return Sums(layer, rows, gram=gram, cross=len(self.ways) > 1, sizes=sizes)


def _finite(name: str, inputs: Inputs) -> None:
    given = (inputs.square, inputs.held_out, inputs.cross, inputs.held_out_dense)
    if not all(bool(t.isfinite().all()) for t in given if t is not None):
        raise BadModel(
            f"{name}: reads values that are NaN or infinite; the weights before it are so, or overflow their precision"
        )


def _check(layers: Sequence[Layer], made: Mapping[str, Made], old: Mapping[str, Tensor]) -> None:
    """Raise unless what a pass left of the layers can be kept."""
    if foreign := made.keys() - {layer.name for layer in layers}:
        raise BrokenPromise(f"{min(foreign)}: was given a mask or codes, and it is not among the layers to change")
    for layer in layers:
        weight = layer.linear.weight.detach()
        if not weight.isfinite().all():
            raise BadModel(f"{layer.name}: its new weights are NaN or infinite")
        given = made.get(layer.name)
        mask = given if isinstance(given, Tensor) else old.get(layer.name)
        if isinstance(given, Grid):
            given.check(layer.name, weight, mask)
        if mask is None:
            continue
        if mask.shape != weight.shape or mask.dtype != torch.bool:
            what = f"{str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}"
            raise BrokenPromise(f"{layer.name}: its mask is {what}, and must be bool {list(weight.shape)}")
        if torch.any(weight[~mask.to(weight.device)] != 0):
            raise BrokenPromise(f"{layer.name}: weights that its mask prunes are not zero")
