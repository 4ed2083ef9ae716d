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
half a forward of the windows for each linear and choice.
Keeps: masks (a zero is code 0, or the group's own zero), biases, norms, embeddings and head.
Helps: at 8 bits by whole rows next to nothing is lost, and with `activation = "dynamic"` linears read integers too; at
4 bits in groups of 32 to 128 it is the baseline.  fp8 takes the room of 8 bits, and its steps are fine near 0: for rows
with a few large weights, and GPUs of compute capability 8.9 or later; only the export to TensorRT takes it.
Hurts: at 3 and 2 bits, where `gptq` with calibration data loses a fraction of it.  fp8 steps are coarse for rows whose
weights are about as large as each other.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate
from compress.errors import BadSettings
from compress.facts import Facts, Format, GridFact
from passes import _quant
from passes._quant import Quantizer, QuantSettings, Steps


class RtnSettings(QuantSettings):
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


class Rtn(Quantizer):
    """Round to nearest."""

    Settings = RtnSettings
    settings: RtnSettings
    uses = frozenset[DataUse]({"calibration"})
    streams = True

    def data_uses(self) -> frozenset[DataUse]:
        """Return that calibration data are read where bits are chosen."""
        return self.uses if self.settings.average_bits is not None else frozenset()

    def plan(self, facts: Facts) -> Facts:
        """Return the facts with the grids to come; as every quantizer, and floats have no steps to search.

        Raises:
            BadSettings: as `Quantizer.plan`, or steps of floats are to be searched.
        """
        if self.settings.format == "fp8" and self.settings.steps == "search":
            raise BadSettings("integers alone have steps to search, got 'search'; leave it 'span'", key="steps")
        return super().plan(facts)

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost: the model, and one linear at a time."""
        planned = _quant.planned(facts, self.settings)
        cost = _quant.cost(facts, planned, searched=self.settings.steps == "search")
        return _quant.with_choice(cost, facts, self.settings)

    def steps(self, weight: Tensor, fact: GridFact) -> Steps:
        """Return the steps of a weight's grid."""
        return (_quant.search if self.settings.steps == "search" else _quant.span)(weight, fact)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Round where the weights are, block by block."""
        planned, grids = self.resolved(artifact, context), artifact.new_grids()
        linears = tree.block_linears(artifact.model)
        with context.report.bar("linears", len(planned)) as bar:
            for block in tree.blocks(artifact.model):
                names = [n for n in planned if n.startswith(f"{block}.")]
                with artifact.opened(block):
                    for name in names:
                        _quant.finite(name, linears[name])
                        weight = linears[name].weight.detach()
                        made = _quant.grid(weight, self.steps(weight, planned[name]), planned[name])
                        _quant.put_(linears[name], made)
                        grids[name] = made.to(torch.device("cpu"))
                        bar.advance()
        self.tell(artifact, context, planned)
        return artifact.after(grids=grids)
