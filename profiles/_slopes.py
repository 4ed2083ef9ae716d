"""The time of one copy, from engines of several depths: a line through their medians, and how sure it is.

With two depths N and 2N this is the slope `(T(2N) - T(N)) / N` and the intercept `2 T(N) - T(2N)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.errors import CompressError
from compress.measure import Phase

WIDE = 0.25  # half width of an interval, as a share of the figure: beyond it is measured again, then flagged
_SHARED = "shared"  # the clock's flag of a machine that others use; noise is in the interval already


class Unmeasurable(CompressError):
    """A part whose time could not be told from nothing, however long it was measured."""


@dataclass(frozen=True)
class Found:
    """A figure in ms, the half width of its 95 % interval in ms, and the runs behind it."""

    ms: float
    half: float
    runs: int
    flags: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether it is positive and narrow."""
        return self.ms > 0 and self.half <= WIDE * self.ms


def through(depths: Sequence[int], phases: Sequence[Phase], reference_ms: float) -> tuple[Found, Found]:
    """Return slope and intercept of the least-squares line through engines of several depths.

    Args:
        depths: copies in each engine, ascending, two at least.
        phases: what the clock found of each, as ratios to the reference engine of the same run.
        reference_ms: what the reference takes; ratios to it cancel what slowed the machine meanwhile.
    """
    d = np.array(depths, dtype=np.float64)
    ms = np.array([p.ratio for p in phases]) * reference_ms
    half = np.array([p.ratio_high - p.ratio_low for p in phases]) / 2 * reference_ms
    weights = (d - d.mean()) / ((d - d.mean()) ** 2).sum()
    slope, ends = float(weights @ ms), 1 / len(d) - weights * d.mean()
    runs = min(p.runs for p in phases)
    flags = tuple(f for p in phases for f in p.flags if f.startswith(_SHARED))[:1]
    halves = [float(np.sqrt(((w * half) ** 2).sum())) for w in (weights, ends)]
    return Found(slope, halves[0], runs, flags), Found(float(ends @ ms), halves[1], runs, flags)


def pooled(first: Found, second: Found) -> Found:
    """Return what two measurements of one figure come to, each counting as much as it has runs."""
    runs = first.runs + second.runs
    a, b = first.runs / runs, second.runs / runs
    half = float(np.hypot(a * first.half, b * second.half))
    return Found(a * first.ms + b * second.ms, half, runs, tuple(dict.fromkeys((*first.flags, *second.flags))))


def plain(phase: Phase, reference_ms: float) -> Found:
    """Return a whole engine's time on the reference's scale."""
    half = (phase.ratio_high - phase.ratio_low) / 2 * reference_ms
    return Found(phase.ratio * reference_ms, half, phase.runs, tuple(f for f in phase.flags if f.startswith(_SHARED)))
