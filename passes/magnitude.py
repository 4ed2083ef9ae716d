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
from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Candidate, Estimate, Pass
from compress.errors import BadSettings
from compress.facts import Facts
from passes import _masks, _pruned, _rules
from passes._masks import Rule, Scope
from passes._rules import PruneSettings


class MagnitudeSettings(PruneSettings):
    """Settings of magnitude pruning."""

    scope: Scope = Field("matrix", description="what the sparsity is of: each matrix, each output row, or all together")
    minimum_density: float = Field(
        0.05, ge=0, le=1, description="with scope 'global': the share of every linear that stays at least"
    )


def score(weight: Tensor) -> Tensor:
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
        return _rules.plan(facts, self.settings, self._rule)

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost: the model and the scores, with their selection, of one linear (or of all, globally)."""
        sizes = [math.prod(facts.shapes[n]) for n in _rules.of(facts, self.settings, self._rule)] or [0]
        scored = sum(sizes) if self.settings.scope == "global" else max(sizes)
        model, masks = 4 * facts.parameters, 0 if facts.stored else sum(sizes)
        return Estimate(
            peak_mib=(4 * tree.held(facts) + masks + 30 * scored) / 2**20,
            disk_mib=(model + sum(sizes) / 8) / 2**20,
            seconds=sum(sizes) / 2e7 + model / 1e9,
        )

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Make the masks where the weights are, and zero what they prune, block by block."""
        rules = _rules.of_artifact(artifact, self.settings, self._rule)
        if not rules:
            context.report.note(_rules.NOTHING)
            return artifact
        masks, old, made = artifact.new_masks(), artifact.masks, dict[str, Tensor]()
        if self.settings.scope == "global":
            made = self._rule().masks({n: score(artifact.tensor(f"{n}.weight")) for n in rules}, old)
        pruned = size = 0
        with context.report.bar("linears", len(rules)) as bar:
            for block in tree.blocks(artifact.model):
                names = [n for n in rules if n.startswith(f"{block}.")]
                with artifact.opened(block):
                    for name in names:
                        weight = artifact.model.get_parameter(f"{name}.weight")
                        mask = made.pop(name) if made else rules[name].masks({name: score(weight)}, old)[name]
                        _masks.apply_(weight, mask)
                        masks[name] = mask
                        pruned, size = pruned + int((~mask).sum()), size + mask.numel()
                        bar.advance()
        told = f"pruned {pruned / size:.2%} of {len(rules)} linears; "
        context.report.note(told + _pruned.share_of_model(artifact, masks))
        return artifact.after(masks=masks)

    def candidates(self, artifact: Artifact, context: Context) -> Sequence[Candidate]:
        """Return each linear, block or part (as `choose` says) pruned, and as it is."""
        rules = _rules.of_artifact(artifact, self.settings, self._rule)
        return _rules.candidates(artifact, self.settings, rules, lambda _, weight: score(weight), context)

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check the counts of every mask, the zeros under it, and that nothing else changed by a bit."""
        rules = _rules.of_artifact(after, self.settings, self._rule)
        _pruned.check_masked(after, rules)
        for rule, names in _rules.grouped(rules).items():
            for together in [names] if rule.scope == "global" else [[n] for n in names]:
                rule.check(before.masks, {n: after.masks[n] for n in together})
        _pruned.check_rest(before, after, rules)

    def _rule(self) -> Rule:
        given = self.settings
        if given.scope != "global" and "minimum_density" in given.model_fields_set:
            raise BadSettings(
                f"only with scope 'global', got scope {given.scope!r}; leave it out", key="minimum_density"
            )
        density = given.minimum_density if given.scope == "global" else 0.0
        return Rule.of(given, given.scope, density)
