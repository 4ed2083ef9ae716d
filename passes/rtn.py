"""Rounding to nearest: every weight becomes the nearest code of its group's grid; no data, no training.

Formula: `q = round(clamp(W / s))`, half to even, `W' = s q`, one scale s for each group of neighbours along the inputs.
`steps = "span"` takes the narrowest s that clips nothing, `max(|min W / lowest code|, |max W / highest code|)`;
`"search"` the s of least squared error of the group, found between the span and a share of it and polished by least
squares.  With `symmetric = false` each group has a code of its own that stands for 0, and its range need not be even.
`format = "fp8"` rounds W / s to a float of 8 bits (E4M3: to 448, with 3 bits after the first) at `s = max |W| / 448`.

Papers: Nagel et al. 2021, A White Paper on Neural Network Quantization (arXiv 2106.08295); the span of a grid with one
code more below 0 than above as in L4Q (arXiv 2402.04902); E4M3 as in Micikevicius et al. 2022 (arXiv 2209.05433).

Option: `average_bits` gives each linear bits of its own, chosen exactly from what each choice costs by itself on a few
calibration windows.

Cost: a pass over the weights, some 80 with the search (with zeros three times that); no data.  With `average_bits` also
half a forward of the windows for each linear and choice; with `activation = "static"` two forwards of them.
Keeps: masks (a zero is code 0, or the group's own zero), biases, norms, embeddings and head.
Helps: at 8 bits by whole rows next to nothing is lost, and with `activation = "dynamic"` linears read integers too, or
with "static" codes whose steps calibration windows give, block after quantized block, for TensorRT's tensor cores and
onnxruntime's integer kernels; at 4 bits in groups of 32 to 128 it is the baseline.  fp8 takes the room of 8 bits, and
its steps are fine near 0: for rows with a few large weights, and GPUs of compute capability 8.9 or later; only the
export to TensorRT takes it.
Hurts: at 3 and 2 bits, where `gptq` with calibration data loses a fraction of it; static steps where a few inputs are
far larger than the rest, unless `smoothquant` came before.  fp8 steps are coarse for rows whose weights are about as
large as each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate
from compress.errors import BadSettings
from compress.facts import Facts, Format, GridFact
from compress.grid import Grid
from passes import _layerwise, _quant
from passes._layerwise import Journal, Layer, LayerwiseSettings
from passes._quant import StaticSettings, Steps, Walking


class RtnSettings(StaticSettings):
    """Settings of rounding to nearest."""

    steps: Literal["span", "search"] = Field(
        "span", description="of a group: the narrowest that clip nothing, or those of least squared error"
    )
    format: Format = Field(
        "int", description="what a code is: an integer, or with bits = 8 a float (E4M3), which TensorRT multiplies by"
    )

    @property
    def codes(self) -> Format:
        """What codes are."""
        return self.format


class Rtn(Walking):
    """Round to nearest; only steps of inputs take a walk with calibration windows."""

    Settings = RtnSettings
    settings: RtnSettings

    def data_uses(self) -> frozenset[DataUse]:
        """Return that calibration data are read where bits are chosen, or inputs get steps."""
        chosen = self.settings.average_bits is not None or self.settings.activation == "static"
        return self.uses if chosen else frozenset()

    def plan(self, facts: Facts) -> Facts:
        """Return the facts with the grids to come; as every quantizer, and floats have no steps to search.

        Raises:
            BadSettings: as `Quantizer.plan`, or steps of floats are to be searched.
        """
        if self.settings.format == "fp8" and self.settings.steps == "search":
            raise BadSettings("integers alone have steps to search, got 'search'; leave it 'span'", key="steps")
        return super().plan(facts)

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost: the model, and one linear at a time; or that of a walk."""
        planned = _quant.planned(facts, self.settings)
        if self.settings.activation == "static":
            kept = _quant.kept(facts, planned)
            return _layerwise.cost(facts, planned, LayerwiseSettings(), gram=False, kept=kept)
        cost = _quant.cost(facts, planned, searched=self.settings.steps == "search")
        return _quant.with_choice(cost, facts, self.settings)

    def steps(self, weight: Tensor, fact: GridFact) -> Steps:
        """Return the steps of a weight's grid."""
        return (_quant.search if self.settings.steps == "search" else _quant.span)(weight, fact)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Round where the weights are, block by block."""
        if self.settings.activation == "static":
            return self.walked(artifact, LayerwiseSettings(), context, gram=False)
        planned, grids = self.resolved(artifact, context), artifact.new_grids()
        linears = tree.block_linears(artifact.model)
        with context.report.bar("linears", len(planned)) as bar:
            for block in tree.blocks(artifact.model):
                names = [n for n in planned if n.startswith(f"{block}.")]
                with artifact.opened(block):
                    for name in names:
                        made = self._rounded(name, linears[name], planned[name])
                        _quant.put_(linears[name], made)
                        grids[name] = made.to(torch.device("cpu"))
                        bar.advance()
        self.tell(artifact, context, planned)
        return artifact.after(grids=grids)

    def change_(
        self, layers: Sequence[Layer], planned: Mapping[str, GridFact], artifact: Artifact, journal: Journal
    ) -> dict[str, Grid]:
        """Round them, whatever they read."""
        made = {layer.name: self._rounded(layer.name, layer.linear, planned[layer.name]) for layer in layers}
        for layer in layers:
            journal.begin(layer.name)
            journal.choose(layer, [("rounding to nearest", made[layer.name].dequantized())])
            _quant.put_(layer.linear, made[layer.name])
        return made

    def _rounded(self, name: str, linear: nn.Linear, fact: GridFact) -> Grid:
        _quant.finite(name, linear)
        weight = linear.weight.detach()
        return _quant.grid(weight, self.steps(weight, fact), fact)
