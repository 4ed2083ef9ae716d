"""The rounded weight and its gradients, a tile of output rows at a time, so that nothing of the weight's size is made.

    Wc = M * (W0 + alpha B A)     merged first, in float32 at least
    w  = Wc / s - beta            in steps; beta is the offset b in steps, b = beta s
    wt = round(clamp(w, low, high))
    Wq = wt s + b                 the weight that the linear computes with

Rounding passes gradients straight through.  With G = dL/dWq and I = (low <= w <= high), sums over a group (L4Q, arXiv
2402.04902, section 3.2; the masks' factor is ours):

    dL/ds = sum G (wt - I w)      at a fixed b, w being low or high where it is clipped
    dL/db = sum G (1 - I)
    dL/dA = alpha B^T (M I G)     dL/dB = alpha (M I G) A^T     dL/dx = dL/dy Wq

and dL/dW0 = M I G, which is of the weight's size and made only where W0 takes gradients.

With borders that stay, w = Wc / s0 - beta counts in widths s0 that are not trained, and Wq = (wt + beta) s as before.
Then dL/ds = sum G (wt + beta) at a fixed beta, and s / s0 multiplies what A, B and W0 get.  Without borders wt = w.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from compress.grid import bounds, groups
from passes._adapter import precision_of

TILE = 2**20  # weights that are rounded at once: 14 MiB of temporaries; much fewer make the products slow
_NARROWEST, _WIDEST = 2.0**-20, 2.0**60  # of steps, so that none vanishes in float16, nor any overflows


def widths(log_steps: Tensor) -> Tensor:
    """Return the widths of steps from what is trained, their logarithms: above 0, whatever these are."""
    return log_steps.exp().clamp(_NARROWEST, _WIDEST)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fixed:
    """What of a rounded weight is not trained end to end.

    Attributes:
        weight: W0 `[out, in]`; it may take gradients.
        mask: M, bool `[out, in]`, True = kept; None keeps everything.
        zero: int8 `[out, groups]`, the code that stands for 0; None = 0 everywhere.
        bits: of a code.
        group_size: inputs that share a step; None = a whole row.
        alpha: the factor of B A.
        gain: the factor of the steps' gradients.
        counted: s0 `[out, groups]`, where borders between codes stay; None = they move with the steps.
        rounds: whether there are any borders.
        tile: how many weights are rounded at once, in whole rows.
    """

    weight: Tensor
    mask: Tensor | None
    zero: Tensor | None
    bits: int
    group_size: int | None
    alpha: float
    gain: float = 1.0
    counted: Tensor | None = None
    rounds: bool = True
    tile: int = TILE

    def rows(self) -> Iterator[slice]:
        """Yield the tiles."""
        out, inputs = self.weight.shape
        many = max(self.tile // max(inputs, 1), 1)
        return (slice(at, min(at + many, out)) for at in range(0, out, many))

    def range_of(self, rows: slice) -> tuple[Any, Any]:
        """Return the lowest and the highest count of steps from 0, numbers or `[rows, groups, 1]`."""
        low, high = bounds(self.bits) if self.rounds else (-math.inf, math.inf)
        if self.zero is None:
            return float(low), float(high)
        zero = self.zero[rows].unsqueeze(-1).float()
        return low - zero, high - zero


@dataclass(frozen=True, eq=False)
class Trained:
    """What of a rounded weight is trained: A, B, the logarithms of the steps, and the offsets in steps or None."""

    a: Tensor
    b: Tensor
    log_steps: Tensor
    beta: Tensor | None


def counts(fixed: Fixed, trained: Trained, rows: slice) -> Tensor:
    """Return wt, the counts of steps from 0, float `[rows, groups, size]`; a shorter last group ends in zeros."""
    low, high = fixed.range_of(rows)
    found = _scaled(fixed, trained, rows).clamp_(low, high)
    return found.round_() if fixed.rounds else found


def stretched_(fixed: Fixed, trained: Trained, rows: slice, counted: Tensor) -> Tensor:
    """Turn counts of steps into Wq, `[rows, in]`, as `Grid.dequantized` does."""
    steps = widths(trained.log_steps[rows]).unsqueeze(-1)
    found = counted.mul_(steps)
    if trained.beta is not None:
        found.add_(trained.beta[rows].unsqueeze(-1) * steps)
    return flat(fixed, found)


def linear(x: Tensor, fixed: Fixed, trained: Trained) -> Tensor:
    """Return `x Wq^T` in the precision of the autocast or else of x; for the backward x alone is kept."""
    given = (trained.a, trained.b, trained.log_steps, trained.beta)
    latent = fixed.weight if fixed.weight.requires_grad else None
    return _Rounded.apply(x, latent, precision_of(x), fixed, *given)  # type: ignore[no-any-return, no-untyped-call]


class _Rounded(torch.autograd.Function):
    """A linear whose rounded weight is made tile by tile, and once more in the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, latent: Tensor | None, dtype: torch.dtype, fixed: Fixed, *given: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, *given)
        ctx.fixed, ctx.dtype = fixed, dtype
        trained = Trained(*given)  # type: ignore[arg-type]
        read = x.reshape(-1, x.shape[-1]).to(dtype)
        made = read.new_empty(len(read), len(fixed.weight))
        with torch.autocast(x.device.type, enabled=False):
            for rows in fixed.rows():
                weight = stretched_(fixed, trained, rows, counts(fixed, trained, rows))
                torch.mm(read, weight.to(dtype).t(), out=made[:, rows])
        return made.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *given = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            grads = _Gradients(ctx.fixed, Trained(*given), x, grad, ctx.dtype, *ctx.needs_input_grad[:2])
            for rows in ctx.fixed.rows():
                grads.add_(rows)
        return grads.x, grads.weight, None, None, *grads.trained()


