"""SmoothQuant: move the outliers of what linears read into their weights; nothing is quantized yet.

Formula: of every pair of a module and the linears that read it, channel j of what is read is divided by
`s_j = max|X_j|^a / max|W_j|^(1-a)`, and column j of the weights multiplied, with a the `strength`, the maxima over all
calibration tokens, and over all rows of all weights that read the channel.  A channel in which either is 0 stays.  The
division is folded into what comes before: a norm's weights; the values' rows, where query heads of one key head share
s; the rows of a gated FFN's `up`.  Where norms come after the residual (BERT), values are all there is to fold into.

Paper: Xiao et al. 2023, SmoothQuant (arXiv 2211.10438).

Cost: two forwards of the calibration windows, block by block.
Keeps: the function, up to rounding; masks, embeddings, head, and linears that are excluded: a pair is left alone unless
all its linears are chosen.
Helps: before a pass that has linears read integers (`rtn` or `gptq` with `bits = 8` and `activation = "dynamic"` or
"static"), where few channels are far larger than the rest and so spoil the step that all share.
Hurts: weights take over what inputs lose, so that the fewer bits they get, the less it pays; models without outliers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate, Pass, PassSettings
from compress.errors import BadModel, BadSettings
from compress.facts import Facts
from passes import _quant
from passes._folding import Pair, check, fold_, pairs, pairs_in
from passes._layerwise import Layer, LayerwiseSettings, cost, walk_


class SmoothQuantSettings(PassSettings):
    """Settings of SmoothQuant."""

    strength: float = Field(0.5, ge=0, le=1, description="how much of the inputs' range goes into the weights")
    batch: int = Field(8, ge=1, description="calibration windows at once")


def scale(peak: Tensor, weights: Sequence[Tensor], pair: Pair, strength: float) -> Tensor:
    """Return what each channel is divided by, float32 [channels], above 0.

    Args:
        peak: float [in], the largest |x| of every input.
        weights: float [out, in] each, of all that read them.
        pair: what they are of.
        strength: the paper's alpha.
    """
    largest = torch.stack([w.abs().amax(0).float() for w in weights]).amax(0)
    x, w = (pair.gathered(values).amax(1) for values in (peak, largest))
    found = x**strength / w ** (1 - strength)
    return found.masked_fill((x == 0) | (w == 0), 1)


class SmoothQuant(Pass):
    """Fold scales of inputs into weights."""

    Settings = SmoothQuantSettings
    uses = frozenset[DataUse]({"calibration"})
    streams = True
    settings: SmoothQuantSettings

    def plan(self, facts: Facts) -> Facts:
        """Return the facts as they are.

        Raises:
            BadSettings: the patterns choose nothing, or no pair whole.
        """
        if not pairs(facts, self._chosen(facts.shapes)):
            key = "exclude" if self.settings.exclude else "include"
            raise BadSettings("leaves no linear together with all that its scales would change; choose more", key=key)
        return facts

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost of a walk that looks and folds."""
        return cost(facts, _readers(pairs(facts, self._chosen(facts.shapes))), self._walk, gram=False)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Fold block by block."""
        found = self._pairs(artifact)
        if not found:
            raise BadModel(
                "what the chosen linears read comes from nothing that scales fold into; choose other linears"
            )

        def change_(layers: Sequence[Layer]) -> dict[str, Tensor]:
            inside = {layer.name: layer for layer in layers}
            for pair in found:
                if pair.after[0] in inside:
                    fold_(artifact.model, pair, self._scale(pair, [inside[n] for n in pair.after]))
            return {}

        names = _readers(found)
        walk_(artifact, names, self._walk, context, change_, gram=False)
        context.report.note(f"{len(names)} linears read scaled inputs now, in {len(found)} pairs; all are floats still")
        return artifact

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check that linears and norms of pairs alone changed, and that they still give what they gave."""
        found = self._pairs(after)
        modules = {name for pair in found for name in (pair.before, *pair.after)}
        changes = {name for name in after.tensor_names() if name.rpartition(".")[0] in modules}
        _quant.check(before, after, {}, changes)
        check(before, after, found)

    @property
    def _walk(self) -> LayerwiseSettings:
        return LayerwiseSettings(batch=self.settings.batch)

    def _scale(self, pair: Pair, layers: Sequence[Layer]) -> Tensor:
        peak = layers[0].inputs.peak
        assert peak is not None
        return scale(peak, [layer.linear.weight.detach() for layer in layers], pair, self.settings.strength)

    def _pairs(self, artifact: Artifact) -> list[Pair]:
        return pairs_in(artifact, self._chosen(tree.block_linears(artifact.model)))

    def _chosen(self, names: Iterable[str]) -> list[str]:
        return tree.select(list(names), self.settings.include, self.settings.exclude)


def _readers(found: Iterable[Pair]) -> list[str]:
    return [name for pair in found for name in pair.after]
