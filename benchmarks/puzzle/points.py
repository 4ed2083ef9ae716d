"""Engines of a results file, their losses beside their times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

from benchmarks import _score
from benchmarks._ledger import Row
from benchmarks.puzzle.cells import ABLATIONS, CONTROL, DENSE, SINGLE, Cell

Rows = Mapping[str, Row]
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Point:
    """One engine.

    Attributes:
        cell: what it is.
        row: what is known of it.
        times: by batch and phase: ms, share of the dense engine's time, and where the 95 % interval of that begins and
            ends.
    """

    cell: Cell
    row: Row
    times: Mapping[int, Mapping[str, list[float]]]

    @property
    def loss(self) -> float:
        """Mean loss in nats a token."""
        return mean(self.row["losses"])

    def share(self, batch: int = 1, phase: str = "decode") -> Interval | None:
        """Return the share of the dense engine's time with its interval; None where it was not timed."""
        found = self.times.get(batch, {}).get(phase)
        return (found[1], found[2], found[3]) if found else None

    def above(self, other: Point) -> Interval:
        """Return by how much its loss is above another's, nats a token, with the paired 95 % interval."""
        return _score.mean_difference(self.row["losses"], other.row["losses"])

    def kept(self, dense: Point) -> float:
        """Return the share of the dense engine's rightly guessed tokens that it guesses as often."""
        return mean(self.row["hits"]) / mean(dense.row["hits"])


def points(rows: Rows) -> dict[str, Point]:
    """Return the engines by key, with the last common timing at each batch."""
    clocks = {row["batch"]: row["engines"] for key, row in rows.items() if key.startswith("clock/")}
    found = {}
    for key, row in rows.items():
        if key.startswith("engine/") and "losses" in row:
            cell = Cell(row["curve"], row["way"], row["amount"])
            found[key] = Point(cell, row, {batch: engines.get(key, {}) for batch, engines in clocks.items()})
    return found


def dense_of(found: Mapping[str, Point]) -> Point:
    """Return the dense engine."""
    return found[Cell(SINGLE, DENSE).key]


def rivals(point: Point, found: Mapping[str, Point], batch: int, *, curve: str | None = None) -> list[Point]:
    """Return the engines of other ways that are at least as fast as a point, best first.

    Args:
        point: one of Puzzle's.
        found: all engines.
        batch: at which they were timed.
        curve: if given, only those of this curve, and the parent.
    """
    own = point.share(batch)
    assert own is not None
    allowed = [p for p in found.values() if curve is None or p.cell.curve == curve or p.cell.way in (DENSE, CONTROL)]
    others = [p for p in allowed if p.cell.way not in (point.cell.way, *ABLATIONS)]
    fast = [p for p in others if (share := p.share(batch)) and share[0] <= own[2]]
    return sorted(fast, key=lambda p: p.loss)
