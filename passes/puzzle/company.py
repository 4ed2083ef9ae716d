"""Scores in company: what a shape costs where all other parts are as they were picked, not as the parent has them.

Scores of one change each add up as long as little is changed.  Where attention goes from several neighbours, each of
them can be spared and all together cannot: the sum then tells half of what is lost.  So what was picked is judged as a
whole, every shape is judged anew in its place there, and the program is solved with what it then costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from compress import files
from compress.artifact import Artifact
from compress.context import Context, Report
from passes import _library, _sensitivity
from passes._library import Library, State, Variant
from passes._sensitivity import Score, Swap
from passes.puzzle.pieces import Piece, Pieces, slot
from passes.puzzle.scoring import Scores
from passes.puzzle.settings import PuzzleSettings
from passes.puzzle.states import Begun, state_of

Picks = Mapping[str, Variant]  # by slot


def picks_of(pieces: Sequence[Piece]) -> Picks:
    """Return the variants of what was picked."""
    return {p.slot: p.variant for p in pieces}


def judged(
    artifact: Artifact,
    states: Library | Begun,
    pieces: Pieces,
    picks: Picks,
    scores: Scores,
    settings: PuzzleSettings,
    context: Context,
) -> tuple[float, Scores]:
    """Return how far the shapes that were picked are from the parent, and what each shape costs among them.

    Args:
        artifact: the parent.
        states: of all variants.
        pieces: the options.
        picks: of every part.
        scores: so far; of codes and zeros they stay.
        settings: windows and kind of the scores.
        context: data, and the folder that keeps scores; what was judged among these very picks is read there.

    Returns:
        The distance, and of every shape what it costs more than the parent's own in its place.

    Raises:
        BadModel: outputs are NaN or infinite with a variant, which is named.
    """
    swap = functools.partial(_swap, artifact, states, picks)
    variants = {name: dict.fromkeys(p.variant for p in options) for name, options in pieces.items()}
    swaps = {variant: swap(variant) for options in variants.values() for variant in options}
    changed = {v.block: v for v in picks.values() if not v.parent}
    told = files.digest_of(sorted(v.key for v in picks.values()))[:12]
    found = _sensitivity.scores(
        artifact, list(swaps.values()), settings.windows, context, context.folder / f"among-{told}.json",
        kind=settings.score, company=[swaps[v] for v in changed.values()],
    )  # fmt: skip
    shapes: dict[str, Score] = {}
    for options in variants.values():
        own = next(v for v in options if v.parent)
        shapes |= {v.key: found[swaps[v].key] - found[swaps[own].key] for v in options if not v.parent}
    whole = found[swaps[next(iter(picks.values()))].key].mean
    return whole, replace(scores, shapes=shapes)


def settled(
    pieces: Sequence[Piece],
    scores: Scores,
    judge: Callable[[Picks, Scores], tuple[float, Scores]],
    again: Callable[[Scores], Sequence[Piece]],
    rounds: int,
    report: Report,
) -> Scores:
    """Return the scores by which what is picked is nearest to the parent, judged as a whole.

    Each round picks by the middle of the scores so far and of those among what was picked: what is judged where it
    stands alone swings from one side to the other.

    Args:
        pieces: what was picked first.
        scores: by which it was.
        judge: as `judged`.
        again: returns what is picked by other scores.
        rounds: at most; ends when a choice comes again.
        report: is told how far each choice is.
    """
    found: list[tuple[float, Scores]] = []
    seen: list[Picks] = []
    while (picks := picks_of(pieces)) not in seen:
        whole, here = judge(picks, scores)
        found.append((whole, scores))
        seen.append(picks)
        if len(seen) > rounds:
            break
        scores = middle(scores, here)
        pieces = again(scores)
    report.tell(f"shapes as a whole, choice by choice: {', '.join(f'{whole:.4g}' for whole, _ in found)}")
    report.record("whole", [whole for whole, _ in found])
    return min(found, key=lambda each: each[0])[1]


def middle(one: Scores, other: Scores) -> Scores:
    """Return the middle of what shapes cost by two scores."""
    return replace(one, shapes={key: score.between(other.shapes[key]) for key, score in one.shapes.items()})


def _swap(artifact: Artifact, states: Library | Begun, picks: Picks, variant: Variant) -> Swap:
    """Return the block of a variant with what was picked for its other part."""
    other = next((v for v in picks.values() if v.block == variant.block and v.part != variant.part), None)
    pair = (variant, other) if other else (variant,)

    def made() -> nn.Module:
        state: State = {}
        for each in pair:
            state = state if each.parent else {**state, **state_of(states, each)}
        return _library.module(artifact, pair, state).to(artifact.model.device)

    name = _library.name_of(artifact.model, variant.block)
    return Swap(key=f"{slot(variant)}, {variant.name}", block=name, made=made)
