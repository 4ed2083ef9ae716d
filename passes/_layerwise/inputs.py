"""What the linears of a block read, gathered over the calibration windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Inputs:
    """What one or several linears of a block read; those that read the very same tensor share one object.

    Attributes:
        gram: float32 [in, in], the mean over tokens (padding left out) of x x^T on the calibration windows; None when
            only `square` was asked for.
        square: float32 [in], the mean over tokens of x^2.
        held_out: float32 [tokens, in], tokens <= in, rows read on held-out windows: for checking.
        cross: with reference "dense", float32 [in, in]: C[i, j] is the mean over tokens of x_dense[i] * x[j].
        held_out_dense: with reference "dense", float32 [tokens, in], what the unchanged model's linear reads for the
            tokens of `held_out`.
    """

    gram: Tensor | None
    square: Tensor
    held_out: Tensor
    cross: Tensor | None = None
    held_out_dense: Tensor | None = None


@dataclass
class Layer:
    """One linear of the opened block: its full name, the module with real weights, and what it reads."""

    name: str
    linear: nn.Linear
    inputs: Inputs


def error(layer: Layer, weight: Tensor) -> float:
    """Return how far another weight's outputs on held-out rows are from what they should be, as a share of its energy.

    |X W^T - T|^2 / |T|^2 with the target T = X W_old^T, or X_dense W_old^T where a dense reference was gathered, and
    W_old the layer's weight as it is: so this is asked before the layer is changed.

    Args:
        layer: with its old weight.
        weight: float [out, in], the new one.
    """
    given = layer.inputs
    with torch.no_grad():
        reads = given.held_out if given.held_out_dense is None else given.held_out_dense
        target = reads @ layer.linear.weight.float().t()
        missed = given.held_out @ weight.float().t() - target
        return float(missed.square().sum() / target.square().sum().clamp(min=1e-30))


class Sums:
    """The running means over tokens from which `Inputs` are made.

    Args:
        gram: whether products between inputs are gathered, or squares alone.
        rows: which of all held-out tokens (padding left out) are kept, int64, ascending.
    """

    def __init__(self, gram: bool, rows: Tensor) -> None:
        self._gram, self._rows, self._tokens, self._held_tokens = gram, rows, 0, 0
        self._means: dict[str, Tensor] = {}
        self._held: list[tuple[Tensor, ...]] = []

    def add(self, x: Tensor, dense: Tensor | None) -> None:
        """Add what was read, [tokens, in], and what the dense model reads for the same tokens."""
        x, dense = x.float(), None if dense is None else dense.float()
        before, self._tokens = self._tokens, self._tokens + len(x)
        keep, new = before / self._tokens, 1 / self._tokens
        if self._gram:
            self._mean("gram", x, x.shape[1]).addmm_(x.t(), x, beta=keep, alpha=new)
        else:
            self._mean("square", x).mul_(keep).add_(x.square().sum(0), alpha=new)
        if dense is not None:
            self._mean("cross", x, x.shape[1]).addmm_(dense.t(), x, beta=keep, alpha=new)

    def hold_out(self, x: Tensor, dense: Tensor | None) -> None:
        """Keep the wanted ones of held-out rows, [tokens, in]."""
        at = self._rows - self._held_tokens
        self._held_tokens += len(x)
        at = at[(at >= 0) & (at < len(x))].to(x.device)
        self._held.append(tuple(read[at].float() for read in (x, dense) if read is not None))

    def inputs(self) -> Inputs:
        """Return the means and the rows."""
        gram = self._means.get("gram")
        held = [torch.cat(parts) for parts in zip(*self._held, strict=True)]
        return Inputs(
            gram=gram,
            square=gram.diagonal().clone() if gram is not None else self._means["square"],
            held_out=held[0],
            cross=self._means.get("cross"),
            held_out_dense=held[1] if len(held) > 1 else None,
        )

    def _mean(self, name: str, x: Tensor, *rows: int) -> Tensor:
        if name not in self._means:
            self._means[name] = x.new_zeros(*rows, x.shape[1])
        return self._means[name]
