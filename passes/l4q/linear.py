"""The module that computes with the rounded weight, and what it leaves: a plain linear and its codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compress import tree
from compress.facts import GridFact
from compress.grid import Grid, bounds
from passes import _adapter
from passes._quant import Steps
from passes.l4q import expression
from passes.l4q.expression import Fixed, Trained, widths
from passes.l4q.settings import Borders


class Rounded(nn.Module):
    """A linear whose weight is rounded to its grid at every call, trained through rank, steps and offsets.

    Its `weight` and `bias` are the linear's own parameters; the names of all that is trained begin with `lora_`.

    Args:
        layer: the linear; its parameters are taken over.
        mask: bool `[out, in]`, True = kept, or None when nothing is pruned.
        fact: its grid.
        steps: the first ones.
        rank: rows of A.
        alpha: the factor of B A.
        seed: of A.
        scale_gradients: whether the steps' gradients are scaled as in LSQ.
        borders: whether those between codes move with the steps, stay where the first steps have them, or are none.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    mask: Tensor | None
    zero: Tensor | None
    counted: Tensor | None
    lora_offset: nn.Parameter | None

    def __init__(
        self,
        layer: nn.Linear,
        mask: Tensor | None,
        fact: GridFact,
        steps: Steps,
        *,
        rank: int,
        alpha: float,
        seed: int,
        scale_gradients: bool = False,
        borders: Borders = "move",
    ) -> None:
        super().__init__()
        self.fact, self.alpha = fact, alpha
        self.weight, self.bias = layer.weight, layer.bias  # type: ignore[assignment]
        self.weight.requires_grad_(False)
        self.dtype = layer.weight.dtype
        device = layer.weight.device
        precision = torch.promote_types(layer.weight.dtype, torch.float32)
        self.register_buffer("mask", None if mask is None else mask.to(device).contiguous(), persistent=False)
        self.register_buffer("zero", None if steps.zero is None else steps.zero.to(device), persistent=False)
        a, b = _adapter.initial(layer.out_features, layer.in_features, rank, seed, multiplicative=False)
        self.lora_a, self.lora_b = (nn.Parameter(t.to(device, precision)) for t in (a, b))
        self.lora_steps = nn.Parameter(_logarithm(steps.scale.to(device, precision)))
        first = None if borders == "move" else widths(self.lora_steps.detach())
        self.register_buffer("counted", first, persistent=False)
        self.rounds = borders != "none"
        self.lora_offset = nn.Parameter(torch.zeros_like(self.lora_steps)) if fact.offset else None
        size = fact.group_size or layer.in_features
        self.gain = 1 / math.sqrt(size * bounds(fact.bits)[1]) if scale_gradients else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return `x Wq^T + bias`."""
        made = expression.linear(x, self._fixed(), self._trained())
        return made if self.bias is None else made + self.bias.to(made.dtype)

    @torch.no_grad()
    def grid(self) -> Grid:
        """Return the grid whose weight is, to the last bit in float32, the one that `forward` computes with."""
        fixed, trained = self._fixed(), self._trained()
        codes = torch.empty_like(self.weight, dtype=torch.int8)
        for rows in fixed.rows():
            counted = expression.counts(fixed, trained, rows)
            if self.zero is not None:
                counted += self.zero[rows].unsqueeze(-1)
            codes[rows] = expression.flat(fixed, counted).to(torch.int8)
        steps = widths(self.lora_steps)
        return Grid(
            bits=self.fact.bits,
            group_size=self.fact.group_size,
            codes=codes,
            scale=steps.float(),
            zero=self.zero,
            offset=None if self.lora_offset is None else (self.lora_offset * steps).float(),
            activation=self.fact.activation,
        )

    @torch.no_grad()
    def stretched(self) -> Tensor:
        """Return the weight `[out, in]` that `forward` computes with."""
        fixed, trained = self._fixed(), self._trained()
        tiles = (expression.counts(fixed, trained, rows) for rows in fixed.rows())
        made = (expression.stretched_(fixed, trained, rows, t) for rows, t in zip(fixed.rows(), tiles, strict=True))
        return torch.cat(list(made))

    @torch.no_grad()
    def merge(self) -> tuple[nn.Linear, Grid | None]:
        """Return the plain linear with what the codes stand for in its weight, and the codes, if there are any."""
        grid = self.grid() if self.rounds else None
        self.weight.copy_(self.stretched() if grid is None else grid.dequantized())
        return _adapter.plain(self.weight, self.bias), grid

    def _fixed(self) -> Fixed:
        return Fixed(
            weight=self.weight,
            mask=self.mask,
            zero=self.zero,
            bits=self.fact.bits,
            group_size=self.fact.group_size,
            alpha=self.alpha,
            gain=self.gain,
            counted=self.counted,
            rounds=self.rounds,
        )

    def _trained(self) -> Trained:
        return Trained(self.lora_a, self.lora_b, self.lora_steps, self.lora_offset)


def merge_(model: nn.Module) -> dict[str, Grid]:
    """Turn every rounded linear below the module into a plain one and return the grids of those that have one."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, Rounded)}
    grids = {}
    for name, module in found.items():
        layer, grid = module.merge()
        tree.replace_(model, name, layer)
        if grid is not None:
            grids[name] = grid
    return grids


def _logarithm(steps: Tensor) -> Tensor:
    """Return logarithms whose `widths` are wider by some last digits, so that what clipped nothing clips nothing."""
    found = steps.log()
    digit = torch.finfo(found.dtype).eps
    wanted = steps * (1 + 4 * digit)  # a quotient by the steps themselves may be rounded beyond the last code
    hair = digit * found.abs().clamp(min=1)
    for _ in range(8):
        found = torch.where(widths(found) < wanted, found + hair, found)
    return found
