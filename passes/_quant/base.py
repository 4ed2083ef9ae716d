"""What every pass that quantizes is: it plans grids, and promises them and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from compress import known, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Candidate, Pass
from compress.errors import BadModel, BadSettings
from compress.facts import Facts, GridFact
from compress.grid import Grid
from passes._quant import checking, mixed, telling
from passes._quant.plan import planned
from passes._quant.rounding import Steps, span
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
        declared, mean = self.grids(after), self.settings.average_bits
        checking.check(before, after, declared, self.changes(after))
        if mean is not None:
            mixed.check(after, declared, mean)

    def changes(self, artifact: Artifact) -> Collection[str]:
        """Return the names of the parameters that may change beside the weights of what is quantized."""
        return ()

    def grids(self, artifact: Artifact) -> dict[str, GridFact]:
        """Return the grid that each linear gets, or got, with `others` where its bits are chosen by sensitivity."""
        return planned(known.told(artifact).after(grids={}), self.settings)

    def steps(self, weight: Tensor, fact: GridFact) -> Steps:
        """Return the steps of a weight's grid by which sensitivity is judged."""
        return span(weight, fact)

    def resolved(self, artifact: Artifact, context: Context) -> dict[str, GridFact]:
        """Return the grid that each linear is to get, bits chosen where they are open: what `run` begins with."""
        return mixed.resolved(artifact, self.settings, context, self.steps)

    def candidates(self, artifact: Artifact, context: Context) -> Sequence[Candidate]:
        """Return the choices of bits for each linear, block or part (as `choose` says), and it as it is.

        Raises:
            BadSettings: all bits are planned, or inputs are to be static, whose steps come with the whole model's.
        """
        if self.settings.activation == "static":
            what = "linears are judged one by one, and have no steps of inputs then, got 'static'"
            raise BadSettings(f"{what}; 'dynamic' would do", key="activation")
        return mixed.candidates(artifact, self.settings, context, self.steps)

    def tell(self, artifact: Artifact, context: Context, found: Mapping[str, GridFact]) -> None:
        """Report what was quantized, in bytes, or that a plan left nothing to quantize.

        Args:
            artifact: of before or after.
            context: with the report.
            found: the grids, as `resolved` returned them.
        """
        if not found:
            context.report.note("quantized nothing: all that is chosen is planned to stay in floats")
            return
        shapes = tree.facts(artifact.model, artifact.task).shapes
        width = tree.block_linears(artifact.model)[next(iter(found))].weight.element_size()
        for line in telling.told(found, shapes, width):
            context.report.note(line)


def finite(name: str, linear: nn.Linear) -> None:
    """Raise `BadModel` unless every weight is a number."""
    if not bool(linear.weight.isfinite().all()):
        raise BadModel(f"{name}: holds weights that are NaN or infinite, which no code stands for; mend the model")


def put_(linear: nn.Linear, made: Grid) -> None:
    """Give a linear the weights that its codes stand for."""
    with torch.no_grad():
        linear.weight.copy_(made.dequantized())
