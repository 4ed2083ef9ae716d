"""What every pass that quantizes is: it plans grids, and promises them and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Pass
from compress.errors import BadModel
from compress.facts import Facts, GridFact
from compress.grid import Grid
from passes._quant import checking, telling
from passes._quant.plan import planned
from passes._quant.settings import QuantSettings


class Quantizer(Pass):
    """Turn the weights of linears into codes, beside those that are codes already."""

    quantized = True
    settings: QuantSettings

    def plan(self, facts: Facts) -> Facts:
        """Return the facts with the grids to come.

        Raises:
            BadSettings: a grid does not fit its linear or contradicts itself, or a linear has codes already.
        """
        return facts.after(grids={**facts.grids, **planned(facts, self.settings)})

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check grids, weights, masks, and that nothing else changed."""
        checking.check(before, after, self.grids(after))

    def grids(self, artifact: Artifact) -> dict[str, GridFact]:
        """Return the grid that each linear gets, or got."""
        return planned(tree.facts(artifact.model, artifact.task), self.settings)

    def tell(self, artifact: Artifact, context: Context) -> None:
        """Report what was quantized, in bytes."""
        facts = tree.facts(artifact.model, artifact.task)
        found = planned(facts, self.settings)
        width = tree.block_linears(artifact.model)[next(iter(found))].weight.element_size()
        for line in telling.told(found, facts.shapes, width):
            context.report.note(line)


def finite(name: str, linear: nn.Linear) -> None:
    """Raise `BadModel` unless every weight is a number."""
    if not bool(linear.weight.isfinite().all()):
        raise BadModel(f"{name}: holds weights that are NaN or infinite, which no code stands for; mend the model")


def put_(linear: nn.Linear, made: Grid) -> None:
    """Give a linear the weights that its codes stand for."""
    with torch.no_grad():
        linear.weight.copy_(made.dequantized())
