"""Permute inputs of linears where it costs nothing: what makes them is permuted alike, and the function stays.

FFN neurons: the columns of the linear that reads them, the rows and biases of those that make them.  Within a value
head: the rows and biases of the values, and the columns of the output linear, alike for all query heads of a key head.
Inputs that come from the residual stream cannot be permuted so.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.errors import BrokenPromise

_LOOKS = 8  # features that are compared to tell columns apart


@dataclass(frozen=True)
class Site:
    """A linear whose inputs can be permuted: `units` permutations of `width` inputs, each for `copies` in a row.

    Attributes:
        reader: the linear, by name.
        makers: what makes its inputs, and the row where these begin.
        units: value heads, or 1 for an FFN.
        copies: query heads of a value head, or 1.
        width: of a head, or the FFN's neurons.
    """

    reader: str
    makers: tuple[tuple[str, int], ...]
    units: int
    copies: int
    width: int

    def moves(self, orders: Tensor, rows: Mapping[str, int]) -> dict[str, tuple[int, Tensor]]:
        """Return by linear the dimension to permute (1 = inputs, 0 = outputs), and where each comes from.

        Args:
            orders: int64 `[units, width]`.
            rows: outputs of each maker.
        """
        starts = torch.arange(self.units * self.copies).view(self.units, self.copies, 1) * self.width
        found = {self.reader: (1, (starts + orders[:, None]).reshape(-1))}
        for maker, first in self.makers:
            index = torch.arange(rows[maker])
            inside = (torch.arange(self.units)[:, None] * self.width + orders).reshape(-1)
            index[first : first + len(inside)] = first + inside
            found[maker] = (0, index)
        return found


def sites(artifact: Artifact, names: Sequence[str]) -> Iterator[Site]:
    """Yield the sites whose readers are among the named linears."""
    table = tree.family(artifact.model)
    for block, shape in zip(tree.blocks(artifact.model), tree.layout(artifact.model), strict=True):
        *_, values, output = table.qkvo
        first = 2 * shape.heads * shape.head_dim if table.fused else 0
        copies = shape.heads // shape.kv_heads if shape.heads else 0
        both = (
            Site(f"{block}.{output}", ((f"{block}.{values}", first),), shape.kv_heads, copies, shape.head_dim),
            Site(f"{block}.{table.down}", tuple((f"{block}.{up}", 0) for up in table.up), 1, 1, shape.ffn),
        )
        there = zip(both, (shape.heads, shape.ffn), strict=True)  # a linear that stands in reads no units
        yield from (site for site, units in there if units and site.reader in names)


def permute_(artifact: Artifact, moves: Mapping[str, tuple[int, Tensor]]) -> Artifact:
    """Permute linears, block by block; return the artifact with their masks permuted alike."""
    masks = artifact.new_masks()
    for block in tree.blocks(artifact.model):
        inside = [n for n in moves if n.startswith(f"{block}.")]
        with artifact.opened(block), torch.no_grad():
            for name in inside:
                for inner, parameter in artifact.model.get_submodule(name).named_parameters():
                    parameter.copy_(_moved(f"{name}.{inner}", parameter, moves))
        for name in inside:
            if name in masks:
                masks[name] = _moved(f"{name}.weight", masks[name], moves)
    return artifact.after(masks=masks)


class Permuted:
    """An artifact as it would be permuted, its tensors read one at a time."""

    def __init__(self, artifact: Artifact, moves: Mapping[str, tuple[int, Tensor]]) -> None:
        self._artifact, self._moves = artifact, moves
        masks = {n: _moved(f"{n}.weight", artifact.masks[n], moves) for n in moves if n in artifact.masks}
        self.masks: Mapping[str, Tensor] = ChainMap(masks, artifact.masks)  # type: ignore[arg-type]

    def tensor_names(self) -> list[str]:
        """Return the names of all tensors."""
        return self._artifact.tensor_names()

    def tensor(self, name: str) -> Tensor:
        """Return one tensor, permuted."""
        return _moved(name, self._artifact.tensor(name), self._moves)


def recovered(site: Site, before: Artifact, after: Artifact) -> Tensor:
    """Return the permutations int64 `[units, width]` that one artifact's inputs went through on their way to another.

    Raises:
        BrokenPromise: what is read is not what was read in another order.
    """
    was, now = (_features(site, artifact) for artifact in (before, after))
    kept = torch.cat([*_parts(site, after, masks=True)], dim=1)
    return torch.stack([_matched(site.reader, *unit) for unit in zip(was, now, kept, strict=True)])


def _features(site: Site, artifact: Artifact) -> Tensor:
    return torch.cat([*_parts(site, artifact, masks=False)], dim=1)


def _parts(site: Site, artifact: Artifact, *, masks: bool) -> Iterator[Tensor]:
    """Yield what belongs to each input, `[units, features, width]`: its column, and its row and bias in the makers."""

    def read(name: str) -> Tensor:
        tensor = artifact.tensor(f"{name}.weight")
        if not masks:
            return tensor
        return artifact.masks[name] if name in artifact.masks else torch.ones_like(tensor, dtype=torch.bool)

    columns = read(site.reader).view(-1, site.units, site.copies, site.width)
    yield columns.permute(1, 0, 2, 3).reshape(site.units, -1, site.width)
    for name, first in site.makers:
        rows = slice(first, first + site.units * site.width)
        yield read(name)[rows].view(site.units, site.width, -1).transpose(1, 2)
        if f"{name}.bias" in artifact.tensor_names():
            bias = artifact.tensor(f"{name}.bias")[rows].view(site.units, 1, site.width)
            yield torch.ones_like(bias, dtype=torch.bool) if masks else bias


def _matched(name: str, was: Tensor, now: Tensor, kept: Tensor) -> Tensor:
    """Return which column of `was` each column of `now` is, both `[features, width]`, by the strongest of its features.

    What stays unclear, as between equal columns, goes to any that is left; whether it is right is for a check of all.
    """
    width = was.shape[1]
    alike = torch.ones(width, width, dtype=torch.bool)
    strongest = now.abs().float().masked_fill(~kept, -1.0).topk(min(_LOOKS, len(now)), dim=0).indices
    for features in strongest:
        column = torch.arange(width)
        unclear = ~kept[features, column]
        alike &= (was[features] == now[features, column, None]) | unclear[:, None]
    left, found = set(range(width)), [-1] * width
    for j in alike.sum(1).argsort().tolist():
        found[j] = next((i for i in alike[j].nonzero().flatten().tolist() if i in left), -1)
        left.discard(found[j])
    if left:
        raise BrokenPromise(f"{name}: its inputs are not those of before in another order")
    return torch.tensor(found)


def _moved(name: str, tensor: Tensor, moves: Mapping[str, tuple[int, Tensor]]) -> Tensor:
    """Return a tensor of a linear (weight, bias or branch) permuted."""
    linear, _, inner = name.rpartition(".")
    if linear not in moves:
        return tensor
    dim, index = moves[linear]
    if inner not in (("weight", "bias", "b"), ("weight", "a"))[dim]:
        return tensor
    return tensor.index_select(dim, index.to(tensor.device))
