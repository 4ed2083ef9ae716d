"""A score by rows, so that it has an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compress.evaluate import statistics


@dataclass(frozen=True)
class Score:
    """How far one change takes the outputs, row by row.

    Attributes:
        sums: of each row, over what it is judged by: its tokens, or the row itself.
        weights: of each row, how much that is; the same for all changes judged together.
    """

    sums: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The score: of all rows together, each by its weight."""
        return math.fsum(self.sums) / math.fsum(self.weights)

    def __sub__(self, other: Score) -> Score:
        """Return how much farther it takes each row than another change does."""
        return Score(tuple(a - b for a, b in zip(self.sums, other.sums, strict=True)), self.weights)

    def between(self, other: Score) -> Score:
        """Return the middle of it and another, row by row."""
        return Score(tuple((a + b) / 2 for a, b in zip(self.sums, other.sums, strict=True)), self.weights)

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of the score, rows drawn anew."""
        sums, weights = np.array(self.sums), np.array(self.weights)
        return statistics.interval(lambda drawn: (drawn @ sums) / (drawn @ weights), len(sums), seed)
