"""Held-out loss of changed weights, how far they stray from the dense model, and intervals of differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from compress import loading, tree

Reals = NDArray[np.float64]

_DRAWS = 10_000


def open_model(case: Path) -> PreTrainedModel:
    """Return the dense model of a case."""
    return loading.open_source(str(case / "model"), "causal-lm")[0]


def put_(model: PreTrainedModel, weights: Path) -> None:
    """Give the model the parameters that a method wrote.

    Raises:
        KeyError: a block linear has none.
    """
    given = load_file(weights)
    with torch.no_grad():
        for name in dict.fromkeys([*(f"{n}.weight" for n in tree.block_linears(model)), *given]):
            model.get_parameter(name).copy_(given[name])


def window_losses(model: PreTrainedModel, windows: Tensor) -> list[float]:
    """Return the mean loss of each window in nats a predicted token."""
    losses: list[float] = []
    with torch.no_grad():
        for batch in windows.split(16):
            logits = model(input_ids=batch).logits.float()[:, :-1]
            each = functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
            losses += each.mean(1).tolist()
    return losses


def window_divergences(model: PreTrainedModel, dense: PreTrainedModel, windows: Tensor) -> list[float]:
    """Return each window's mean KL(dense || model) in nats a token."""
    found: list[float] = []
    with torch.no_grad():
        for batch in windows.split(16):
            now, before = (m(input_ids=batch).logits.float().log_softmax(-1) for m in (model, dense))
            found += functional.kl_div(now, before, reduction="none", log_target=True).sum(-1).mean(1).tolist()
    return found


def zeros(model: PreTrainedModel) -> tuple[float, bool]:
    """Return the share of zeros in the block linears, and whether all of them are 2:4."""
    weights = [linear.weight for linear in tree.block_linears(model).values()]
    share = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    return share, all(bool(((w.reshape(-1, 4) != 0).sum(1) <= 2).all()) for w in weights)


def perplexity(losses: Sequence[float]) -> float:
    """Return exp of the mean loss; every window has as many tokens."""
    return math.exp(sum(losses) / len(losses))


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return perplexity of a minus that of b, with its 95 % interval by paired bootstrap over the windows."""
    low, high = np.percentile(_drawn(lambda x, y: np.exp(x) - np.exp(y), a, b), [2.5, 97.5])
    return perplexity(a) - perplexity(b), float(low), float(high)


def mean_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of a minus that of b, with its 95 % interval as `difference`."""
    low, high = np.percentile(_drawn(np.subtract, a, b), [2.5, 97.5])
    return float(np.mean(a) - np.mean(b)), float(low), float(high)


def share_lost(rows: Mapping[str, Sequence[float]]) -> tuple[float, float, float]:
    """Return (recovered - control) / (pruned - dense) in perplexity, with its 95 % interval."""
    names = ("recovered", "control", "pruned", "dense")
    found = _share(*(np.array(sum(rows[n]) / len(rows[n])) for n in names))
    low, high = np.percentile(_drawn(_share, *(rows[n] for n in names)), [2.5, 97.5])
    return float(found), float(low), float(high)


def _share(recovered: Reals, control: Reals, pruned: Reals, dense: Reals) -> Reals:
    return (np.exp(recovered) - np.exp(control)) / (np.exp(pruned) - np.exp(dense))


def _drawn(figure: Callable[..., Reals], *rows: Sequence[float]) -> Reals:
    """Return the figure of many bootstrap draws of the windows, the same windows for every row."""
    table = np.array(rows)
    picks = np.random.default_rng(0).integers(0, table.shape[1], (_DRAWS, table.shape[1]))
    return figure(*(row[picks].mean(1) for row in table))
