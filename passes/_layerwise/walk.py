"""The walk: block after block, observe, change, check, keep, pass on."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BrokenPromise
from compress.grid import Grid
from passes._layerwise.block import Block, Change, Made
from passes._layerwise.capture import windows
from passes._layerwise.checkpoint import Checkpoint
from passes._layerwise.observe import pass_
from passes._layerwise.settings import LayerwiseSettings
from passes._layerwise.stream import Stream


@dataclass(frozen=True)
class Walked:
    """What a walk leaves: the artifact's masks and codes with the new ones among them."""

    masks: MutableMapping[str, Tensor]
    grids: MutableMapping[str, Grid]


def walk_(
    artifact: Artifact,
    names: Collection[str],
    settings: LayerwiseSettings,
    context: Context,
    change_: Change,
    *,
    gram: bool,
    sizes: bool = False,
) -> Walked:
    """Change the named linears block by block; a killed walk resumes at the last finished block.

    Args:
        artifact: on the context's device; its model is changed in place, one block opened at a time.
        names: linears of the blocks.
        settings: how.
        context: data, device, seed; the folder for finished blocks and hidden states; the report.
        change_: gets layers in the order of the forward and changes their weights in place; returns the new masks, or
            codes, by name. Asked once for all layers that read the same tensor, or with sequential "block" once a
            block.
        gram: whether it needs `Inputs.gram`.
        sizes: whether it needs `Inputs.sizes`.

    Raises:
        BadData: too few or too short calibration data.
        BadModel: a linear reads values, or was given weights, that are NaN or infinite, or its block never calls it.
        BrokenPromise: a name is of no linear, a mask does not fit its linear, or weights that it prunes are not zero.
    """
    return _Walk(artifact, settings, context, change_, {"gram": gram, "sizes": sizes}).run_(names)


class _Walk:
    def __init__(
        self,
        artifact: Artifact,
        settings: LayerwiseSettings,
        context: Context,
        change_: Change,
        gathered: Mapping[str, bool],
    ) -> None:
        self.artifact, self.settings, self.context = artifact, settings, context
        self.change_, self.gathered = change_, gathered
        self.folder = context.folder / "layerwise"
        self.done = Walked(artifact.new_masks(), artifact.new_grids())
        kinds = ("now", "dense") if settings.reference == "dense" else ("now",)
        self.streams = [Stream(self.folder / kind, context.device) for kind in kinds]
        artifact.model.train(False)
        self.chunks = windows(artifact, settings.batch, context, "a walk over the blocks", *self.streams)

    def run_(self, names: Collection[str]) -> Walked:
        """Walk as far as there is something to change."""
        if strange := set(names) - tree.block_linears(self.artifact.model).keys():
            raise BrokenPromise(f"{min(strange)}: is no linear of a block, so no walk changes it")
        chosen = {b: [n for n in names if n.startswith(f"{b}.")] for b in tree.blocks(self.artifact.model)}
        last = max(i for i, inside in enumerate(chosen.values()) if inside)
        with self.context.report.bar("blocks", last + 1) as bar:
            for index, (name, inside) in enumerate(list(chosen.items())[: last + 1]):
                passed = index == last or all(s.passed(index) for s in self.streams)
                if inside or not passed:
                    self.block_(index, name, inside, passed)
                bar.advance()
        return self.done

    def block_(self, index: int, name: str, inside: Sequence[str], passed: bool) -> None:
        """Change one block, or restore it, and let the chunks pass it unless they have, or there is no need."""
        with self.artifact.opened(name) as module:
            every = ((f"{name}.{inner}", m) for inner, m in module.named_modules())
            layers = {n: m for n, m in every if n in inside and isinstance(m, nn.Linear)}
            kept = Checkpoint(self.folder, index, module, layers)
            finished = not layers or kept.exists()
            modules = [module]
            if len(self.streams) > 1 and not (finished and passed):
                modules.append(copy.deepcopy(module) if layers else module)  # as it is before anything changes
            if layers:
                if not finished:
                    kept.keep(self.change_block_(index, name, layers, modules))
                masks, grids = kept.restore_()
                self.done.masks.update(masks)
                self.done.grids.update(grids)
            if not passed:
                for each, stream in zip(modules, self.streams, strict=True):
                    pass_(each, index, self.chunks, stream)

    def change_block_(
        self, index: int, name: str, layers: Mapping[str, nn.Linear], modules: Sequence[nn.Module]
    ) -> dict[str, Made]:
        """Change one block, the first of `modules`, and return its new masks or codes."""
        block = Block(
            index=index,
            name=name,
            layers=layers,
            ways=tuple(zip(modules, self.streams, strict=True)),
            chunks=self.chunks,
            seed=self.context.seed,
        )
        by_group = self.settings.sequential == "linear"
        return block.change_(self.change_, self.done.masks, by_group=by_group, **self.gathered)
