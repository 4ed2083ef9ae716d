"""Score the heads and neurons of one block after the other, and cut out those that do not stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from safetensors.torch import load_file, save
from torch import Tensor, nn

from compress import blocks, files, tree
from compress.artifact import Artifact
from compress.context import Context
from passes._layerwise import Chunk, Stream, pass_, windows
from passes._layerwise.observe import reads
from passes._narrowing import Plan, Units, cut_, units_of
from passes.structured import learned, scores
from passes.structured.settings import StructuredSettings


def narrow_(artifact: Artifact, plan: Plan, settings: StructuredSettings, context: Context) -> dict[str, Tensor]:
    """Cut every block to its planned shape and return the masks of what is left."""
    judge = {"magnitude": _by_weights, "activation": _by_output, "gates": _by_gates}[settings.criterion]
    units = units_of(artifact.model, plan)
    return cut_(artifact, plan, judge(artifact, units, settings, context), context)


# Each of these yields the scores of one block after the other by the linear that reads the units, and goes on once
# that block is cut.


def _by_weights(
    artifact: Artifact, units: Sequence[Units], settings: StructuredSettings, context: Context
) -> Iterator[dict[str, Tensor]]:
    model = artifact.model
    table = tree.family(model)
    for (name, block), found in zip(tree.blocks(model).items(), units, strict=True):
        worth = {}
        for reader, count in found.items():
            if reader == f"{name}.{table.down}":
                makers = [_weight(block.get_submodule(inner)) for inner in table.up]
            else:
                made = _weight(block.get_submodule(table.qkvo[-2]))  # of a fused linear, the values are the last rows
                makers = [made[-len(made) // 3 :] if table.fused else made]
            worth[reader] = scores.by_weights(_weight(model.get_submodule(reader)), makers, count)
        yield worth


def _by_output(
    artifact: Artifact, units: Sequence[Units], settings: StructuredSettings, context: Context
) -> Iterator[dict[str, Tensor]]:
    model, blocks_ = artifact.model, tree.blocks(artifact.model).values()
    stream = Stream(context.folder / "activation", context.device)
    chunks = windows(artifact, settings.batch, context, "'activation'", stream)
    for index, (block, found) in enumerate(zip(blocks_, units, strict=True)):
        path = context.folder / f"activation-{index:05d}.safetensors"
        if not path.exists():  # else a killed run came so far, and its chunks stand behind the block as it was cut
            grams = _grams(block, {model.get_submodule(n): count for n, count in found.items()}, index, chunks, stream)
            worth = [scores.by_output(_weight(linear), gram) for linear, gram in grams.items()]
            files.write_atomic(path, save(dict(zip(found, worth, strict=True))))
        yield load_file(path, device=str(context.device))
        if index + 1 < len(units):
            pass_(block, index, chunks, stream)


def _grams(
    block: nn.Module, units: Mapping[nn.Module, int], index: int, chunks: Sequence[Chunk], stream: Stream
) -> dict[nn.Module, Tensor]:
    """Return the mean over tokens of x x^T within each unit in front of a block's linears."""
    grams, tokens = dict[nn.Module, Tensor](), 0
    for number, chunk in enumerate(chunks):
        if units and not chunk.held_out:
            tokens += int(chunk.real.sum())
            seen = reads(block, list(units), stream.get(number), chunk, index)
            for (linear, count), x in zip(units.items(), seen, strict=True):
                gram = scores.gram_of(x, count)
                grams[linear] = grams[linear] + gram if linear in grams else gram
    return {linear: gram / tokens for linear, gram in grams.items()}


def _by_gates(
    artifact: Artifact, units: Sequence[Units], settings: StructuredSettings, context: Context
) -> Iterator[dict[str, Tensor]]:
    together = {name: count for found in units for name, count in found.items()}
    trained = learned.gates(artifact, together, settings, context) if together else {}
    for found in units:
        yield {name: trained[name] for name in found}


def _weight(module: nn.Module) -> Tensor:
    """Return what a linear multiplies with, its branch included."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    if isinstance(module, blocks.Branched):
        return weight + module.b.detach() @ module.a.detach()
    return weight
