"""GKD: train all of a changed model at once towards its dense parent, hidden states and outputs.

Formula: with h_i what block i gives for a token, p the outputs' distribution, and ' the parent's:

    L = cosine * sum over i of mean(1 - cos(h_i, h'_i)) + kl * T^2 KL(p'_T || p_T) + lm * (the task's own loss)

p_T being the softmax of logits / T.  Values are compared by their squared difference, embeddings by theirs as a share
of the parent's square.  Blocks are matched by their places, one that is absent gives what it got; where whole blocks
are gone only the last ones are matched.  All parameters are trained, zeros under a mask stay.

Paper: Bercovich et al. 2024, Puzzle: Distillation-Based NAS for Inference-Optimized LLMs (arXiv 2411.19146), section on
global knowledge distillation: cosine and KL together, without the language modeling loss, kept most there.

Cost: full training, and a forward of the parent for every batch; beside the model its gradients, AdamW's two moments,
and the parent.  `processes` train data-parallel, each on batches of its own (`accelerate launch` starts them);
`sharding = "fsdp"` leaves each a share of both models and of all that training holds.
Keeps: shapes, masks and every zero under them, ties; with `exclude`, these linears bit for bit.
Helps: after blocks were replaced or cut, above all when each was trained by itself: only here do they learn together.
The demo model, with half or three quarters of its neurons and one attention gone, was 0.354 nats a token away from its
parent on held-out text; 60 steps of 8 windows of 128 tokens left 0.186 at lr 1e-3, 0.201 at 3e-4 and 0.236 at 1e-4.
Hurts: few or foreign data: the model is pulled towards the parent on these alone, and forgets others; `held_out` guards
against it on like data only.  `lm` makes it fit the text, not the parent: the held-out KL may rise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate, Pass
from compress.errors import BadSettings
from compress.facts import Facts
from passes import _keeping
from passes._train import ALONE, Team, cost, count_whole, launch_, whole_names
from passes.gkd.distil import distil_
from passes.gkd.settings import GkdSettings


class Gkd(Pass):
    """Distil the dense parent into the model as it is now."""

    Settings = GkdSettings
    uses = frozenset[DataUse]({"training"})
    settings: GkdSettings

    def plan(self, facts: Facts) -> Facts:
        """Return the facts of the trained model; shapes and masks stay.

        Raises:
            BadSettings: nothing of the parent counts, a temperature or a loss that the task has not, patterns that
                choose nothing, or sharding for one process.
        """
        given = self.settings
        if not given.cosine and not given.kl:
            what = "must not be 0 when cosine is, for nothing would be learnt of the parent, got 0"
            raise BadSettings(f"{what}; 'recover' trains without one", key="kl")
        if given.temperature != 1 and facts.task in ("regression", "embedding"):
            what = f"softens the logits of classes, and task {facts.task!r} has none, got {given.temperature:g}"
            raise BadSettings(f"{what}; leave it out", key="temperature")
        if given.lm and facts.task == "embedding":
            raise BadSettings(f"an embedding model has no loss of its own, got {given.lm:g}; leave it out", key="lm")
        given.check_team()
        self._chosen(facts.shapes)
        return facts.after(trained=True)

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost: that of training, the parent and its forwards; data-parallel, memory for each process."""
        given = self.settings
        training = cost(facts, given, count_whole(facts, self._chosen(facts.shapes)))
        copies = given.processes if given.sharding == "none" else 1
        saved = 8 * facts.parameters / 2**20 if given.processes > 1 else 0
        return replace(
            training,
            peak_mib=copies * (training.peak_mib + 4 * facts.parameters / 2**20),
            disk_mib=training.disk_mib + saved,
            seconds=training.seconds * 4 / 3,
        )

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Train in this process, or in several that this one starts."""
        model, names = artifact.model, self._names(artifact)
        trained = sum(p.numel() for n, p in model.named_parameters() if n in names)
        context.report.note(f"trains {trained:,} of {model.num_parameters():,} parameters")
        if self.settings.processes > 1:
            launch_("gkd", self.settings, artifact, context)
        else:
            self.train_(artifact, context, ALONE)
        return artifact

    def train_(self, artifact: Artifact, context: Context, team: Team) -> None:
        """Train as one of a team."""
        distil_(artifact, self._names(artifact), self.settings, context, team)

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check the masks, every zero under them, and that what is not trained kept its bits."""
        _keeping.check(before, after, self._names(before))

    def _chosen(self, linears: Iterable[str]) -> list[str]:
        return tree.select(list(linears), self.settings.include, self.settings.exclude)

    def _names(self, artifact: Artifact) -> set[str]:
        return set(whole_names(artifact.model, self._chosen(tree.block_linears(artifact.model))))