class _Gradients:
    """The gradients of one backward, gathered over the tiles."""

    def __init__(
        self, fixed: Fixed, trained: Trained, x: Tensor, grad: Tensor, dtype: torch.dtype, *wants: bool
    ) -> None:
        self.fixed, self.given, self.dtype = fixed, trained, dtype
        wants_x, wants_weight = wants
        self._shape, self._kind = x.shape, x.dtype
        self._read = x.reshape(-1, x.shape[-1]).to(dtype)
        self._grad = grad.reshape(-1, grad.shape[-1]).to(dtype)
        exact = torch.promote_types(dtype, torch.float32)  # sums over tiles keep their digits in half precision
        self._x = torch.zeros_like(self._read, dtype=exact) if wants_x else None
        self.weight = torch.empty_like(fixed.weight) if wants_weight else None
        self._a, self._b = torch.zeros_like(trained.a), torch.empty_like(trained.b)
        self._steps = torch.empty_like(trained.log_steps)
        self._beta = None if trained.beta is None else torch.empty_like(trained.beta)

    @property
    def x(self) -> Tensor | None:
        """The gradient of what the linear read."""
        return None if self._x is None else self._x.to(self._kind).view(self._shape)

    def trained(self) -> tuple[Tensor | None, ...]:
        """Return those of A, B, the logarithms of the steps, and the offsets in steps."""
        steps, gain = widths(self.given.log_steps), self.fixed.gain
        if self._beta is not None:
            self._beta.mul_(steps)
        return self._a, self._b, self._steps.mul_(steps).mul_(gain), self._beta

    def add_(self, rows: slice) -> None:
        """Take a tile in."""
        fixed, given = self.fixed, self.given
        beta = None if given.beta is None else given.beta[rows].unsqueeze(-1)
        counted = _scaled(fixed, given, rows)
        low, high = fixed.range_of(rows)
        rounded = counted.clamp(low, high)
        inside = (rounded == counted).view(torch.uint8)
        if fixed.rounds:
            rounded.round_()
        outer = (self._grad[:, rows].t() @ self._read).to(given.a.dtype)
        grad = _grouped(outer, fixed)
        self._steps[rows] = _lever(fixed, counted, beta, inside, rounded).mul_(grad).sum(-1)
        if self._beta is not None:
            self._beta[rows] = torch.mul(grad, 1 - inside, out=counted).sum(-1)
        del counted
        grad.mul_(inside)
        if fixed.counted is not None:
            grad.mul_((widths(given.log_steps[rows]) / fixed.counted[rows]).unsqueeze(-1))
        update = flat(fixed, grad)
        if fixed.mask is not None:
            update = update.mul_(fixed.mask[rows].view(torch.uint8))
        if self.weight is not None:
            self.weight[rows] = update
        self._a.addmm_(given.b[rows].t(), update, alpha=fixed.alpha)
        self._b[rows] = fixed.alpha * (update @ given.a.t())
        if self._x is not None:
            weight = stretched_(fixed, given, rows, rounded).to(self.dtype)
            if self._x.dtype == self.dtype:
                self._x.addmm_(self._grad[:, rows], weight)
            else:
                self._x += self._grad[:, rows] @ weight


def _scaled(fixed: Fixed, trained: Trained, rows: slice) -> Tensor:
    """Return w of some rows, `[rows, groups, size]`."""
    a, b = trained.a, trained.b[rows]
    whole = torch.addmm(fixed.weight[rows].to(a.dtype), b, a, alpha=fixed.alpha)
    if fixed.mask is not None:
        whole.mul_(fixed.mask[rows].view(torch.uint8))  # bytes multiply 6 times faster than bools
    steps = widths(trained.log_steps[rows]) if fixed.counted is None else fixed.counted[rows]
    found = _grouped(whole, fixed).div_(steps.unsqueeze(-1))
    return found if trained.beta is None else found.sub_(trained.beta[rows].unsqueeze(-1))


def _lever(fixed: Fixed, counted: Tensor, beta: Tensor | None, inside: Tensor, rounded: Tensor) -> Tensor:
    """Return by how much each rounded weight grows with its step, at a fixed beta, in the memory of w."""
    if fixed.counted is not None:
        found = counted.copy_(rounded)
    else:
        found = (counted if beta is None else counted.add_(beta)).mul_(inside).neg_().add_(rounded)
    return found if beta is None else found.add_(beta)


def _grouped(tile: Tensor, fixed: Fixed) -> Tensor:
    """Return a tile by groups, the last one filled up with zeros where it is shorter; else the same memory."""
    inputs, size = tile.shape[1], fixed.group_size
    count = groups(inputs, size)
    missing = count * size - inputs if size else 0
    return (functional.pad(tile, (0, missing)) if missing else tile).view(len(tile), count, -1)


def flat(fixed: Fixed, grouped: Tensor) -> Tensor:
    """Return rows by groups as rows, without what filled up the last group."""
    return grouped.flatten(1)[:, : fixed.weight.shape[1]]
