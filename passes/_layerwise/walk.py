"""The walk: block after block, observe, change, check, keep, pass on."""

from __future__ import annotations

import copy
from collections.abc import Collection, MutableMapping, Sequence

from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from passes._layerwise import checkpoint
from passes._layerwise.block import Block, Change
from passes._layerwise.observe import run
from passes._layerwise.settings import LayerwiseSettings
from passes._layerwise.stream import Stream
from passes._layerwise.windows import windows


def walk_(
    artifact: Artifact,
    names: Collection[str],
    settings: LayerwiseSettings,
    context: Context,
    change_: Change,
    *,
    gram: bool,
) -> MutableMapping[str, Tensor]:
    """Change the named linears block by block; a killed walk resumes at the last finished block.

    Args:
        artifact: its model is changed in place; read and written one block at a time.
        names: linears of the blocks.
        settings: how.
        context: data, device, seed; the folder for finished blocks and hidden states; the report.
        change_: gets layers in the order of the forward and changes their weights in place; returns the new masks by
            name. Asked once for all layers that read the same tensor, or with sequential "block" once a block.
        gram: whether it needs `Inputs.gram`.

    Returns:
        the artifact's masks with the new ones among them.

    Raises:
        BadData: too few or too short calibration data.
        BadModel: a linear reads values, or was given weights, that are NaN or infinite, or its block never calls it.
        BrokenPromise: a mask does not fit its linear, or weights that it prunes are not zero.
    """
    return _Walk(artifact, settings, context, change_, gram).run_(names)


class _Walk:
    def __init__(
        self, artifact: Artifact, settings: LayerwiseSettings, context: Context, change_: Change, gram: bool
    ) -> None:
        self.artifact, self.settings, self.context = artifact, settings, context
        self.change_, self.gram = change_, gram
        self.masks = artifact.new_masks()
        artifact.model.train(False)
        self.folder = context.folder / "layerwise"
        self.now = Stream(self.folder / "now", context.device)
        self.dense = Stream(self.folder / "dense", context.device) if settings.reference == "dense" else None
        self.chunks = []
        for number, (chunk, hidden) in enumerate(windows(artifact, settings.batch, context, "this pass")):
            self.chunks.append(chunk)
            for stream in self.streams:
                stream.enter(number, hidden)

    @property
    def streams(self) -> list[Stream]:
        return [self.now, self.dense] if self.dense else [self.now]

    def run_(self, names: Collection[str]) -> MutableMapping[str, Tensor]:
        """Walk as far as there is something to change."""
        chosen = {b: [n for n in names if n.startswith(f"{b}.")] for b in tree.blocks(self.artifact.model)}
        last = max(i for i, inside in enumerate(chosen.values()) if inside)
        with self.context.report.bar("blocks", last + 1) as bar:
            for index, (block, inside) in enumerate(list(chosen.items())[: last + 1]):
                self.block_(index, block, inside, index == last)
                bar.advance()
        return self.masks

    def block_(self, index: int, name: str, inside: Sequence[str], last: bool) -> None:
        """Change one block and let the chunks pass it."""
        path = self.folder / f"block-{index:05d}.safetensors"
        passed = last or all(s.at(n) > index for s in self.streams for n in range(len(self.chunks)))
        if passed and not inside:
            return
        with self.artifact.opened(name) as module:
            module.to(self.context.device)
            every = ((f"{name}.{inner}", m) for inner, m in module.named_modules())
            linears = {n: m for n, m in every if n in inside and isinstance(m, nn.Linear)}
            dense = None
            if self.dense and not (passed and path.exists()):
                dense = copy.deepcopy(module), self.dense
            if path.exists():
                self.masks.update(checkpoint.restore_(path, linears))
            elif inside:
                block = Block(
                    index=index,
                    module=module,
                    layers=linears,
                    chunks=self.chunks,
                    now=self.now,
                    dense=dense,
                    seed=self.context.seed,
                )
                by_group = self.settings.sequential == "linear"
                made = block.change_(self.change_, self.masks, by_group=by_group, gram=self.gram)
                checkpoint.store(path, linears, made)
                self.masks.update(made)
            if not last:
                for passing, stream in [(module, self.now), *([dense] if dense else [])]:
                    self.pass_(passing, stream, index)

    def pass_(self, module: nn.Module, stream: Stream, index: int) -> None:
        """Let the chunks at the block's door pass it."""
        for number, chunk in enumerate(self.chunks):
            if stream.at(number) == index:
                stream.put(number, index + 1, run(module, stream.get(number), chunk.calls[index]))
