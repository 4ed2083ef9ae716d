"""Magnitude pruning: the weights of smallest absolute value become zero; no data, no training.

Formula: `score = |W|`, the lowest are pruned: per matrix, per output row, or over all chosen linears together
(`scope = "global"`, where every linear keeps at least `minimum_density`); or N of every M neighbours along the inputs
stay.  Counts are exact, ties go by position, an earlier mask is kept and counts towards the sparsity.

Papers: Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks (arXiv 1506.02626);
Zhu and Gupta 2017, To Prune, or Not to Prune (arXiv 1710.01878).

Cost: one selection per matrix, linear in its size, about 30 s per billion weights on one core; no data.  Scope
`global` holds the scores of all chosen linears at once, about 30 bytes a weight.
Keeps: every weight that stays, bit for bit; biases, norms, embeddings and head are not touched.
Helps: as the start of retraining (`perp`) up to moderate sparsity, and as the baseline any better score must beat.
Hurts: language models without retraining: activations have outlier channels that |W| does not see, and from 50 % on the
perplexity rises steeply, more so with 2:4; scope `global` starves whole layers unless a minimum density guards them.
Speed: no CPU runtime gains from such masks (onnxruntime computes zeros like any number); they buy compressed size, and
speed only where kernels for 2:4 exist (NVIDIA sparse tensor cores).
"""

from __future__ import annotations

import math

import torch
from pydantic import Field

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Estimate, Pass
from compress.errors import BadSettings
from compress.facts import Facts
from passes import _masks, _pruned
from passes._masks import MaskSettings, Rule, Scope


class MagnitudeSettings(MaskSettings):
    """Settings of magnitude pruning."""

    scope: Scope = Field("matrix", description="what the sparsity is of: each matrix, each output row, or all together")
    minimum_density: float = Field(
        0.05, ge=0, le=1, description="with scope 'global': the share of every linear that stays at least"
    )


def score(weight: torch.Tensor) -> torch.Tensor:
    """Return |W| as float32 `[out, in]`."""
    return weight.detach().abs().float()


class Magnitude(Pass):
    """Prune what is small."""

    Settings = MagnitudeSettings
    settings: MagnitudeSettings
    streams = True

    def plan(self, facts: Facts) -> Facts:
        """Return the facts with the masks to come.

        Raises:
            BadSettings: the patterns choose nothing, or no such mask can be made of the chosen linears.
        """
        return self._rule().plan(facts, self._chosen(list(facts.shapes)))

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost: the model and the scores, with their selection, of one linear (or of all, globally)."""
        sizes = [math.prod(facts.shapes[n]) for n in self._chosen(list(facts.shapes))]
        scored = sum(sizes) if self.settings.scope == "global" else max(sizes)
        model, masks = 4 * facts.parameters, 0 if facts.stored else sum(sizes)
        return Estimate(
            peak_mib=(4 * tree.held(facts) + masks + 30 * scored) / 2**20,
            disk_mib=(model + sum(sizes) / 8) / 2**20,
            seconds=sum(sizes) / 2e7 + model / 1e9,
        )

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Make the masks where the weights are, and zero what they prune, block by block."""
        chosen = self._chosen(list(tree.block_linears(artifact.model)))
        rule, masks, made = self._rule(), artifact.new_masks(), dict[str, torch.Tensor]()
        if rule.scope == "global":
            made = rule.masks({n: score(artifact.tensor(f"{n}.weight")) for n in chosen}, artifact.masks)
        pruned = size = 0
        with context.report.bar("linears", len(chosen)) as bar:
            for block in tree.blocks(artifact.model):
                names = [n for n in chosen if n.startswith(f"{block}.")]
                with artifact.opened(block):
                    for name in names:
                        weight = artifact.model.get_parameter(f"{name}.weight")
                        mask = made.pop(name) if made else rule.masks({name: score(weight)}, artifact.masks)[name]
                        _masks.apply_(weight, mask)
                        masks[name] = mask
                        pruned, size = pruned + int((~mask).sum()), size + mask.numel()
                        bar.advance()
        told = f"pruned {pruned / size:.2%} of {len(chosen)} linears; "
        context.report.note(told + _pruned.share_of_model(artifact, masks))
        return artifact.after(masks=masks)

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check the counts of every mask, the zeros under it, and that nothing else changed by a bit."""
        chosen, rule = self._chosen(list(tree.block_linears(after.model))), self._rule()
        _pruned.check_masked(after, chosen)
        for names in [chosen] if rule.scope == "global" else [[n] for n in chosen]:
            rule.check(before.masks, {n: after.masks[n] for n in names})
        _pruned.check_rest(before, after, chosen)

    def _chosen(self, names: list[str]) -> list[str]:
        return tree.select(names, self.settings.include, self.settings.exclude)

    def _rule(self) -> Rule:
        given = self.settings
        if given.scope != "global" and "minimum_density" in given.model_fields_set:
            raise BadSettings(
                f"only with scope 'global', got scope {given.scope!r}; leave it out", key="minimum_density"
            )
        density = given.minimum_density if given.scope == "global" else 0.0
        return Rule.of(given, given.scope, density)
