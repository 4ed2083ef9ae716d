"""What the program chooses among: an option of one part, or of both parts of a block together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compress.facts import Planned
from passes._library import Variant
from passes.puzzle.pieces import Piece, Pieces
from passes.puzzle.scoring import Scores


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One option of a place.

    Attributes:
        pieces: of one part, or of the two of a block.
        score: what it costs in quality.
    """

    pieces: tuple[Piece, ...]
    score: float

    @property
    def name(self) -> str:
        """What the program calls it."""
        if len(self.pieces) == 1:
            return self.pieces[0].name
        return "; ".join(f"{p.variant.part} {p.name}" for p in self.pieces)

    @property
    def parent(self) -> bool:
        """Whether it is the parent's own, in floats."""
        return all(p.variant.parent and p.planned == Planned() for p in self.pieces)


Offers = Mapping[str, tuple[Offer, ...]]  # place -> its options, the parent's own first


def alone(pieces: Pieces, scores: Scores) -> Offers:
    """Return the options of every part by itself."""
    return {
        name: tuple(Offer(pieces=(p,), score=scores.shape(p.variant) + scores.rest(p)) for p in options)
        for name, options in pieces.items()
    }


def together(pieces: Pieces, scores: Scores, pair: Callable[[tuple[Variant, ...]], float]) -> Offers:
    """Return the options of every block: each pair of its parts' options, shapes judged together.

    Args:
        pieces: of the parts.
        scores: of codes and zeros, which are added.
        pair: returns what two variants cost together.
    """
    blocks: dict[int, list[tuple[Piece, ...]]] = {}
    for options in pieces.values():
        blocks.setdefault(options[0].variant.block, []).append(options)
    found: dict[str, tuple[Offer, ...]] = {}
    for index, parts in blocks.items():
        found[f"block {index}"] = tuple(
            Offer(pieces=picks, score=pair(tuple(p.variant for p in picks)) + sum(map(scores.rest, picks)))
            for picks in itertools.product(*parts)
        )
    return found
