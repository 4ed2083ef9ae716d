"""How near written sentences come to the references: counts by sacrebleu for each input, BLEU of any draw of them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._ledger import Row
from compress.errors import Unavailable

Reals = NDArray[np.float64]

_ORDERS = 4


def library() -> Any:
    """Return sacrebleu.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        importlib.import_module("sacrebleu.metrics")
        return importlib.import_module("sacrebleu")
    except ImportError as error:
        raise Unavailable(f"no sacrebleu here ({error}); pip install sacrebleu, for this benchmark only") from None


def counted(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Row:
    """Return what the metrics need of each text.

    Returns:
        `bleu`: of each the n-grams of 1 to 4 words that a reference has, those that the text has, its length, and
        that of the reference nearest in length; `chrf`: of each its chrF, 0 to 100.
    """
    metrics = library().metrics
    bleu, chrf = metrics.BLEU(effective_order=True), metrics.CHRF()  # counts are the same for any order
    pairs = list(zip(texts, references, strict=True))
    scores = [bleu.sentence_score(text, list(said)) for text, said in pairs]
    return {
        "bleu": [[int(v) for v in (*s.counts, *s.totals, s.sys_len, s.ref_len)] for s in scores],
        "chrf": [round(chrf.sentence_score(text, list(said)).score, 3) for text, said in pairs],
    }


def bleu(weights: Reals, counts: Reals) -> Reals:
    """Return the BLEU of a corpus `[draws]`, 0 to 100, in which each input stands as often as its weight says.

    Sums over the inputs as Papineni et al. 2002 have it; an order without a hit counts as half of one, the next such
    order as a quarter, and so on, as sacrebleu's default.

    Args:
        weights: `[draws, inputs]`.
        counts: `[inputs, 10]` as `counted` gives them.
    """
    sums = weights @ counts
    hits, there, (written, asked) = sums[:, :_ORDERS], sums[:, _ORDERS:-2], sums[:, -2:].T
    smoothed = np.where(hits == 0, 0.5 ** np.cumsum(hits == 0, axis=1), hits)
    said = there.min(1) > 0  # else no text has as many words as the longest n-gram
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(smoothed / there).mean(1))
        brevity = np.minimum(1.0, np.exp(1 - asked / written))
    return np.where(said & (hits[:, 0] > 0), 100 * brevity * precision, 0.0)
