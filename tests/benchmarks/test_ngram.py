"""The n-gram baseline: a true distribution, learnt, and equal to the formula worked by hand."""

import numpy as np
import pytest

from benchmarks.demo.ngram import KneserNey

TEXT = [
    np.frombuffer(t, dtype=np.uint8).astype(np.int64) % 32 for t in (b"the cat sat on the mat " * 20, b"a hat " * 30)
]


@pytest.mark.parametrize("order", [1, 2, 4, 7])
def test_probabilities_sum_to_one_for_seen_and_unseen_contexts(order: int) -> None:
    model = KneserNey(order, 32).fit(TEXT)
    for context in ([], [20, 8], [20, 8, 5, 0], [31, 31, 31], [20, 31, 8]):
        p = model.distribution(context)
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        assert p.min() > 0


def test_longer_contexts_predict_better() -> None:
    heldout = [TEXT[0][5:80]]
    bits = [KneserNey(order, 32).fit(TEXT).bits(heldout).mean() for order in (1, 2, 4)]
    assert bits[0] > 1.5 * bits[1] > 1.5 * bits[2]


def test_no_gram_crosses_documents() -> None:
    model = KneserNey(3, 4).fit([np.array([0, 1, 2]), np.array([3, 1, 2])])
    both = model.bits([np.array([0, 1, 2]), np.array([3, 1, 2])])
    alone = np.concatenate([model.bits([np.array([0, 1, 2])]), model.bits([np.array([3, 1, 2])])])
    np.testing.assert_array_equal(both, alone)


def test_bigram_agrees_with_the_formula_worked_out_by_hand() -> None:
    words = [np.array([0, 1, 0, 1, 0, 2, 0, 1, 0, 0])]  # after 0: 1 three times, 2 and 0 once; 0 starts the document
    model = KneserNey(2, 3).fit(words)
    # counts 1: (start,0), (0,2), (0,0), (2,0); 3: (0,1), (1,0) -> n1 = 4, n2 -> 1 (none), n3 = 2, n4 -> 1 (none)
    y = 4 / 6
    d1, d3 = 1 - 2 * y / 4, 3 - 4 * y / 2
    # distinct left neighbours: 0 has 4 (start, 0, 1, 2), 1 and 2 have 1 -> of 6; n1 = 2, others none
    y0 = 2 / 4
    e1, e3 = 1 - 2 * y0 / 2, min(3 - 4 * y0, 2.95)
    uniform = (2 * e1 + e3) / 6 / 3
    unigram = np.array([(4 - e3) / 6, (1 - e1) / 6, (1 - e1) / 6]) + uniform
    gamma = (2 * d1 + d3) / 5
    expected = np.array([1 - d1, 3 - d3, 1 - d1]) / 5 + gamma * unigram
    np.testing.assert_allclose(model.distribution([0]), expected, rtol=1e-12)
