"""GPTQ: round column by column and let the columns to come make up for it; then refine codes and scales.

Formula: with H the mean of x x^T over calibration tokens, damped, and `C^T C = H^-1` (C upper triangular), columns j go
by descending diagonal of H: q is the nearest code of w_j, `e = (w_j - q) / C_jj`, then `w_k -= e C_jk` for all k to
come.  Groups and their scales belong to the columns where they stand, so that the order is nothing to an engine.
Scales are set before: those that lose least of `e^T H_gg e` when the group is rounded (`steps = "search"`).  Then codes
and scales move one at a time while the error of their row `(w - t) H (w - t)^T` falls.  With `reference = "dense"` t is
the weight that comes nearest to the dense model's outputs on the inputs of the quantized one, else the old weight.

Papers: Frantar et al. 2022, GPTQ (arXiv 2210.17323); the dense reference as GPTAQ (arXiv 2504.02692) aims; coordinate
descent after CDQuant (arXiv 2406.17542).

Cost: three forwards of the calibration windows, block by block (two with `reference = "quantized"`), `2 in^2` products
a token and linear, `in^3` for its inverse, `out * in^2` for its sweep and twice that for each cycle of refinement.
Keeps: masks (what they prune stays exactly 0), biases, norms, embeddings and head.
Helps: below 8 bits, the more the fewer.  On the demo model in groups of 128, KL to dense on windows of 128 tokens is
0.30 at 2 bits: 0.34 without refinement, 0.47 with the old weight as target too, 1.9 with steps that clip nothing.
At 3 bits it is 0.068, where the plain sweep has 0.118 and rounding to nearest 0.274.
Codes of 8 bits may come with steps of what linears read (`activation = "static"`), from the same walk.
Hurts: with few calibration windows the codes fit their text, as the held-out errors then tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Estimate
from compress.errors import BadSettings
from compress.facts import Facts, GridFact
from compress.grid import Grid
from passes import _layerwise, _obs, _quant
from passes._layerwise import Inputs, Journal, Layer
from passes._quant import Steps, Walking
from passes.gptq.levels import Ladder
from passes.gptq.refine import refine
from passes.gptq.settings import GptqSettings
from passes.gptq.sweep import sweep

_SEARCHED = 30  # times that a search weighs the errors of a group


@dataclass(frozen=True)
class Curvature:
    """What linears read, as a sweep needs it.

    Attributes:
        inputs: with products.
        order: of the columns.
        hessian: H, damped, `[in, in]`.
        upper: C of the columns in that order.
    """

    inputs: Inputs
    order: Tensor
    hessian: Tensor
    upper: Tensor

    def target(self, weight: Tensor) -> Tensor:
        """Return the weight that is aimed at."""
        given = self.inputs
        if given.cross is None or given.gram is None:
            return weight
        back, order = self.order.argsort(), self.order
        gram, cross = (m[order][:, order] for m in (given.gram, given.cross))
        return _obs.towards(weight[:, order], gram, cross, self.upper)[:, back]


class Gptq(Walking):
    """Round by columns, then refine."""

    Settings = GptqSettings
    settings: GptqSettings

    def plan(self, facts: Facts) -> Facts:
        """Return the facts with the grids to come.

        Raises:
            BadSettings: a grid does not fit its linear, a linear has codes already, or settings contradict each other.
        """
        if self.settings.refine == "none" and "refine_cycles" in self.settings.model_fields_set:
            what = f"only with refine 'codes' or 'steps', got {self.settings.refine_cycles}"
            raise BadSettings(f"{what}; leave it out", key="refine_cycles")
        return super().plan(facts)

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost of the walk, the sweep and the refinement."""
        planned, given = _quant.planned(facts, self.settings), self.settings
        shapes = [facts.shapes[n] for n in planned]
        cycles = 0 if given.refine == "none" else given.refine_cycles
        work: float = sum(i * i * (i + (2 + 2 * cycles) * o) for o, i in shapes)
        if given.steps == "search":
            work += _SEARCHED * sum(math.prod(facts.shapes[n]) * (f.group_size or 1) for n, f in planned.items())
        kept = _quant.kept(facts, planned)
        cost = _layerwise.cost(facts, planned, given, gram=True, work=work, kept=kept)
        return _quant.with_choice(cost, facts, given)

    def steps(self, weight: Tensor, fact: GridFact, importance: Tensor | None = None) -> Steps:
        """Return the steps of a weight's grid, found with the importance of its inputs' errors where there is one."""
        return _quant.span(weight, fact) if self.settings.steps == "span" else _quant.search(weight, fact, importance)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Quantize block by block."""
        return self.walked(artifact, self.settings, context)

    def change_(
        self, layers: Sequence[Layer], planned: Mapping[str, GridFact], artifact: Artifact, journal: Journal
    ) -> dict[str, Grid]:
        """Quantize those that read the same together."""
        made = dict[str, Grid]()
        for _, together in groupby(layers, key=lambda layer: id(layer.inputs)):
            made |= self._change_(list(together), planned, artifact, journal)
        return made

    def _change_(
        self, layers: Sequence[Layer], planned: Mapping[str, GridFact], artifact: Artifact, journal: Journal
    ) -> dict[str, Grid]:
        """Quantize linears that read the same."""
        names = [layer.name for layer in layers]
        for layer in layers:
            journal.begin(layer.name)
            _quant.finite(layer.name, layer.linear)
        inputs, together, made = layers[0].inputs, ", ".join(names), dict[str, Grid]()
        if not inputs.square.any():
            journal.note(names[0], f"{together}: nothing but zeros is read, so that weights are rounded to nearest")
        with torch.no_grad():
            curvature = self.curvature(inputs, lambda text: journal.note(names[0], f"{together}: {text}"))
            for layer in layers:
                mask = artifact.masks.get(layer.name)
                mask = None if mask is None else mask.to(layer.linear.weight.device)
                found = self.attempts(layer, planned[layer.name], curvature, mask)
                best = journal.choose(layer, [(what, grid.dequantized()) for what, grid in found])
                made[layer.name] = found[best][1]
                _quant.put_(layer.linear, made[layer.name])
        return made

    def attempts(
        self, layer: Layer, fact: GridFact, curvature: Curvature | None, mask: Tensor | None
    ) -> list[tuple[str, Grid]]:
        """Return what a linear may become: rounded to nearest, swept, refined; without curvature the first alone."""
        weight, given = layer.linear.weight.detach().float(), self.settings
        target = weight if curvature is None else curvature.target(weight)
        importance = layer.inputs.square
        if curvature is not None and fact.bits < 8:  # at 8 bits the best steps are near the span by any measure
            importance = curvature.hessian
        steps = self.steps(target if mask is None else target.masked_fill(~mask, 0), fact, importance)
        found = [("rounding to nearest", _quant.grid(weight, steps, fact))]
        if curvature is None:
            return found
        ladder = Ladder.of(steps, fact)
        levels = sweep(target, curvature.upper, curvature.order, ladder, mask)
        found.append(("the sweep", ladder.grid(levels)))
        if given.refine != "none":
            levels, ladder = refine(
                levels, ladder, target, curvature.hessian, mask,
                steps=given.refine == "steps", cycles=given.refine_cycles,
            )  # fmt: skip
            found.append(("refinement", ladder.grid(levels)))
        return found

    def curvature(self, inputs: Inputs, note: Callable[[str], None]) -> Curvature | None:
        """Return what linears read as a sweep needs it, or None where it cannot be inverted, which is noted."""
        assert inputs.gram is not None
        diagonal = inputs.gram.diagonal()
        order = torch.arange(len(diagonal), device=diagonal.device)
        if self.settings.order == "activation":
            order = diagonal.argsort(descending=True, stable=True)
        found = _obs.factored(inputs.gram[order][:, order], self.settings.damping, note)
        if found is None:
            note("what is read is too dependent to be inverted; rounded to nearest instead")
            return None
        back = order.argsort()
        return Curvature(inputs, order, found[0][back][:, back], found[1])
