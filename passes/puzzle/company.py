"""Scores in company: what a shape costs where all other parts are as they were picked, not as the parent has them.

Scores of one change each add up as long as little is changed.  Where attention goes from several neighbours, each of
them can be spared and all together cannot: the sum then tells half of what is lost.  So what was picked is judged as a
whole, every shape is judged anew in its place there, and the program is solved with what it then costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from compress import files
from compress.artifact import Artifact
from compress.context import Context, Report
from passes import _sensitivity
from passes._library import Library, Variant
from passes._sensitivity import Score, Swap
from passes.puzzle.pieces import Piece, Pieces, slot
from passes.puzzle.scoring import Scores
from passes.puzzle.settings import PuzzleSettings
from passes.puzzle.states import Begun, swap

Picks = Mapping[tuple[int, str], Variant]  # by block and part


def picks_of(pieces: Sequence[Piece]) -> Picks:
    """Return the variants of what was picked."""
    return {(p.variant.block, p.variant.part): p.variant for p in pieces}


def judged(
    artifact: Artifact,
    states: Library | Begun,
    pieces: Pieces,
    settings: PuzzleSettings,
    context: Context,
    picks: Picks,
) -> tuple[float, dict[str, Score]]:
    """Return how far the shapes that were picked are from the parent, and what each shape costs among them.

    Args:
        artifact: the parent.
        states: of all variants.
        pieces: the options.
        settings: windows and kind of the scores.
        context: data, and the folder that keeps scores; what was judged among these very picks is read there.
        picks: of every part.

    Returns:
        The distance, and by key of every shape what it costs more than the parent's own in its place.

    Raises:
        BadModel: outputs are NaN or infinite with a variant, which is named.
    """
    rows = [list(dict.fromkeys(p.variant for p in options)) for options in pieces.values()]
    swaps = {v: _among(artifact, states, picks, v) for row in rows for v in row}
    changed = {v.block: swaps[v] for v in picks.values() if not v.parent}
    told = files.digest_of(sorted(v.key for v in picks.values()))[:12]
    found = _sensitivity.scores(
        artifact, list(swaps.values()), settings.windows, context, context.folder / f"among-{told}.json",
        kind=settings.score, company=list(changed.values()),
    )  # fmt: skip
    scores = {v: found[made.key] for v, made in swaps.items()}
    shapes = {v.key: scores[v] - scores[row[0]] for row in rows for v in row[1:]}
    return scores[next(iter(picks.values()))].mean, shapes


def settled(
    pieces: Sequence[Piece],
    scores: Scores,
    judge: Callable[[Picks], tuple[float, Mapping[str, Score]]],
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
        whole, shapes = judge(picks)
        found.append((whole, scores))
        seen.append(picks)
        if len(seen) > rounds:
            break
        scores = replace(scores, shapes={key: score.between(shapes[key]) for key, score in scores.shapes.items()})
        pieces = again(scores)
    report.tell(f"shapes as a whole, choice by choice: {', '.join(f'{whole:.4g}' for whole, _ in found)}")
    report.record("whole", [whole for whole, _ in found])
    return min(found, key=lambda each: each[0])[1]


def _among(artifact: Artifact, states: Library | Begun, picks: Picks, variant: Variant) -> Swap:
    """Return the block of a variant with what was picked for its other part."""
    pair = {**{v.part: v for v in picks.values() if v.block == variant.block}, variant.part: variant}
    return swap(artifact, states, tuple(pair.values()), f"{slot(variant)}, {variant.name}")
