"""The expression itself: its forms, the weight that it gives, and a linear that computes it again in the backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Expression = Callable[..., Tensor]


@dataclass(frozen=True)
class Form:
    """The switches of one reparametrisation.

    Attributes:
        multiplicative: the low-rank part scales the weight instead of adding to it.
        trains_masked: the mask is part of the expression while it trains.
        merges_masked: the mask is part of what stays; False fills the zeros.
        outside: the low-rank part is added to what the mask leaves, and never masked itself.
    """

    multiplicative: bool = False
    trains_masked: bool = True
    merges_masked: bool = True
    outside: bool = False


FORMS: Mapping[str, Form] = {
    "mask_lora": Form(),
    "scale_lora": Form(multiplicative=True),
    "lora_prune": Form(trains_masked=False),
    "lora": Form(trains_masked=False, merges_masked=False),
    "branch": Form(outside=True),
}


def weight_of(
    weight: Tensor,
    mask: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    support: Tensor | None = None,
    values: Tensor | None = None,
    *,
    form: Form,
    scale: float,
) -> Tensor:
    """Return What `[out, in]` in the precision of what is trained.

    Args:
        weight: W, zero where the mask prunes.
        mask: M, bool; None keeps everything.
        a: A `[rank, in]`, or None without a low-rank part.
        b: B `[out, rank]`, or None.
        support: where S2 is not zero, int64 `[N]`, unique positions in the flat weight; None without S2.
        values: S2 there, `[N]`.
        form: which expression; whether the mask is in it is told by `mask` alone.
        scale: s; has no part in the multiplicative product.
    """
    trained = a if values is None else values
    assert trained is not None, "an expression with nothing to train"
    weight = weight.to(trained.dtype)
    if a is None or b is None or form.outside:
        found = weight.clone()
    elif form.multiplicative:
        found = (b @ a).mul_(weight)
    else:
        found = torch.addmm(weight, b, a, alpha=scale)
    if support is not None and values is not None:
        found = found.put_(support, scale * values, accumulate=True)
    if mask is not None:
        found = found.mul_(mask.view(torch.uint8))  # bytes multiply 6 times faster than bools
    return found if a is None or b is None or not form.outside else found.addmm_(b, a, alpha=scale)


def linear(x: Tensor, bias: Tensor | None, expression: Expression, *parts: Tensor | None) -> Tensor:
    """Return `x What^T + bias` with `What = expression(*parts)`, keeping x and the parts alone for the backward.

    The weight is computed in the precision of its parts, also under autocast, and the product in that of the autocast
    or else of x.
    """
    return _Recomputed.apply(x, bias, precision_of(x), expression, *parts)  # type: ignore[no-any-return, no-untyped-call]


def precision_of(x: Tensor) -> torch.dtype:
    """Return the precision in which x is multiplied: that of the autocast or else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _Recomputed(torch.autograd.Function):
    """A linear that forgets its weight and computes it again to take the gradient through the expression."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, dtype: torch.dtype, expression: Expression, *parts: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, *parts)
        ctx.expression, ctx.dtype, ctx.bias_dtype = expression, dtype, None if bias is None else bias.dtype
        with torch.autocast(x.device.type, enabled=False):
            weight = expression(*parts).to(dtype)
            return functional.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, needs_bias, _, _, *needs = ctx.needs_input_grad
        x, *parts = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            with torch.enable_grad():
                leaves = [p.detach().requires_grad_() if n else p for p, n in zip(parts, needs, strict=True)]
                weight = ctx.expression(*leaves)
            rows = grad.reshape(-1, grad.shape[-1])
            grad_x = (grad @ weight.detach().to(ctx.dtype)).to(x.dtype) if needs_x else None
            grad_bias = rows.sum(0, dtype=ctx.bias_dtype) if needs_bias else None
            grads: list[Tensor | None] = [None] * len(parts)
            if any(needs):
                inner = rows.t() @ x.reshape(-1, x.shape[-1]).to(ctx.dtype)
                wanted = [p for p, n in zip(leaves, needs, strict=True) if n]
                found = iter(torch.autograd.grad(weight, wanted, inner.to(weight.dtype)))
                grads = [next(found) if n else None for n in needs]
        return grad_x, grad_bias, None, None, *grads
