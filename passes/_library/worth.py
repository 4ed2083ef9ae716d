"""What key heads and neurons of the parent are worth, from one walk over the calibration windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from compress import files, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BadModel
from passes._layerwise import Stream, pass_, windows
from passes._layerwise.observe import reads
from passes._layerwise.stream import MEMORY
from passes._library.settings import SpaceSettings
from passes._library.space import Variant

_ROUNDS = 16  # of the iterative ranking
_ROWS = 4096  # tokens at once


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What was gathered of one block; the highest stay.

    Attributes:
        heads: float32 [key heads] on the CPU; None where none need be chosen.
        neurons: float32 [neurons], likewise; neighbours of a group have the same.
    """

    heads: Tensor | None = None
    neurons: Tensor | None = None


def contribution(x: Tensor, reader: Tensor, units: int, removed: Tensor | None = None) -> Tensor:
    """Return for each unit u the sum over tokens of `|s_t + W[:, u] x_t[u]|`, float64 [units].

    With s = 0 and a neuron as the unit this is `|x_k| |W[:, k]|`.

    Args:
        x: float [tokens, in], what the reader reads.
        reader: float [out, in], the weight W.
        units: how many there are; they share the columns evenly.
        removed: float [tokens, out], s: what the units that are gone already added to the reader's output.
    """
    x, reader = x.float(), reader.float()
    columns = reader.t().reshape(units, -1, len(reader))
    gram = columns @ columns.transpose(1, 2)
    total = torch.zeros(units, dtype=torch.float64, device=x.device)
    for at in range(0, len(x), _ROWS):
        some = x[at : at + _ROWS]
        if len(gram) == reader.shape[1]:  # of single columns: the same, many times as fast
            square = some.square().mul_(gram.view(-1)).double()
        else:
            parts = some.view(len(some), units, -1).transpose(0, 1)
            square = (parts @ gram).mul_(parts).sum(-1).t().double()
        if removed is not None:
            gone = removed[at : at + _ROWS].float()
            cross = (gone @ reader).mul_(some).view(len(some), units, -1).sum(-1)
            square += 2 * cross + gone.square().sum(-1, keepdim=True)
        total += square.clamp_(min=0).sqrt_().sum(0)
    return total


def removal_order(read: Callable[[], Iterable[Tensor]], reader: Tensor, units: int) -> Tensor:
    """Return the place of each unit in the order of removal, float64 [units]; the last ones are worth most.

    Round after round those go whose absence, with all that went before, changes the output least.

    Args:
        read: returns anew what the reader reads, [tokens, in] each.
        reader: float [out, in], its weight.
        units: how many there are; they share the columns evenly.
    """
    order = torch.full((units,), torch.inf, dtype=torch.float64, device=reader.device)
    width = reader.shape[1] // units
    for round_ in range(_ROUNDS):
        before, after = (units * r // _ROUNDS for r in (round_, round_ + 1))
        if before == after:
            continue
        gone = order.isfinite().repeat_interleave(width)
        total = torch.zeros_like(order)
        for x in read():
            removed = x[:, gone].float() @ reader[:, gone].float().t() if before else None
            total += contribution(x, reader, units, removed)
        lowest = total.masked_fill(order.isfinite(), torch.inf).argsort(stable=True)[: after - before]
        order[lowest] = torch.arange(before, after, dtype=order.dtype, device=order.device)
    return order


def statistics(
    artifact: Artifact, wanted: Sequence[Variant], settings: SpaceSettings, context: Context, batch: int = 8
) -> dict[int, Statistics]:
    """Return by block's number what its variants need to begin; nothing is read where none needs anything.

    One block is opened at a time; a killed walk resumes at the last finished block.

    Args:
        artifact: on the context's device; stays as it is.
        wanted: variants.
        settings: how neurons are ranked.
        context: calibration data, device, seed, and the folder where finished blocks and hidden states are kept.
        batch: calibration windows at once.

    Raises:
        BadData: too few or too short calibration data.
        BadModel: what a block reads is NaN or infinite.
    """
    layout = tree.layout(artifact.model)
    asked: dict[int, dict[str, int]] = {}  # block -> what -> how many units there are
    for variant in wanted:
        was = layout[variant.block]
        if variant.select:
            asked.setdefault(variant.block, {})["heads"] = was.kv_heads
        if 0 < variant.config.ffn < was.ffn:
            asked.setdefault(variant.block, {})["neurons"] = was.ffn // variant.group
    folder = context.folder / "worth"
    paths = {index: folder / f"{index:05d}.safetensors" for index in asked}
    if not all(path.exists() for path in paths.values()):
        walk = _Walk(artifact, settings, context, batch)
        with context.report.bar("worth", max(asked) + 1) as bar:
            for index in range(max(asked) + 1):
                walk.block_(index, asked.get(index, {}), paths.get(index), last=index == max(asked))
                bar.advance()
    kept = {index: load_file(path) for index, path in paths.items()}
    return {index: Statistics(**kept.get(index, {})) for index in range(len(layout))}


def _held(read: Callable[[], Iterable[Tensor]], count: int) -> Callable[[], Iterable[Tensor]]:
    """Return what reads the same without running the block again, where so many chunks fit in memory."""
    first = next(iter(read()), None)
    if first is None or first.nbytes * count > MEMORY:
        return read
    kept = list(read())
    return lambda: kept


class _Walk:
    """The calibration windows on their way through the parent."""

    def __init__(self, artifact: Artifact, settings: SpaceSettings, context: Context, batch: int) -> None:
        self.artifact, self.settings = artifact, settings
        self.table, self.names = tree.family(artifact.model), list(tree.blocks(artifact.model))
        artifact.model.train(False)
        self.stream = Stream(context.folder / "worth" / "hidden", context.device)
        self.chunks = windows(artifact, batch, context, "a search space", self.stream)

    def block_(self, index: int, asked: Mapping[str, int], path: Path | None, *, last: bool) -> None:
        """Judge a block, unless that is done or not asked for, and let the windows pass it, unless it is the last."""
        judged, passed = path is None or path.exists(), last or self.stream.passed(index)
        if judged and passed:
            return
        with self.artifact.opened(self.names[index]) as block, torch.no_grad():
            if path is not None and not judged:
                files.write_atomic(path, save(self._worth(index, block, asked)))
            if not passed:
                pass_(block, index, self.chunks, self.stream)

    def _worth(self, index: int, block: nn.Module, asked: Mapping[str, int]) -> dict[str, Tensor]:
        """Return what units are worth, float32, by what they are; a neuron what its group is."""
        found: dict[str, Tensor] = {}
        for what, units in asked.items():
            linear = block.get_submodule(self.table.qkvo[-1] if what == "heads" else self.table.down)
            weight = linear.get_parameter("weight").detach()
            read = partial(self._read, index, block, linear)
            if what == "neurons" and self.settings.ranking == "iterative":
                score = removal_order(_held(read, len(self.chunks)), weight, units)
            else:
                score = sum((contribution(x, weight, units) for x in read()), torch.zeros((), dtype=torch.float64))
            if not score.isfinite().all():
                raise BadModel(f"{self.names[index]}: what its {what} give is NaN or infinite on calibration windows")
            width = 1 if what == "heads" else weight.shape[1] // units
            found[what] = score.float().repeat_interleave(width).cpu()
        return found

    def _read(self, index: int, block: nn.Module, linear: nn.Module) -> Iterator[Tensor]:
        for number, chunk in enumerate(self.chunks):
            if not chunk.held_out:
                yield reads(block, [linear], self.stream.get(number), chunk, index)[0]
