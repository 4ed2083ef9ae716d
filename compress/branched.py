"""A linear with a low-rank branch beside its weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Branch:
    """A low-rank path beside a linear: it adds `x a^T b^T`.

    Attributes:
        a: float [rank, in].
        b: float [out, rank].
    """

    a: Tensor
    b: Tensor


class Branched(nn.Linear):
    """A linear with a branch: `x W^T + bias + x a^T b^T`; `weight` and `bias` are what a plain linear has.

    Args:
        linear: gives its weight and bias, the very tensors.
        branch: its tensors become parameters of the linear's type and device.

    Raises:
        ValueError: the branch does not fit the linear.
    """

    def __init__(self, linear: nn.Linear, branch: Branch) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight = linear.weight
        rank = branch.a.shape[0]
        if branch.a.shape != (rank, weight.shape[1]) or branch.b.shape != (weight.shape[0], rank):
            shapes = f"{list(branch.a.shape)} and {list(branch.b.shape)}"
            raise ValueError(f"a branch of {shapes} does not fit a linear {list(weight.shape)}")
        self.weight, self.bias = weight, linear.bias
        self.a = nn.Parameter(branch.a.detach().to(weight), requires_grad=weight.requires_grad)
        self.b = nn.Parameter(branch.b.detach().to(weight), requires_grad=weight.requires_grad)

    @property
    def rank(self) -> int:
        """The branch's inner width."""
        return self.a.shape[0]

    def forward(self, input: Tensor) -> Tensor:
        """Return float [..., out] for float [..., in]."""
        return super().forward(input) + nn.functional.linear(nn.functional.linear(input, self.a), self.b)
