"""An interpolated modified Kneser-Ney n-gram model in numpy: the strong cheap baseline beside the demo model.

    p_n(w | h) = max(c(hw) - D(c(hw)), 0) / c(h) + gamma(h) p_{n-1}(w | h')
    gamma(h) = (D1 N1(h) + D2 N2(h) + D3 N3+(h)) / c(h)

c is the plain count at the highest order and below it the number of distinct left neighbours; p_0 is uniform
(Chen & Goodman 1999).  A gram of order n is numbered by (number of its first n - 1 symbols, last symbol), so that one
sort an order counts everything and the order has no upper limit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """One order: the sorted keys of its grams, each gram's share of mass, each context's back-off weight."""

    keys: Ids  # [grams], context number * (symbols + 1) + last symbol
    share: Reals  # [grams], max(c - D(c), 0) / c(context)
    backoff: Reals  # [contexts], gamma; 1 where the context was never seen


class KneserNey:
    """A model over symbols `0 .. symbols - 1`; documents are independent and start from an empty context.

    Args:
        order: longest gram, >= 1.
        symbols: size of the alphabet.
    """

    def __init__(self, order: int, symbols: int) -> None:
        self.order, self.symbols = order, symbols
        self._levels: list[_Level] = []

    def fit(self, documents: Sequence[Ids]) -> "KneserNey":
        """Count the documents and return the model itself."""
        stream = self._stream(documents)
        real = stream < self.symbols
        contexts: Ids = np.zeros(len(stream), dtype=np.int64)
        tables, numbers = [], []  # per order: the sorted keys; every position's gram number
        for _ in range(self.order):
            keys, number = np.unique(contexts * (self.symbols + 1) + stream, return_inverse=True)
            tables.append(keys)
            numbers.append(number.astype(np.int32))
            contexts = np.concatenate([number[:1], number[:-1]])
        counts = np.bincount(numbers[-1][real], minlength=len(tables[-1]))
        parents = 1
        levels = []
        for n in reversed(range(self.order)):
            parents = len(tables[n - 1]) if n else 1
            levels.append(self._level(tables[n], counts, parents))
            if n:  # distinct left neighbours of every shorter gram
                suffix = np.zeros(len(tables[n]), dtype=np.int64)
                suffix[numbers[n]] = numbers[n - 1]
                counts = np.bincount(suffix[counts > 0], minlength=parents)
        self._levels = levels[::-1]
        return self

    def bits(self, documents: Sequence[Ids]) -> Reals:
        """Return -log2 p of every symbol of the documents, in order."""
        stream = self._stream(documents)
        probability = np.full(len(stream), 1.0 / self.symbols)
        contexts: Ids = np.zeros(len(stream), dtype=np.int64)
        for level in self._levels:
            number = _find(level.keys, np.where(contexts < 0, -1, contexts * (self.symbols + 1) + stream))
            probability *= np.where(contexts < 0, 1.0, level.backoff[contexts])
            probability += np.where(number < 0, 0.0, level.share[number])
            contexts = np.concatenate([number[:1], number[:-1]])
        paid: Reals = -np.log2(probability[stream < self.symbols])
        return paid

    def distribution(self, context: Sequence[int]) -> Reals:
        """Return p(. | context) over the alphabet, of a document that begins with the context."""
        rows = [np.array([*context, w], dtype=np.int64) for w in range(self.symbols)]
        return np.asarray(2.0 ** -self.bits(rows).reshape(self.symbols, -1)[:, -1], dtype=np.float64)

    def _stream(self, documents: Sequence[Ids]) -> Ids:
        """Return all documents in one row, each behind `order` start symbols, so that no gram crosses documents."""

        def parts() -> Iterator[Ids]:
            for document in documents:
                yield np.full(self.order, self.symbols, dtype=np.int64)
                yield document

        return np.concatenate(list(parts()))

    def _level(self, keys: Ids, counts: Ids, parents: int) -> _Level:
        context = keys // (self.symbols + 1)
        total = np.bincount(context, weights=counts, minlength=parents)
        discount = _discounts(counts)[np.minimum(counts, 3)]
        lost = np.bincount(context, weights=discount, minlength=parents)
        seen = total > 0
        backoff = np.divide(lost, total, out=np.ones_like(total), where=seen)
        share = np.divide(counts - discount, total[context], out=np.zeros(len(keys)), where=seen[context])
        return _Level(keys, share, backoff)


def _discounts(counts: Ids) -> Reals:
    """Return the discount of grams counted 0, 1, 2 and 3 or more times, from the counts of counts."""
    n1, n2, n3, n4 = (max(1, int(np.count_nonzero(counts == i))) for i in range(1, 5))
    y = n1 / (n1 + 2 * n2)
    values = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    clipped: Reals = np.clip(values, [0.0, 0.1, 0.1, 0.1], [0.0, 0.95, 1.95, 2.95])  # tiny corpora: useless estimates
    return clipped


def _find(keys: Ids, wanted: Ids) -> Ids:
    """Return where each wanted key stands in the sorted keys, -1 where it does not."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
