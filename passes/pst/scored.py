"""The formula: the weight under its score, the straight-through gradient, and the linear that computes with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from passes import _adapter
from passes._masks import Pattern, Rule
from passes.pst.settings import PstSettings


def updated(weight: Tensor, u: Tensor, v: Tensor, beta: float) -> Tensor:
    """Return W + beta U V `[out, in]` in the precision of U `[out, rank]` and V `[rank, in]`."""
    return torch.addmm(weight.to(u.dtype), u, v, alpha=beta)


def score(weight: Tensor, a: Tensor, b: Tensor, r: Tensor, c: Tensor, *, alpha1: float, alpha2: float) -> Tensor:
    """Return S = |W'| + alpha1 A B + alpha2 (R + C) `[out, in]`.

    Args:
        weight: W', the updated weight.
        a: A `[out, score_rank]`.
        b: B `[score_rank, in]`.
        r: R `[out]`, of whole rows.
        c: C `[in]`, of whole columns.
        alpha1: factor of the low-rank part.
        alpha2: factor of the row and column parts.
    """
    found = torch.addmm(weight.abs(), a, b, alpha=alpha1)
    return found.add_(r.unsqueeze(1), alpha=alpha2).add_(c, alpha=alpha2)


def masks_at(rule: Rule, sparsity: float, scores: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks at a sparsity on the way to the rule's own, each within the old one where there is one.

    On the way to N:M the lowest scores go first among those that N:M itself would prune now, wherever they lie, so
    that the pattern is approached from within and is complete at the rule's sparsity.
    """
    if sparsity >= rule.sparsity or rule.pattern.group:
        final = rule.masks(scores, old)
        if sparsity >= rule.sparsity:
            return final
        scores = {n: s.masked_fill(final[n], torch.inf) for n, s in scores.items()}
    return Rule(pattern=Pattern(), sparsity=sparsity).masks(scores, old)


class _Masked(torch.autograd.Function):
    """M * W' with dM/dS taken as 1: the score feels g W', the weight g M and, through its magnitude, g |W'|.

    Gradients are written out (the equations of the module `passes.pst`), so that the score itself is never needed.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, mask: Tensor, u: Tensor, v: Tensor, a: Tensor, b: Tensor, r: Tensor, c: Tensor,
        settings: PstSettings,
    ) -> Tensor:  # fmt: skip
        dense = updated(weight, u, v, settings.beta)
        ctx.save_for_backward(dense, mask, u, v, a, b)
        ctx.settings = settings
        return dense * mask.view(torch.uint8)  # bytes multiply 6 times faster than bools

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dense, mask, u, v, a, b = ctx.saved_tensors
        given: PstSettings = ctx.settings
        signal = grad * dense
        inner = grad * mask.view(torch.uint8)
        if not given.detach_magnitude:
            inner.addcmul_(grad, dense.abs())
        return (
            None,
            None,
            given.beta * (inner @ v.t()),
            given.beta * (u.t() @ inner),
            given.alpha1 * (signal @ b.t()),
            given.alpha1 * (a.t() @ signal),
            given.alpha2 * signal.sum(1),
            given.alpha2 * signal.sum(0),
            None,
        )


class Scored(nn.Module):
    """A linear whose weight is M * (W + beta U V); starts as the linear under its mask.

    Its `weight` and `bias` are the linear's own parameters, so their names in the model stay.  The mask is what it was
    last set to; nothing here selects it, so that it stands still in evaluation.

    Args:
        layer: the linear; its parameters are taken over.
        mask: bool `[out, in]`, True = kept, or None when nothing is pruned.
        settings: ranks, factors and the initial spread.
        seed: of U and A.
    """

    mask: Tensor

    def __init__(self, layer: nn.Linear, mask: Tensor | None, settings: PstSettings, seed: int) -> None:
        super().__init__()
        self.settings = settings
        self.weight, self.bias = layer.weight, layer.bias
        self.weight.requires_grad_(False)
        device, (out, inputs) = layer.weight.device, layer.weight.shape
        kept = torch.ones(out, inputs, dtype=torch.bool) if mask is None else mask
        self.register_buffer("mask", kept.to(device), persistent=False)
        random = torch.Generator().manual_seed(seed)
        precision = torch.promote_types(layer.weight.dtype, torch.float32)

        def normal(*shape: int) -> nn.Parameter:
            drawn = torch.empty(shape).normal_(0, settings.init_std, generator=random)
            return nn.Parameter(drawn.to(device, precision))

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=device, dtype=precision))

        self.pst_u, self.pst_v = normal(out, settings.rank), zeros(settings.rank, inputs)
        self.pst_a, self.pst_b = normal(out, settings.score_rank), zeros(settings.score_rank, inputs)
        self.pst_r, self.pst_c = zeros(out), zeros(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x What^T + bias`."""
        return _adapter.linear(x, self.bias, self._expression, self.weight, self.mask, *self._trained())

    @torch.no_grad()
    def score(self) -> Tensor:
        """Return S as it is now."""
        given = self.settings
        dense = updated(self.weight, self.pst_u, self.pst_v, given.beta)
        trained = self.pst_a, self.pst_b, self.pst_r, self.pst_c
        return score(dense, *trained, alpha1=given.alpha1, alpha2=given.alpha2)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """Return the weight that stays, in the precision of the trained tensors."""
        merged = self._expression(self.weight, self.mask, *self._trained())
        return merged.masked_fill_(~self.mask, 0)  # -0 is no pruned weight's bits

    def _trained(self) -> tuple[Tensor, ...]:
        return self.pst_u, self.pst_v, self.pst_a, self.pst_b, self.pst_r, self.pst_c

    def _expression(self, weight: Tensor, mask: Tensor, *trained: Tensor) -> Tensor:
        return _Masked.apply(weight, mask, *trained, self.settings)  # type: ignore[no-any-return, no-untyped-call]
