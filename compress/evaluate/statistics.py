"""Every metric as one function of weighted samples, and its bootstrap interval.

A resample of n examples is a row of counts, so a metric that takes weights `[r, n]` gives its value on the whole set
(one row of ones) and on r resamples alike, in one vectorised call.  Two models resampled with the same counts are
paired: what makes an example hard for both cancels in their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Samples = Mapping[str, Array]

RESAMPLES = 2000
LEVEL = 0.95
_ELEMENTS = 2**21  # of the weights that are held at once


@dataclass(frozen=True)
class Statistic:
    """One metric.

    Attributes:
        compute: `(weights [r, n], *samples [n]) -> [r]`.
        needs: the names of the samples that it reads.
        unit: of its value; empty for pure numbers.
    """

    compute: Callable[..., Array]
    needs: tuple[str, ...]
    unit: str = ""

    def __call__(self, weights: Array, samples: Samples) -> Array:
        """Return the metric `[r]` of the samples under each row of weights `[r, n]`."""
        return self.compute(weights, *(samples[name] for name in self.needs))


def resamples(count: int, seed: int, rows: int = RESAMPLES) -> Iterator[Array]:
    """Yield the weights of `rows` resamples of `count` examples, in chunks `[r, count]`; the seed fixes them all."""
    draw = np.random.default_rng(seed)
    step = max(1, _ELEMENTS // count)
    for start in range(0, rows, step):
        size = min(step, rows - start)
        chosen = draw.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(chosen.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def interval(values: Callable[[Array], Array], count: int, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of `values(weights [r, count]) -> [r]`."""
    drawn = np.concatenate([values(weights) for weights in resamples(count, seed)])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean(weights: Array, values: Array) -> Array:
    """Return the weighted mean."""
    result: Array = weights @ values / weights.sum(1)
    return result


def perplexity(weights: Array, loss: Array) -> Array:
    """Return exp of the mean over windows of the window's mean token loss."""
    return np.exp(mean(weights, loss))


def per_token(weights: Array, value: Array, tokens: Array) -> Array:
    """Return a mean over windows as a mean over tokens; the two differ where windows predict unequally many."""
    result: Array = weights @ (value * tokens) / (weights @ tokens)
    return result


def bits_per_byte(weights: Array, loss: Array, tokens: Array, bytes_: Array) -> Array:
    """Return the bits that the model needs for a byte of text, whatever its tokenizer."""
    result: Array = weights @ (loss * tokens) / (weights @ bytes_) / np.log(2)
    return result


def accuracy(weights: Array, predicted: Array, label: Array) -> Array:
    """Return the share of examples whose predicted class is theirs."""
    return mean(weights, (predicted == label).astype(np.float64))


def f1(weights: Array, predicted: Array, label: Array) -> Array:
    """Return F1 of class 1 where no other class than 0 and 1 occurs, else the mean over the classes that occur.

    F1 = 2 TP / (predicted + true); 0 for a class 1 that is neither predicted nor there.
    """
    hits, said, true = _counts(weights, predicted, label)
    with np.errstate(invalid="ignore"):
        each = 2 * hits / (said + true)  # NaN: the class does not occur in this resample
    classes = _classes(predicted, label)
    if set(classes) <= {0.0, 1.0}:
        one = each[:, classes == 1]
        return np.nan_to_num(one[:, 0]) if one.size else np.zeros(len(weights))
    result: Array = np.nanmean(each, axis=1)
    return result


def mcc(weights: Array, predicted: Array, label: Array) -> Array:
    """Return Matthews' correlation for any number of classes; 0 where a side has one class only (no correlation)."""
    hits, said, true = _counts(weights, predicted, label)
    total = weights.sum(1)
    covariance = hits.sum(1) * total - (said * true).sum(1)
    spread = (total**2 - (said**2).sum(1)) * (total**2 - (true**2).sum(1))
    return _ratio(covariance, np.sqrt(spread))


def pearson(weights: Array, predicted: Array, target: Array) -> Array:
    """Return the linear correlation; 0 where a side is constant."""
    shape = weights.shape
    return _correlation(weights, np.broadcast_to(predicted, shape), np.broadcast_to(target, shape))


def spearman(weights: Array, predicted: Array, target: Array) -> Array:
    """Return the rank correlation, ties sharing their mean rank; 0 where a side is constant."""
    return _correlation(weights, _ranks(weights, predicted), _ranks(weights, target))


def pearson_spearman(weights: Array, predicted: Array, target: Array) -> Array:
    """Return the mean of both correlations."""
    return (pearson(weights, predicted, target) + spearman(weights, predicted, target)) / 2


STATISTICS: dict[str, Statistic] = {
    "perplexity": Statistic(perplexity, ("loss",)),
    "nats_per_token": Statistic(per_token, ("loss", "tokens"), "nats"),
    "bits_per_byte": Statistic(bits_per_byte, ("loss", "tokens", "bytes"), "bits"),
    "accuracy": Statistic(accuracy, ("predicted", "label")),
    "f1": Statistic(f1, ("predicted", "label")),
    "mcc": Statistic(mcc, ("predicted", "label")),
    "pearson": Statistic(pearson, ("score", "target")),
    "spearman": Statistic(spearman, ("score", "target")),
    "pearson_spearman": Statistic(pearson_spearman, ("score", "target")),
    "choice_accuracy": Statistic(accuracy, ("picked", "gold")),
    "choice_accuracy_normalised": Statistic(accuracy, ("picked_normalised", "gold")),
    "kl": Statistic(mean, ("kl",), "nats"),
    "agreement": Statistic(mean, ("agreement",)),
    "cosine": Statistic(mean, ("cosine",)),
}


def _classes(predicted: Array, label: Array) -> Array:
    return np.unique(np.concatenate([predicted, label]))


def _counts(weights: Array, predicted: Array, label: Array) -> tuple[Array, Array, Array]:
    """Return per resample and class `[r, classes]` how often it was hit, predicted and true."""
    classes = _classes(predicted, label)
    said = (predicted[:, None] == classes).astype(np.float64)
    true = (label[:, None] == classes).astype(np.float64)
    return weights @ (said * true), weights @ said, weights @ true


def _ranks(weights: Array, values: Array) -> Array:
    """Return the mean rank `[r, n]` of every value within each resample."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    times = np.add.reduceat(weights[:, order], starts, axis=1)  # how often each distinct value was drawn
    ranks: Array = (np.cumsum(times, axis=1) - (times - 1) / 2)[:, place]
    return ranks


def _correlation(weights: Array, a: Array, b: Array) -> Array:
    total = weights.sum(1, keepdims=True)
    a, b = ((x - x.min()) / (np.ptp(x) or 1.0) for x in (a, b))  # so that what counts as constant knows no scale
    a = a - (weights * a).sum(1, keepdims=True) / total
    b = b - (weights * b).sum(1, keepdims=True) / total
    covariance, spread_a, spread_b = ((weights * x * y).sum(1) for x, y in ((a, b), (a, a), (b, b)))
    return _ratio(covariance, np.sqrt(spread_a * spread_b))


def _ratio(above: Array, below: Array) -> Array:
    # A constant side leaves the rounding error of its mean rather than an exact zero.
    return np.where(below > 1e-12, above / np.where(below > 1e-12, below, 1.0), 0.0)
