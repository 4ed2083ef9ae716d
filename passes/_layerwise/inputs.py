"""What the linears of a block read, gathered over the calibration windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

SIZE_BITS = 18  # of a float32's 31 below the sign, which do not count for its size: 5 of the mantissa's do
_SIZES = 2 ** (31 - SIZE_BITS)


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
        peak: float32 [in], the largest |x|; None only where no walk gathered it.
        sizes: int64 [sizes], how many |x| are of each size, as numbers of float32 whose last `SIZE_BITS` bits are left
            out, so that sizes ascend by 2 to 3 %; None unless asked for.
    """

    gram: Tensor | None
    square: Tensor
    held_out: Tensor
    cross: Tensor | None = None
    held_out_dense: Tensor | None = None
    peak: Tensor | None = None
    sizes: Tensor | None = None


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
    """The running means and peaks over tokens from which `Inputs` are made.

    Args:
        layer: a linear that reads them.
        rows: which of all held-out tokens (padding left out) are kept, int64, ascending.
        gram: whether products between inputs are gathered, or squares alone.
        cross: whether their products with the dense model's inputs are gathered too.
        sizes: whether sizes are counted.
    """

    def __init__(self, layer: nn.Linear, rows: Tensor, *, gram: bool, cross: bool, sizes: bool = False) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=layer.weight.device)

        width = layer.in_features
        self._square, self._peak = zeros(width), zeros(width)
        self._gram = zeros(width, width) if gram else None
        self._cross = zeros(width, width) if cross else None
        self._sizes = zeros(_SIZES).long() if sizes else None
        self._tokens, self._rows, self._held_tokens = 0, rows.to(layer.weight.device), 0
        self._held: list[list[Tensor]] = []

    def add(self, x: Tensor, *dense: Tensor) -> None:
        """Add what was read, [tokens, in], and with `cross` what the dense model reads for the same tokens."""
        x, before = x.float(), self._tokens
        self._tokens += len(x)
        keep, new = before / max(self._tokens, 1), 1 / max(self._tokens, 1)
        if self._gram is not None:
            self._gram.addmm_(x.t(), x, beta=keep, alpha=new)
        self._square.mul_(keep).add_(x.square().sum(0), alpha=new)
        self._peak = torch.maximum(self._peak, x.abs().amax(0)) if len(x) else self._peak
        if self._cross is not None:
            self._cross.addmm_(dense[0].float().t(), x, beta=keep, alpha=new)
        if self._sizes is not None:
            self._sizes += torch.bincount(x.abs().view(torch.int32).flatten() >> SIZE_BITS, minlength=_SIZES)

    def hold_out(self, *read: Tensor) -> None:
        """Keep the wanted ones of held-out rows, [tokens, in] each, of the same tokens."""
        at = self._rows - self._held_tokens
        self._held_tokens += len(read[0])
        at = at[(at >= 0) & (at < len(read[0]))]
        self._held.append([x[at].float() for x in read])

    def inputs(self) -> Inputs:
        """Return the means, the peaks and the rows."""
        held_out, *dense = (torch.cat(parts) for parts in zip(*self._held, strict=True))
        return Inputs(
            gram=self._gram,
            square=self._square,
            held_out=held_out,
            cross=self._cross,
            held_out_dense=dense[0] if dense else None,
            peak=self._peak,
            sizes=self._sizes,
        )
