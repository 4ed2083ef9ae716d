"""What parts measured alone do not tell of whole models: a line from summed parts to measured wholes, and its interval.

The line is fitted to relative errors, since times differ by orders of magnitude: it minimises
`sum(((m - a - b s) / m)^2)` over intercept `a` and interaction `b`, for measured wholes `m` and sums `s`.  With `r` the
residual standard deviation of `n` wholes, a new whole lies within `t(n - 2) r sqrt(1 + h)` of its prediction, `h` being
its leverage (a prediction interval of ordinary least squares).

Wholes that were taken at `K` times tell besides how far all of them move together from one time to another: with `v`
the variance of the means of takes, over several lines that have it in common, another time is within
`t(f) sqrt(v (1 + 1/K))`, `f` being the sum of `K - 1` over the lines.  It is added in squares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from compress.bench import student

K = TypeVar("K")
FEWEST = 5  # wholes, for a line that means something


@dataclass(frozen=True)
class Line:
    """`ms = intercept + slope * sum`, exact where nothing was fitted.

    Attributes:
        intercept: in ms.
        slope: how much of a part's own time a whole feels.
        residual: relative standard deviation of the wholes around the line; None where nothing was fitted.
        count: how many wholes.
        takes: mean relative residual at each time.
        drift: half width of the 95 % interval of what all wholes share at another time, relative; see `drifting`.
    """

    intercept: float = 0.0
    slope: float = 1.0
    residual: float | None = None
    count: int = 0
    takes: tuple[float, ...] = ()
    drift: float = 0.0
    _inverse: NDArray[np.floating[Any]] | None = field(default=None, repr=False, compare=False)

    def at(self, total: float) -> float:
        """Return the prediction for summed parts, in ms."""
        return self.intercept + self.slope * total

    def margin(self, total: float, spread: float) -> float:
        """Return the half width of the 95 % interval around a prediction, in ms.

        Args:
            total: of the summed parts, in ms.
            spread: of that sum, in ms, which alone counts where nothing was fitted.
        """
        if self.residual is None or self._inverse is None:
            return spread
        predicted = self.at(total)
        row = np.array([1.0, total]) / predicted
        leverage = float(row @ self._inverse @ row)
        own = student(self.count - 2) * self.residual * math.sqrt(1 + leverage)
        return abs(predicted) * math.hypot(own, self.drift)


def fit(sums: Sequence[float], measured: Sequence[float], takes: Sequence[int] | None = None) -> Line:
    """Return the line from summed parts to measured wholes, both in ms; none where the wholes are too few or alike.

    Args:
        sums: of each whole's parts; several takes of a whole have the same.
        measured: what it took.
        takes: at which time that was, counted from 0; all at one unless given.
    """
    s, m = np.array(sums, dtype=np.float64), np.array(measured, dtype=np.float64)
    when = np.zeros(len(m), dtype=np.int64) if takes is None else np.array(takes)
    count = int(np.bincount(when).max()) if len(m) else 0  # wholes: a second take of one is no other whole
    if count < FEWEST or np.ptp(s) < 0.05 * s.mean():
        return Line()
    rows = np.stack([1 / m, s / m], axis=1)
    (a, b), *_ = np.linalg.lstsq(rows, np.ones(len(m)), rcond=None)
    rest = 1 - rows @ np.array([a, b])
    shifts = np.array([rest[when == k].mean() for k in np.unique(when)])
    own = rest - shifts[np.unique(when, return_inverse=True)[1]]
    residual = float(np.sqrt((own**2).mean() * count / (count - 2)))
    inverse = np.linalg.inv(rows.T @ rows) * len(m) / count
    return Line(float(a), float(b), residual, count, tuple(shifts.tolist()), _inverse=inverse)


def between(low: Line, high: Line, share: float) -> Line:
    """Return the line at a share of the way from one to another."""
    mixed = [(1 - share) * x + share * y for x, y in ((low.intercept, high.intercept), (low.slope, high.slope))]
    worst = max((low, high), key=lambda line: line.residual or 0.0)
    return replace(worst, intercept=mixed[0], slope=mixed[1], drift=max(low.drift, high.drift))


def drifting(lines: Mapping[K, Line]) -> dict[K, Line]:
    """Return lines that know how far another time is from theirs, which is about as far for all of them."""
    several = [np.array(line.takes) for line in lines.values() if len(line.takes) > 1]
    if not several:
        return dict(lines)
    freedom = sum(len(t) - 1 for t in several)
    variance = sum((len(t) - 1) * t.var(ddof=1) for t in several) / freedom
    half = student(freedom) * math.sqrt(variance * (1 + 1 / min(map(len, several))))
    return {key: replace(line, drift=half) for key, line in lines.items()}
