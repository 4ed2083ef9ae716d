"""What parts measured alone do not tell of whole models: a line from summed parts to measured wholes, and its interval.

The line is fitted to relative errors, since times differ by orders of magnitude: it minimises
`sum(((m - a - b s) / m)^2)` over intercept `a` and interaction `b`, for measured wholes `m` and sums `s`.  With `r` the
residual standard deviation of `n` wholes, a new whole lies within `t(n - 2) r sqrt(1 + h)` of its prediction, `h` being
its leverage (a prediction interval of ordinary least squares).

Where weights do not stay in a cache, what is missed is the time that reading them from memory takes: then `b` is 1, and
the line `m - s = a + c w` is fitted instead, `w` being the weights in MiB.  Codes so save more of a whole model's time
than parts of a few copies, which stay in the cache, can tell.

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
    """`ms = intercept + slope * sum + per_mib * weights`, the sum itself where nothing was fitted.

    Attributes:
        intercept: in ms.
        slope: how much of a part's own time a whole feels.
        per_mib: ms that each MiB of weights takes beside.
        residual: relative standard deviation of the wholes around the line; None where nothing was fitted.
        count: how many wholes.
        takes: mean relative residual at each time.
        drift: half width of the 95 % interval of what all wholes share at another time, relative; see `drifting`.
    """

    intercept: float = 0.0
    slope: float = 1.0
    per_mib: float = 0.0
    residual: float | None = None
    count: int = 0
    takes: tuple[float, ...] = ()
    drift: float = 0.0
    _inverse: NDArray[np.floating[Any]] | None = field(default=None, repr=False, compare=False)
    _by_mib: bool = field(default=False, repr=False, compare=False)  # whether it was fitted to weights, not to sums

    def at(self, total: float, mib: float = 0.0) -> float:
        """Return the prediction for summed parts, in ms, and the MiB of their weights."""
        return self.intercept + self.of(total, mib)

    def of(self, ms: float, mib: float) -> float:
        """Return what a part adds to a whole, from its own time and the MiB of its weights."""
        return self.slope * ms + self.per_mib * mib

    def margin(self, total: float, spread: float, mib: float = 0.0) -> float:
        """Return the half width of the 95 % interval around a prediction, in ms.

        Args:
            total: of the summed parts, in ms.
            spread: of that sum, in ms, which alone counts where nothing was fitted.
            mib: of their weights.
        """
        if self.residual is None or self._inverse is None:
            return spread
        predicted = self.at(total, mib)
        row = np.array([1.0, mib if self._by_mib else total]) / predicted
        leverage = float(row @ self._inverse @ row)
        own = student(self.count - 2) * self.residual * math.sqrt(1 + leverage)
        return abs(predicted) * math.hypot(own, self.drift)


def fit(
    sums: Sequence[float],
    measured: Sequence[float],
    takes: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
) -> Line:
    """Return the line from summed parts to measured wholes, both in ms; none where the wholes are too few or alike.

    Args:
        sums: of each whole's parts; several takes of a whole have the same.
        measured: what it took.
        takes: at which time that was, counted from 0; all at one unless given.
        weights: MiB of each, where they are read from memory.
    """
    s, m = np.array(sums, dtype=np.float64), np.array(measured, dtype=np.float64)
    when = np.zeros(len(m), dtype=np.int64) if takes is None else np.array(takes)
    count = int(np.bincount(when).max()) if len(m) else 0  # wholes: a second take of one is no other whole
    x, known = (s, np.zeros_like(s)) if weights is None else (np.array(weights, dtype=np.float64), s)
    if count < FEWEST or np.ptp(x) < 0.05 * x.mean():
        return Line()
    rows, missed = np.stack([1 / m, x / m], axis=1), (m - known) / m
    (a, b), *_ = np.linalg.lstsq(rows, missed, rcond=None)
    if weights is not None and b <= 0:
        return fit(sums, measured, takes)  # memory is no slower than the cache, as far as the clock can tell
    rest = missed - rows @ np.array([a, b])
    shifts = np.array([rest[when == k].mean() for k in np.unique(when)])
    own = rest - shifts[np.unique(when, return_inverse=True)[1]]
    residual = float(np.sqrt((own**2).mean() * count / (count - 2)))
    inverse = np.linalg.inv(rows.T @ rows) * len(m) / count
    line = Line(float(a), residual=residual, count=count, takes=tuple(shifts.tolist()), _inverse=inverse)
    return replace(line, slope=float(b)) if weights is None else replace(line, per_mib=float(b), _by_mib=True)


def between(low: Line, high: Line, share: float) -> Line:
    """Return the line at a share of the way from one to another."""
    names = ("intercept", "slope", "per_mib")
    mixed = {n: (1 - share) * getattr(low, n) + share * getattr(high, n) for n in names}
    worst = max((low, high), key=lambda line: line.residual or 0.0)
    return replace(worst, **mixed, drift=max(low.drift, high.drift))


def drifting(lines: Mapping[K, Line]) -> dict[K, Line]:
    """Return lines that know how far another time is from theirs, which is about as far for all of them."""
    several = [np.array(line.takes) for line in lines.values() if len(line.takes) > 1]
    if not several:
        return dict(lines)
    freedom = sum(len(t) - 1 for t in several)
    variance = sum((len(t) - 1) * t.var(ddof=1) for t in several) / freedom
    half = student(freedom) * math.sqrt(variance * (1 + 1 / min(map(len, several))))
    return {key: replace(line, drift=half) for key, line in lines.items()}
