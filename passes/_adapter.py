"""The weight expression: a linear whose weight is a function of frozen and trained tensors.

    What = M * (W + s B A)          additive: `mask_lora`; without M while it trains: `lora_prune`, `lora`
    What = W * (B A)                multiplicative: `scale_lora`

W `[out, in]` is frozen with its pruned entries at zero, M `[out, in]` is bool (True = kept), B `[out, rank]` and
A `[rank, in]` are trained, s is a number.  One pure function, `weight_of`, is the forward, the merge and, computed
again in the backward, the gradient; so merged equals unmerged, no tensor of the weight's size waits for the backward,
and a method that adds a term to the expression adds it in one place.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from compress import tree
from compress.errors import BrokenPromise, CompressError

Expression = Callable[..., Tensor]


@dataclass(frozen=True)
class Form:
    """The switches of one reparametrisation.

    Attributes:
        multiplicative: the update scales the weight instead of adding to it.
        trains_masked: the mask is part of the expression while it trains.
        merges_masked: the mask is part of what stays; False fills the zeros.
    """

    multiplicative: bool = False
    trains_masked: bool = True
    merges_masked: bool = True


FORMS: Mapping[str, Form] = {
    "mask_lora": Form(),
    "scale_lora": Form(multiplicative=True),
    "lora_prune": Form(trains_masked=False),
    "lora": Form(trains_masked=False, merges_masked=False),
}


def weight_of(
    weight: Tensor, mask: Tensor | None, a: Tensor, b: Tensor, *, scale: float, multiplicative: bool
) -> Tensor:
    """Return What `[out, in]` in the precision of A and B.

    Args:
        weight: W, zero where the mask prunes.
        mask: M, bool; None keeps everything.
        a: A `[rank, in]`.
        b: B `[out, rank]`.
        scale: s; has no part in the multiplicative form.
        multiplicative: `W * (B A)` instead of `W + s B A`.
    """
    weight = weight.to(a.dtype)
    updated = (b @ a).mul_(weight) if multiplicative else torch.addmm(weight, b, a, alpha=scale)
    return updated if mask is None else updated.mul_(mask.view(torch.uint8))  # bytes multiply 6 times faster than bools


def linear(x: Tensor, bias: Tensor | None, expression: Expression, *parts: Tensor | None) -> Tensor:
    """Return `x What^T + bias` with `What = expression(*parts)`, keeping x and the parts alone for the backward.

    The weight is computed in the precision of its parts, also under autocast, and the product in that of the autocast
    or else of x.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return _Recomputed.apply(x, bias, dtype, expression, *parts)  # type: ignore[no-any-return, no-untyped-call]


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


class Adapter(nn.Module):
    """A linear under the weight expression; starts as exactly the linear it replaces.

    Its `weight` and `bias` are the linear's own parameters, so their names in the model stay.

    Args:
        layer: the linear; its parameters are taken over.
        mask: bool `[out, in]`, True = kept, or None when nothing is pruned.
        form: a key of `FORMS`.
        rank: rows of A.
        scale: s.
        seed: of A.

    Raises:
        BrokenPromise: the weight is not zero where the mask prunes.
    """

    mask: Tensor | None

    def __init__(self, layer: nn.Linear, mask: Tensor | None, *, form: str, rank: int, scale: float, seed: int) -> None:
        super().__init__()
        self.form, self.scale = FORMS[form], scale
        self.weight, self.bias = layer.weight, layer.bias
        device = layer.weight.device
        self.register_buffer("mask", None if mask is None else mask.to(device).contiguous(), persistent=False)
        if self.mask is not None and torch.any(layer.weight.detach()[~self.mask] != 0):
            raise BrokenPromise("the weight is not zero where its mask prunes")
        self.weight.requires_grad_(False)
        precision = torch.promote_types(layer.weight.dtype, torch.float32)
        a, b = initial(layer.out_features, layer.in_features, rank, seed, multiplicative=self.form.multiplicative)
        self.lora_a = nn.Parameter(a.to(device, precision))
        self.lora_b = nn.Parameter(b.to(device, precision))
        self._merged = False

    def forward(self, x: Tensor) -> Tensor:
        """Return `x What^T + bias`."""
        mask = self.mask if self.form.trains_masked else None
        return linear(x, self.bias, self._expression, self.weight, mask, self.lora_a, self.lora_b)

    def merged(self) -> Tensor:
        """Return the weight that `merge` leaves, in the precision of the trained tensors."""
        mask = self.mask if self.form.merges_masked else None
        with torch.no_grad():
            weight = self._expression(self.weight, mask, self.lora_a, self.lora_b)
            return weight if mask is None else weight.masked_fill_(~mask, 0)  # -0 is no pruned weight's bits

    def jump(self) -> tuple[float, float]:
        """Return the squared norms of the update's part that the merge drops, and of the whole update."""
        with torch.no_grad():
            update = self._expression(self.weight, None, self.lora_a, self.lora_b) - self.weight
            dropped = 0.0 if self.mask is None else float(update[~self.mask].square().sum())
            return dropped, float(update.square().sum())

    def merge(self) -> nn.Linear:
        """Return the plain linear with the update in its weight.

        Raises:
            CompressError: it is merged already.
        """
        if self._merged:
            raise CompressError("this adapter is merged already; merging it again would add its update twice")
        self._merged = True
        with torch.no_grad():
            self.weight.copy_(self.merged())
        rows, inputs = self.weight.shape
        layer = nn.Linear(inputs, rows, device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer

    def _expression(self, weight: Tensor, mask: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        return weight_of(weight, mask, a, b, scale=self.scale, multiplicative=self.form.multiplicative)


def initial(out: int, inputs: int, rank: int, seed: int, *, multiplicative: bool) -> tuple[Tensor, Tensor]:
    """Return A `[rank, in]` and B `[out, rank]` that leave the weight as it is.

    Additive: A uniform in +-1/sqrt(in), B = 0.  Multiplicative: B A = 1 by the first component alone; the others have a
    random A of unit variance and B = 0, for components that start alike would get like gradients and stay one.
    """
    random = torch.Generator().manual_seed(seed)
    b = torch.zeros(out, rank)
    if not multiplicative:
        bound = 1 / math.sqrt(inputs)
        return torch.empty(rank, inputs).uniform_(-bound, bound, generator=random), b
    a = torch.randn(rank, inputs, generator=random)
    a[0] = 1
    b[:, 0] = 1
    return a, b


def attach_(
    model: nn.Module,
    names: Iterable[str],
    masks: Mapping[str, Tensor],
    *,
    form: str,
    rank: int,
    scale: float,
    seed: int,
) -> dict[str, Adapter]:
    """Put an adapter in the place of each named linear and return them by name; each has a seed of its own name."""
    adapters = {}
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise CompressError(f"{name}: a {type(layer).__name__} takes no adapter; only a linear does")
        own = (seed + zlib.crc32(name.encode())) % 2**63
        adapters[name] = Adapter(layer, masks.get(name), form=form, rank=rank, scale=scale, seed=own)
        tree.replace_(model, name, adapters[name])
    return adapters


def merge_(model: nn.Module) -> list[str]:
    """Turn every adapter below the module into a plain linear and return their names.

    Raises:
        CompressError: there is none, as after a merge.
    """
    adapters = {n: m for n, m in model.named_modules() if isinstance(m, Adapter)}
    if not adapters:
        raise CompressError("no adapter to merge: none was attached, or they are merged already")
    for name, adapter in adapters.items():
        tree.replace_(model, name, adapter.merge())
    return list(adapters)
