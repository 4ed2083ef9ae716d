"""Find a model in the one that it was cut out of: what stays is found by its bits, nothing is taken on trust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.errors import BrokenPromise
from compress.families import Family
from passes import _masks


def check(before: Artifact, after: Artifact) -> None:
    """Raise `BrokenPromise` unless `after` is `before` with some blocks, heads and neurons taken out, and no more.

    Blocks, heads and neurons that stay are in their old order, equal to the last bit in every weight, bias and mask;
    so is all that belongs to none of them.
    """
    old, new = before.model, after.model
    if tree.tied(old) != tree.tied(new):
        raise BrokenPromise("head and input embedding are no longer tied as they were")
    if fault := _differs(_outside(before), _outside(after)):
        raise BrokenPromise(fault)
    linears = tree.block_linears(new)
    for name, mask in after.masks.items():
        if name not in linears or mask.shape != linears[name].weight.shape:
            raise BrokenPromise(f"{name}: has a mask {list(mask.shape)} that fits no linear of the model")
    left = iter(tree.blocks(old))
    for name in tree.blocks(new):
        faults = dict[str, str | None]()
        for candidate in left:
            faults[candidate] = _fault(_Block(before, candidate), _Block(after, name))
            if faults[candidate] is None:
                break
        else:
            told = "; ".join(f"not of {n}: {why}" for n, why in faults.items()) or "none is left"
            raise BrokenPromise(f"{name}: is cut out of no block after those that came before it: {told}")


class _Block:
    """A block of an artifact: its heads and its neurons, each as its bits, and the rest of its tensors.

    Args:
        artifact: the model and its masks.
        name: of the block.
    """

    def __init__(self, artifact: Artifact, name: str) -> None:
        model = artifact.model
        block, self.table = model.get_submodule(name), tree.family(model)
        self.shape = dict(zip(tree.blocks(model), tree.layout(model), strict=True))[name]
        self.tensors = {n: t.detach() for n, t in block.state_dict().items()}
        inside = {n.removeprefix(f"{name}."): m for n, m in artifact.masks.items() if n.startswith(f"{name}.")}
        self.tensors |= {f"{n}.mask": m for n, m in inside.items()}
        self.heads = list(self._units(self.table.qkvo[:-1], self.table.qkvo[-1], self.shape.kv_heads))
        self.neurons = list(self._units(self.table.up, self.table.down, self.shape.ffn))

    def _units(self, makers: Sequence[str], reader: str, count: int) -> Iterator[bytes]:
        """Yield the bits of each unit's rows and columns, which are taken out of the tensors."""
        if not count:  # nothing reads units, be it that a linear stands in
            return
        parts = []
        for name in [f"{m}.{kind}" for m in makers for kind in ("weight", "bias", "mask", "b")]:
            if (tensor := self.tensors.pop(name, None)) is not None:
                parts.append(_rows(tensor, count, 3 if _fused(self.table, makers) else 1))
        for name in [f"{reader}.{kind}" for kind in ("weight", "mask", "a")]:
            if (tensor := self.tensors.pop(name, None)) is not None:
                parts.append(_rows(tensor.t(), count, 1))
        joined = torch.cat(parts, 1).numpy() if parts else ()
        yield from (row.tobytes() for row in joined)


def _fused(table: Family, makers: Sequence[str]) -> bool:
    return table.fused and tuple(makers) == table.qkvo[:-1]


def _rows(tensor: Tensor, units: int, parts: int) -> Tensor:
    """Return the bytes of each unit's rows, uint8 [units, bytes]; every part holds rows of all units."""
    split = tensor.cpu().reshape(parts, units, -1).transpose(0, 1)
    return split.contiguous().view(torch.uint8).reshape(units, -1)


def _fault(old: _Block, new: _Block) -> str | None:
    """Return why a block cannot have been cut out of another, or None."""
    for what, were, are in (("head", old.heads, new.heads), ("neuron", old.neurons, new.neurons)):
        if (stray := _stray(were, are)) is not None:
            return f"{what} {stray} is none of its own, or is out of order"
    return _differs(old.tensors, new.tensors)


def _differs(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> str | None:
    """Return which tensor is not what it was, or None."""
    if old.keys() != new.keys():
        return f"tensors came or went: {', '.join(sorted(old.keys() ^ new.keys()))}"
    return next((f"{n}: differs from what it was" for n, t in new.items() if not _masks.same_bits(old[n], t)), None)


def _stray(were: Sequence[bytes], are: Sequence[bytes]) -> int | None:
    """Return the first that is not found in its order among what was, or None: the earliest match leaves most room."""
    left = iter(were)
    return next((i for i, unit in enumerate(are) if not any(unit == other for other in left)), None)


def _outside(artifact: Artifact) -> dict[str, Tensor]:
    """Return the tensors outside the blocks."""
    inside = tuple(f"{name}." for name in tree.blocks(artifact.model))
    return {n: t for n, t in artifact.model.state_dict().items() if not n.startswith(inside)}
