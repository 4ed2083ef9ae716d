"""The second round: what was picked, and its neighbours, trained together in their blocks and judged so."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Collection

from compress import files
from compress.artifact import Artifact
from compress.context import Context
from passes import _sensitivity
from passes._distillation import DistilSettings, distil
from passes._library import Library, SpaceSettings, Variant
from passes.puzzle import offers
from passes.puzzle.offers import Offers
from passes.puzzle.pieces import Piece, Pieces
from passes.puzzle.scoring import Scores
from passes.puzzle.settings import PuzzleSettings
from passes.puzzle.states import swap

Pair = tuple[Variant, ...]


def shrunk(pieces: Pieces, picks: Collection[Piece]) -> Pieces:
    """Return of every part the options of the variant that was picked, and of the next larger and smaller one.

    The parent's own stays the first where it is among them.
    """
    chosen = {p.slot: p.variant for p in picks}
    found: dict[str, tuple[Piece, ...]] = {}
    for name, options in pieces.items():
        sizes = {p.variant: p.part.parameters if p.part else 0 for p in options}
        order = sorted(sizes, key=lambda v: -sizes[v])
        at = order.index(chosen[name])
        near = set(order[max(at - 1, 0) : at + 2])
        found[name] = tuple(p for p in options if p.variant in near)
    return found


def refined(
    artifact: Artifact,
    pieces: Pieces,
    scores: Scores,
    settings: PuzzleSettings,
    context: Context,
    parent: str,
) -> tuple[Library, Offers]:
    """Train pairs of variants together and return the library that has them, and every pair's options with scores.

    Args:
        artifact: the parent.
        pieces: the space of this round.
        scores: of the first round: of codes and zeros.
        settings: how to train and score.
        context: data, and the folder of the first round's scores.
        parent: digest of the artifact's tensors.

    Raises:
        BadModel: outputs are NaN or infinite with a pair, which is named.
    """
    pairs = _pairs(pieces)
    training = DistilSettings(steps=settings.steps, lr=settings.lr, batch=settings.batch)
    space = settings.model_dump(mode="json", include=set(SpaceSettings.model_fields))
    folder = context.folder / f"refined-{files.digest_of([space, training.model_dump(mode='json')])[:12]}"
    folder.mkdir(exist_ok=True)
    library = Library(folder / "library")
    if artifact.library and not library.folder.exists():
        with files.atomic_folder(library.folder) as new:
            shutil.copytree(artifact.library, new, copy_function=files.link, dirs_exist_ok=True)
    if not artifact.library:
        data = {role: source.digest for role, source in sorted(context.data.items())}
        library.seal(parent, data, space)
    inside = dataclasses.replace(context, folder=folder)
    alone = dict.fromkeys((v,) for pair in pairs for v in pair)
    context.report.note("second round: what was picked and its neighbours, trained together in their blocks")
    distil(artifact, [*alone, *pairs], library, settings, training, inside, name="refining")
    shutil.rmtree(folder / "refining", ignore_errors=True)  # the folder outlives the step
    changed = [pair for pair in pairs if any(not v.parent for v in pair)]
    swaps = {pair: swap(artifact, library, pair, _told(pair)) for pair in changed}
    found = _sensitivity.scores(
        artifact, list(swaps.values()), settings.windows, inside, folder / "pairs.json", kind=settings.score
    )
    for pair in changed:
        context.report.record("pairs", [swaps[pair].key, found[swaps[pair].key].mean])
    means = {pair: found[made.key].mean for pair, made in swaps.items()}
    return library, offers.together(pieces, scores, lambda pair: means.get(pair, 0.0))


def _pairs(pieces: Pieces) -> list[Pair]:
    """Return block by block every pair of an attention and an FFN."""
    blocks: dict[int, list[list[Variant]]] = {}
    for options in pieces.values():
        blocks.setdefault(options[0].variant.block, []).append(list(dict.fromkeys(p.variant for p in options)))
    return [pair for parts in blocks.values() for pair in itertools.product(*parts)]


def _told(pair: Pair) -> str:
    """Return what a pair is called among all changes."""
    return f"block {pair[0].block}, {' and '.join(f'{v.part} {v.name}' for v in pair)}"
