"""What every option costs in quality, all else as it is; found once for a model, its library and its data.

A part in another shape is judged by itself, at full precision; codes and zeros are judged on the parent's part, by the
passes that make them.  A narrower part that also gets codes is taken to cost the sum of both, what codes cost times the
share of the weights that stay.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress import files, registry, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Candidate, Pass
from compress.errors import BadSettings
from compress.families import Family
from compress.pipeline.code import code_digest
from passes import _sensitivity
from passes._library import Library, Variant
from passes._sensitivity import Score
from passes.puzzle.pieces import DENSE, Piece, Pieces, grid_of, slot
from passes.puzzle.settings import PuzzleSettings
from passes.puzzle.states import Begun, swap

Slots = dict[str, float]  # slot -> score


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What options cost in quality.

    Attributes:
        shapes: by variant's key, of all but the parent's own.
        precisions: of codes, by slot.
        patterns: of zeros, by slot.
    """

    shapes: Mapping[str, Score]
    precisions: Mapping[str, Slots]
    patterns: Mapping[str, Slots]

    def shape(self, variant: Variant) -> float:
        """Return what a variant's shape costs, the parent's own being 0."""
        return 0.0 if variant.parent else self.shapes[variant.key].mean

    def rest(self, piece: Piece) -> float:
        """Return what codes and zeros of a part cost, for the share of the parent's weights that stay."""
        if not piece.part:
            return 0.0
        codes = self.precisions.get(piece.precision, {}).get(piece.slot, 0.0)
        return piece.share * (codes + self.patterns.get(piece.pattern, {}).get(piece.slot, 0.0))


def kept_in(artifact: Artifact, parent: str, settings: PuzzleSettings, context: Context) -> Context:
    """Return the context with the folder that keeps scores of this very model, library and data, whatever the budget.

    Args:
        artifact: the model, with its library.
        parent: digest of its tensors.
        settings: what of them matters to scores.
        context: data, seed, device, and the cache.
    """
    data = context.data["calibration"].digest
    library = files.digests(artifact.library) if artifact.library else None
    matters = settings.model_dump(mode="json", include={"score", "windows", "kv", "multiple", "ranking"})
    key = files.digest_of(
        [parent, data, library, matters, context.seed, str(context.device), str(context.dtype), code_digest(__name__)]
    )
    folder = (context.cache or context.folder) / "scores" / key[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return dataclasses.replace(context, folder=folder)


def scores(
    artifact: Artifact, states: Library | Begun, pieces: Pieces, settings: PuzzleSettings, context: Context
) -> Scores:
    """Return what every option costs; what was found before is read from the context's folder.

    Raises:
        BadModel: outputs are NaN or infinite with a variant, which is named.
        BadData: the score needs labels and the calibration data have none.
    """
    variants = dict.fromkeys(p.variant for options in pieces.values() for p in options if not p.variant.parent)
    names = list(tree.blocks(artifact.model))
    swaps = {v.key: swap(artifact, states, (v,), f"{slot(v)}, {v.name}") for v in variants}
    journal = context.folder / "shapes.json"
    found = _sensitivity.scores(artifact, list(swaps.values()), settings.windows, context, journal, kind=settings.score)
    table = tree.family(artifact.model)
    judge = functools.partial(_judged, artifact, settings=settings, context=context, table=table, names=names)
    codes = {p: judge(settings.quantizer, _codes(p)) for p in settings.precisions if grid_of(p)}
    zeros = {p: judge(settings.pruner, {"pattern": p}) for p in settings.patterns if p != DENSE}
    shapes = {key: found[made.key] for key, made in swaps.items()}
    return Scores(shapes=shapes, precisions=codes, patterns=zeros)


def _codes(precision: str) -> dict[str, Any]:
    """Return the settings of a quantizer that makes such codes."""
    grid = grid_of(precision)
    assert grid is not None
    return {"bits": grid.bits, "group_size": grid.group_size or -1, "activation": grid.activation}


def _judged(
    artifact: Artifact,
    use: str,
    choice: Mapping[str, Any],
    *,
    settings: PuzzleSettings,
    context: Context,
    table: Family,
    names: list[str],
) -> Slots:
    """Return what a choice of another pass costs each part, what it has for smaller units being added up."""
    plugin = judging(use, choice, settings)
    found: Slots = defaultdict(float)
    for candidate in plugin.candidates(artifact, context):
        if candidate.choice:
            found[_slot(candidate, table, names)] += candidate.score
    return dict(found)


def judging(use: str, choice: Mapping[str, Any], settings: PuzzleSettings) -> Pass:
    """Return another pass that judges a choice for parts of blocks.

    Raises:
        BadSettings: there is no such pass, or it makes no such choice.
    """
    key = "pruner" if "pattern" in choice else "quantizer"
    try:
        found = registry.load("passes", use, Pass)
    except BadSettings as error:
        raise BadSettings(str(error), key=key) from None
    fields = found.Settings.model_fields
    if lacking := [name for name in choice if name not in fields]:
        raise BadSettings(f"{use} has no {lacking[0]}, so that it judges no such choice; take another pass", key=key)
    given = {"choose": "part", "choose_windows": settings.windows, **choice}
    shared = {"include": settings.include, "exclude": settings.exclude}
    return found(found.Settings(**{n: v for n, v in {**given, **shared}.items() if n in fields}))


def _slot(candidate: Candidate, table: Family, names: list[str]) -> str:
    """Return the place of a part that a candidate is about: it itself, or one of its linears.

    Raises:
        BadSettings: it is about a whole block.
    """
    name, _, part = candidate.layer.partition(":")
    block = next(b for b in names if f"{name}.".startswith(f"{b}."))
    inner = name.removeprefix(block).removeprefix(".")
    if not part and not inner:
        raise BadSettings(f"candidates of whole blocks tell nothing of parts, got {candidate.layer}", key="quantizer")
    part = part or ("attention" if inner in table.qkvo else "ffn")
    return f"block {names.index(block)} {part}"
