"""Training that others do for low bits, each as a weight expression in plain autograd, on the loop of our passes.

    lora        W + s B A                        arXiv 2106.09685
    qa-lora     Wq + s B A_groups, over a group  arXiv 2309.14717: merges into the groups' zeros, as offsets
    qat-lora    Q(W + s B A)                     steps from the weight's span every time, straight through the rounding

W `[out, in]` is frozen, A `[rank, in]` (or `[rank, groups]`) and B `[out, rank]` are trained from B = 0.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.peers._case import Grid as Asked
from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.facts import GridFact
from compress.grid import groups, spread
from passes import _adapter, _quant
from passes._train import Group, TrainSettings, frozen, loss_on, train_

NAMES = ("lora", "qa-lora", "qat-lora")
SCALE = 2.0  # of B A, as in our passes


class Lora(nn.Module):
    """`W + s B A`.

    Args:
        weight: W.
        inputs: columns of A.
        rank: rows of A.
        seed: of A.
    """

    def __init__(self, weight: Tensor, inputs: int, rank: int, seed: int) -> None:
        super().__init__()
        a, b = _adapter.initial(len(weight), inputs, rank, seed, multiplicative=False)
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight."""
        return weight + SCALE * (self.b @ self.a)


class GroupLora(Lora):
    """`Wq + s B A_groups`: one number for every group, so that a group's zero takes it up."""

    def __init__(self, weight: Tensor, rank: int, seed: int, group_size: int) -> None:
        super().__init__(weight, groups(weight.shape[1], group_size), rank, seed)
        self.group_size = group_size

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight."""
        return weight + spread(SCALE * (self.b @ self.a), weight.shape[1], self.group_size)


class RoundedLora(Lora):
    """`Q(W + s B A)`."""

    def __init__(self, weight: Tensor, rank: int, seed: int, fact: GridFact) -> None:
        super().__init__(weight, weight.shape[1], rank, seed)
        self.fact = fact

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight."""
        whole = super().forward(weight)
        steps = _quant.span(whole.detach(), self.fact)
        return whole + (_quant.grid(whole.detach(), steps, self.fact).dequantized() - whole.detach())


def fact_of(asked: Asked) -> GridFact:
    """Return the grid that is asked for."""
    return GridFact(bits=asked.bits, group_size=asked.group_size, zero=not asked.symmetric)


def expression(name: str, asked: Asked, rank: int) -> Callable[[Tensor, int], Lora]:
    """Return what makes the expression of a weight and a seed."""

    def make(weight: Tensor, seed: int) -> Lora:
        if name == "qa-lora":
            return GroupLora(weight, rank, seed, asked.group_size)
        if name == "qat-lora":
            return RoundedLora(weight, rank, seed, fact_of(asked))
        return Lora(weight, weight.shape[1], rank, seed)

    return make


def train(
    artifact: Artifact, make: Callable[[Tensor, int], Lora], settings: TrainSettings, context: Context
) -> Artifact:
    """Train the expressions of all block linears, and leave in the weights what they are at the end."""
    model, linears = artifact.model, tree.block_linears(artifact.model)
    with frozen(model, settings, context.device):
        parameters: dict[str, nn.Parameter] = {}
        for name, linear in linears.items():
            part = make(linear.weight, _adapter.seed_of(name, context.seed))
            parametrize.register_parametrization(linear, "weight", part)
            parameters |= {f"{name}.{n}": p for n, p in part.named_parameters()}
        train_([Group(parameters, settings.lr)], loss_on(artifact, settings, context), settings, context)
        for linear in linears.values():
            parametrize.remove_parametrizations(linear, "weight")
    return artifact.after(masks={}, grids={})
