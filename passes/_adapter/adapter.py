"""The module that holds what is trained, and how it starts, merges and splits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compress.errors import BrokenPromise, CompressError
from passes._adapter.expression import FORMS, linear, weight_of


class Adapter(nn.Module):
    """A linear under the weight expression; starts as exactly the linear it replaces.

    Its `weight` and `bias` are the linear's own parameters, so their names in the model stay; the names of all that is
    trained beside them begin with `lora_`.

    Args:
        layer: the linear; its parameters are taken over.
        mask: bool `[out, in]`, True = kept, or None when nothing is pruned.
        form: a key of `FORMS`.
        rank: rows of A; 0 = no low-rank part.
        scale: s.
        seed: of A.
        support: positions of S2 in the flat weight, int64 `[N]`, ascending; None = no S2.

    Raises:
        BrokenPromise: the weight is not zero where the mask prunes.
        CompressError: there is nothing to train, or the support is out of order or out of range.
    """

    mask: Tensor | None
    support: Tensor | None
    lora_a: nn.Parameter | None
    lora_b: nn.Parameter | None
    lora_s: nn.Parameter | None

    def __init__(
        self,
        layer: nn.Linear,
        mask: Tensor | None,
        *,
        form: str,
        rank: int,
        scale: float,
        seed: int,
        support: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not rank and support is None:
            raise CompressError("rank 0 without a support leaves nothing to train")
        if support is not None and not _ascends(support, layer.weight.numel()):
            raise CompressError("a support must be ascending positions within the flat weight")
        self.form, self.scale = FORMS[form], scale
        self.weight, self.bias = layer.weight, layer.bias
        device = layer.weight.device
        self.register_buffer("mask", None if mask is None else mask.to(device).contiguous(), persistent=False)
        self.register_buffer("support", None if support is None else support.to(device), persistent=False)
        if self.mask is not None and torch.any(layer.weight.detach()[~self.mask] != 0):
            raise BrokenPromise("the weight is not zero where its mask prunes")
        self.weight.requires_grad_(False)
        precision = torch.promote_types(layer.weight.dtype, torch.float32)
        self.lora_a = self.lora_b = self.lora_s = None
        if rank:
            a, b = initial(layer.out_features, layer.in_features, rank, seed, multiplicative=self.form.multiplicative)
            self.lora_a = nn.Parameter(a.to(device, precision))
            self.lora_b = nn.Parameter(b.to(device, precision))
        if support is not None:
            self.lora_s = nn.Parameter(torch.zeros(len(support), device=device, dtype=precision))
        self._merged = False

    def forward(self, x: Tensor) -> Tensor:
        """Return `x What^T + bias`."""
        mask = self.mask if self.form.trains_masked else None
        return linear(x, self.bias, self._expression, self.weight, mask, *self._trained())

    def prune_(self, mask: Tensor) -> None:
        """Take another mask, bool `[out, in]`, and set to +0 what it prunes of W; what is trained stays as it is."""
        self.mask = mask.to(self.weight.device).contiguous()
        with torch.no_grad():
            _cleared(self.weight, self.mask)

    def merged(self) -> Tensor:
        """Return the weight that `merge` leaves, in the precision of the trained tensors."""
        mask = self.mask if self.form.merges_masked else None
        with torch.no_grad():
            weight = self._expression(self.weight, mask, *self._trained())
            return weight if mask is None or self.form.outside else _cleared(weight, mask)

    def update(self) -> Tensor:
        """Return what the expression adds to W where nothing is masked, in the precision of the trained tensors."""
        with torch.no_grad():
            if self.form.multiplicative:
                return self._expression(self.weight, None, *self._trained()) - self.weight
            return self._expression(torch.zeros_like(self.weight), None, *self._trained())  # no digit of W's is lost

    def jump(self) -> tuple[float, float]:
        """Return the squared norms of the update's part that the merge drops, and of the whole update."""
        update = self.update()
        dropped = 0.0 if self.mask is None else float(update[~self.mask].square().sum())
        return dropped, float(update.square().sum())

    def merge(self) -> nn.Linear:
        """Return the plain linear with the update in its weight.

        Raises:
            CompressError: it is merged already.
        """
        return self._plain(self.merged())

    def split(self) -> tuple[nn.Linear, Tensor, Tensor]:
        """Return the plain linear `M * (W + s S2)`, and A `[rank, in]` and s B `[out, rank]` to stand beside it.

        Raises:
            CompressError: it is merged already, or its form keeps no low-rank part outside the mask.
        """
        if not self.form.outside or self.lora_a is None or self.lora_b is None:
            raise CompressError("this adapter has no low-rank part outside its mask; merging it would do")
        with torch.no_grad():
            nothing = self.lora_b.new_zeros(self.lora_b.shape)
            weight = self._expression(self.weight, self.mask, self.lora_a, nothing, self.support, self.lora_s)
            plain = self._plain(weight if self.mask is None else _cleared(weight, self.mask))
        return plain, self.lora_a.detach().clone(), self.scale * self.lora_b.detach()

    def _plain(self, weight: Tensor) -> nn.Linear:
        if self._merged:
            raise CompressError("this adapter is merged already; merging it again would add its update twice")
        self._merged = True
        with torch.no_grad():
            self.weight.copy_(weight)
        return plain(self.weight, self.bias)

    def _trained(self) -> tuple[Tensor | None, ...]:
        return self.lora_a, self.lora_b, self.support, self.lora_s

    def _expression(self, weight: Tensor, mask: Tensor | None, *trained: Tensor | None) -> Tensor:
        return weight_of(weight, mask, *trained, form=self.form, scale=self.scale)


def plain(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return the plain linear that has these very parameters."""
    rows, inputs = weight.shape
    layer = nn.Linear(inputs, rows, device="meta")
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer


def _ascends(support: Tensor, size: int) -> bool:
    inside = support.ge(0).all() and support.lt(size).all()
    return support.dtype == torch.int64 and support.dim() == 1 and bool(inside and support.diff().gt(0).all())


def _cleared(weight: Tensor, mask: Tensor) -> Tensor:
    """Set to +0 what the mask prunes, for -0 is no pruned weight's bits."""
    return weight.masked_fill_(~mask, 0)


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
