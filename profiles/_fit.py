"""What parts measured alone do not tell of whole models: a line from summed parts to measured wholes, and its interval.

The line is fitted to relative errors, since times differ by orders of magnitude: it minimises
`sum(((m - a - b s) / m)^2)` over intercept `a` and interaction `b`, for measured wholes `m` and sums `s`.  With `r` the
residual standard deviation of `n` wholes, a new whole lies within `t(n - 2) r sqrt(1 + h)` of its prediction, `h` being
its leverage (a prediction interval of ordinary least squares).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 5  # wholes, for a line that means something
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 10: 2.23, 12: 2.18, 15: 2.13, 20: 2.09}


@dataclass(frozen=True)
class Line:
    """`ms = intercept + slope * sum`, exact where nothing was fitted.

    Attributes:
        intercept: in ms.
        slope: how much of a part's own time a whole feels.
        residual: relative standard deviation of the wholes around the line; None where nothing was fitted.
        count: how many wholes.
    """

    intercept: float = 0.0
    slope: float = 1.0
    residual: float | None = None
    count: int = 0
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
        return abs(predicted) * _quantile(self.count - 2) * self.residual * math.sqrt(1 + leverage)


def fit(sums: Sequence[float], measured: Sequence[float]) -> Line:
    """Return the line from summed parts to measured wholes, both in ms; none where the wholes are too few or alike."""
    s, m = np.array(sums, dtype=np.float64), np.array(measured, dtype=np.float64)
    if len(m) < FEWEST or np.ptp(s) < 0.05 * s.mean():
        return Line()
    rows = np.stack([1 / m, s / m], axis=1)
    (a, b), *_ = np.linalg.lstsq(rows, np.ones(len(m)), rcond=None)
    rest = 1 - rows @ np.array([a, b])
    residual = float(np.sqrt((rest**2).sum() / (len(m) - 2)))
    return Line(float(a), float(b), residual, len(m), np.linalg.inv(rows.T @ rows))


def between(low: Line, high: Line, share: float) -> Line:
    """Return the line at a share of the way from one to another."""
    mixed = [(1 - share) * x + share * y for x, y in ((low.intercept, high.intercept), (low.slope, high.slope))]
    worst = max((low, high), key=lambda line: line.residual or 0.0)
    return Line(mixed[0], mixed[1], worst.residual, worst.count, worst._inverse)


def _quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t."""
    return _T[max(k for k in _T if k <= freedom)] if freedom <= 30 else 2.04
