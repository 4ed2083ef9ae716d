"""Scales moved from what linears read into their weights: which modules let one through, and the move itself.

`y = (x / s) (W diag(s))^T` is what `x W^T` is, and where x comes from a norm or from a linear without a nonlinearity in
between, the division is done once and for all in its weights: the function of the model stays, up to rounding.
"""

from passes._folding.fold import check, fold_
from passes._folding.pairs import Pair, pairs, pairs_in

__all__ = ["Pair", "check", "fold_", "pairs", "pairs_in"]
