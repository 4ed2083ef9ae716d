"""AWQ: before they are rounded, weights that read large inputs are made larger, and what they read smaller.

Formula: of every pair of a module and the linears that read it, channel j is divided by s_j and column j of the weights
multiplied, and `W' = Q(W diag(s))` with `s = x^r / (w^(1-r) + 1e-4)`, normalised by the root of its largest times its
smallest.  x is the root of the mean square of a channel (the paper's is the mean size, which ranks channels alike), w
the mean of its weights as shares of the largest of their group.  Of r = 0, 0.05 ... 0.95 and no scale at all the one is
taken that loses least: `tr(E H E^T) / tr(W H W^T)`, `E = Q(W diag(s)) diag(s)^-1 - W`, H the mean of x x^T, summed over
the pair's linears.  That is what their outputs lose, exactly, without a forward; what attention or FFN then make of it
is not looked at.  The division is folded into what comes before: a norm; the values' rows, where query heads of one key
head share s; the rows of a gated FFN's `up`.  With `clip` the steps of every group are then narrowed as long as it
loses less of `e^T H_gg e`, also in linears that are in no pair.  All linears that read the same keep what is best on
held-out windows of: rounding, narrower steps, scales, both.

Paper: Lin et al. 2023, AWQ (arXiv 2306.00978).

Cost: two forwards of the calibration windows, block by block, `in^2` products a token, 21 times `out * in^2` for the
scales of a linear and some 80 passes over its weight for its steps.
Keeps: masks (a zero is the code of 0), embeddings, head, and linears that get no codes: of what one of these is in or
reads, nothing is scaled.
Helps: where few channels are far larger than the rest; the result is plain codes, and no weight makes up for another,
so that little calibration does.
Hurts: where channels are alike scales bring little, and narrower steps nearly all (demo model, 3 bits in groups of 64,
distance to dense in nats a token: 0.255 rounded, 0.241 with scales, 0.140 with narrower steps, 0.137 with both); where
norms come after the residual (BERT) hardly anything can be scaled; below 4 bits `gptq` loses far less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Estimate
from compress.facts import Facts, GridFact
from compress.grid import Grid
from passes import _layerwise, _quant
from passes._folding import Pair, fold_, pairs, pairs_in
from passes._layerwise import Journal, Layer, LayerwiseSettings
from passes._quant import DYNAMIC, QuantSettings, Walking
from passes.awq.attempt import Attempt, attempts
from passes.awq.checking import check
from passes.awq.scales import POINTS

_SEARCH = 80  # passes over a weight


class AwqSettings(QuantSettings):
    """Settings of AWQ."""

    activation: Literal["none", "dynamic"] = Field("none", description=DYNAMIC)
    clip: bool = Field(True, description="whether steps are narrowed where clipping the largest weights costs less")
    batch: int = Field(8, ge=1, description="calibration windows at once")


class Awq(Walking):
    """Scale, then round."""

    Settings = AwqSettings
    settings: AwqSettings

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost of the walk and of the searches."""
        planned = _quant.planned(facts, self.settings)
        scaled = {name for pair in pairs(facts, planned) for name in pair.after}
        sizes = {n: (rows * inputs, inputs) for n, (rows, inputs) in facts.shapes.items() if n in planned}
        work = sum(size * inputs * (POINTS + 1) for n, (size, inputs) in sizes.items() if n in scaled)
        work += sum(size for size, _ in sizes.values()) * _SEARCH * 100 * self.settings.clip
        kept = _quant.kept(facts, planned)
        cost = _layerwise.cost(facts, planned, self._walk, gram=True, work=work, kept=kept)
        return _quant.with_choice(cost, facts, self.settings)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Quantize block by block."""
        return self.walked(artifact, self._walk, context)

    def change_(
        self, layers: Sequence[Layer], planned: Mapping[str, GridFact], artifact: Artifact, journal: Journal
    ) -> dict[str, Grid]:
        """Find all scales of a block, on inputs as they are, and then change it."""
        found = {frozenset(pair.after): pair for pair in pairs_in(artifact, planned)}
        made, scales = dict[str, Grid](), list[tuple[Pair, Tensor]]()
        for _, group in groupby(layers, key=lambda layer: id(layer.inputs)):
            together = list(group)
            names = [layer.name for layer in together]
            pair = found.get(frozenset(names))
            chosen = self._chosen(together, pair, planned, journal)
            made |= zip(names, chosen.grids, strict=True)
            if pair is not None and chosen.scale is not None:
                scales.append((pair, chosen.scale))
        for pair, scale in scales:
            fold_(artifact.model, pair, scale)
            if pair.linear:
                made[pair.before] = _divided(made[pair.before], pair.first, scale)
        for layer in layers:
            _quant.put_(layer.linear, made[layer.name])
        return made

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check grids, weights, masks, that pairs alone changed beside them, and codes against the scales of norms."""
        super().ensures(before, after)
        check(before, after, pairs_in(after, self.grids(after)))

    def changes(self, artifact: Artifact) -> Collection[str]:
        """Return the names of what scales are folded into, and of branches that read it."""
        found = pairs_in(artifact, self.grids(artifact))
        divided, multiplied = {pair.before for pair in found}, {f"{name}.a" for pair in found for name in pair.after}
        names = artifact.tensor_names()
        return {name for name in names if name.rpartition(".")[0] in divided or name in multiplied}

    @property
    def _walk(self) -> LayerwiseSettings:
        return LayerwiseSettings(batch=self.settings.batch)  # all of a block before anything in it changes

    def _chosen(
        self, layers: Sequence[Layer], pair: Pair | None, planned: Mapping[str, GridFact], journal: Journal
    ) -> Attempt:
        """Return the best attempt at linears that read the same."""
        for layer in layers:
            journal.begin(layer.name)
            _quant.finite(layer.name, layer.linear)
        with torch.no_grad():
            gram, facts = layers[0].inputs.gram, [planned[layer.name] for layer in layers]
            assert gram is not None
            weights = [layer.linear.weight.detach().float() for layer in layers]
            found = list(attempts(weights, facts, gram, pair, clip=self.settings.clip))
            return found[journal.choose_together(layers, [(each.what, each.weights()) for each in found])]


def _divided(grid: Grid, first: int, scale: Tensor) -> Grid:
    """Return the grid of a weight whose rows from one on are divided by a scale: the same codes."""
    rows = torch.cat([scale.new_ones(first), scale])
    return dataclasses.replace(grid, scale=grid.scale / rows.unsqueeze(1))
