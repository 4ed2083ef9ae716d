"""A linear whose inputs are scaled: W diag(a) x + b, with a trained and 1 at the start."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Scaled(nn.Module):
    """A linear behind a trained scale of its inputs; its `weight` and `bias` are the linear's own parameters.

    Args:
        layer: the linear; its parameters are taken over.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        precision = torch.promote_types(layer.weight.dtype, torch.float32)
        self.scale = nn.Parameter(torch.ones(layer.in_features, device=layer.weight.device, dtype=precision))

    def forward(self, x: Tensor) -> Tensor:
        """Return `(x * a) W^T + bias`."""
        return functional.linear(x * self.scale, self.weight, self.bias)

    def merge(self) -> nn.Linear:
        """Return the plain linear with weight `W diag(a)`."""
        with torch.no_grad():
            self.weight.copy_(self.weight * self.scale)
        rows, inputs = self.weight.shape
        layer = nn.Linear(inputs, rows, device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer
