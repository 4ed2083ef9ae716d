"""What an evaluation found: metrics with their intervals, and the value of every example for later pairing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from compress.errors import BadData
from compress.evaluate.statistics import STATISTICS, Array, Samples, interval

Kind = Literal["model", "artifact", "engine"]

# Equal for every model of the same examples: what says that two evaluations may be paired.
_SHARED = ("tokens", "bytes", "label", "target", "gold")


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        name: `perplexity`, `accuracy`, ...; of a difference, the name of what differs.
        value: on all examples.
        low: lower end of the 95 % bootstrap interval over examples.
        high: its upper end.
        unit: `nats`, `bits`, or empty for pure numbers.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} [{self.low:.4g}, {self.high:.4g}]{self.unit and ' ' + self.unit}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The quality of one model, artifact or engine.

    Attributes:
        kind: what was measured.
        metrics: every metric that the samples allow.
        samples: per name one number per window or example, in the order of the data.
        deltas: child minus parent with paired intervals; empty without a parent.
        parent: the parent's own evaluation on the same examples.
    """

    kind: Kind
    metrics: tuple[Metric, ...]
    samples: Mapping[str, list[float]]
    deltas: tuple[Metric, ...] = ()
    parent: Evaluation | None = None

    def __getitem__(self, name: str) -> Metric:
        """Return a metric by name."""
        return {m.name: m for m in self.metrics}[name]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can write."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation that `to_dict` wrote."""
        return Evaluation(
            kind=value["kind"],
            metrics=tuple(Metric(**m) for m in value["metrics"]),
            samples=value["samples"],
            deltas=tuple(Metric(**m) for m in value["deltas"]),
            parent=Evaluation.from_dict(value["parent"]) if value["parent"] else None,
        )


def summarise(kind: Kind, samples: Mapping[str, list[float]], *, seed: int = 0) -> Evaluation:
    """Return every metric that the samples allow, with its interval.

    Raises:
        BadData: there are fewer than two examples, which say nothing of their spread.
    """
    arrays, count = _arrays(samples)
    metrics = []
    for name, statistic in _possible(arrays):
        value = float(statistic(np.ones((1, count)), arrays)[0])
        low, high = interval(lambda weights, s=statistic: s(weights, arrays), count, seed)  # type: ignore[misc]
        metrics.append(Metric(name, value, low, high, statistic.unit))
    return Evaluation(kind=kind, metrics=tuple(metrics), samples=samples)


def compare(
    child: Mapping[str, list[float]], parent: Mapping[str, list[float]], *, seed: int = 0
) -> tuple[Metric, ...]:
    """Return child minus parent for every metric that both allow, with paired bootstrap intervals.

    Raises:
        BadData: the two were not measured on the same examples.
    """
    (ours, count), (theirs, others) = _arrays(child), _arrays(parent)
    if count != others:
        raise BadData(f"{count} examples cannot be paired with {others}; evaluate both on the same data")
    for name in _SHARED:
        if name in ours and name in theirs and not np.array_equal(ours[name], theirs[name]):
            raise BadData(f"the two were evaluated on different examples ({name} differs); use the same data")
    both = dict(_possible(theirs))
    deltas = []
    for name, statistic in _possible(ours):
        if name in both:

            def difference(weights: Array, statistic: Any = statistic) -> Array:
                result: Array = statistic(weights, ours) - statistic(weights, theirs)
                return result

            value = float(difference(np.ones((1, count)))[0])
            deltas.append(Metric(name, value, *interval(difference, count, seed), statistic.unit))
    return tuple(deltas)


def _possible(arrays: Samples) -> list[tuple[str, Any]]:
    return [(n, s) for n, s in STATISTICS.items() if set(s.needs) <= arrays.keys()]


def _arrays(samples: Mapping[str, list[float]]) -> tuple[dict[str, Array], int]:
    arrays = {n: np.asarray(v, dtype=np.float64) for n, v in samples.items()}
    counts = {a.size for a in arrays.values()} or {0}
    if len(counts) != 1:
        raise BadData(f"samples of unequal lengths: { ({n: a.size for n, a in arrays.items()}) }")
    count = counts.pop()
    if count < 2:
        raise BadData(f"{count} {'example is' if count else 'examples are'} too few for an interval; give at least 2")
    return arrays, count
