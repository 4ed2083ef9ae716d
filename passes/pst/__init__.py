"""PST: prune while training, by scores of low rank beside the magnitude; only small factors are trained.

Formula: W' = W + beta U V;  S = |W'| + alpha1 A B + alpha2 (R + C);  What = M * W', M = 1 where S is highest: in each
matrix, or of every M neighbours along the inputs the N highest.  M follows S by the straight-through rule dM/dS = 1:
with g = dL/dWhat and P = g * W',

    dA = alpha1 P B^T    dB = alpha1 A^T P    dR = alpha2 P 1    dC = alpha2 P^T 1
    dW' = g * M + g * |W'|    dU = beta dW' V^T    dV = beta U^T dW'

(`detach_magnitude` drops the g * |W'|).  The sparsity rises along a cubic between `prune_warmup` and
`prune_cooldown`; towards N:M what N:M would prune goes first, lowest scores first, so that the groups fill up smoothly.
Merged to M * W': plain sparse linears, nothing else at inference.

Paper: Li et al. 2022, Parameter-Efficient Sparsity for Large Language Models Fine-Tuning (arXiv 2205.11005).

Cost: (rank + score_rank + 1) (out + in) trained parameters a linear, their moments, a byte a weight for its mask; time
of full training and a selection of all masks every `refresh` steps, 25 ns a weight on one core: 2 s at 85 M weights.
`refresh = 1` is the paper's; masks hardly move in 4 steps.  Fused linears (GPT-2's q, k and v) are one matrix here.
Trained: U, V, A, B, R, C, and the classifier of a task model; its pooler and a language model's head are not.
Keeps: masks and zeros of before, which count; biases, norms, embeddings and weights of other linears bit for bit.
Helps: fine-tuning and pruning in one go, where a score that sees the task beats the magnitude: at high sparsity, and
where inputs differ much in size.
Hurts: few steps at moderate sparsity: scores need steps to move, and `perp` under a fixed mask of magnitude does as
well.  `init_std = 1` with `beta = 1`, the paper's code, lets U V outgrow small weights in a few steps of a common
learning rate, so the spread here is small.  R and C move whole rows and columns at once and, at a high learning rate,
outweigh the magnitude: lower `score_lr`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate, Pass
from compress.errors import BadSettings
from compress.facts import Facts
from passes import _adapter, _keeping
from passes._masks import Rule, sparsity_of
from passes._train import cost, heads_of
from passes.pst.settings import PstSettings
from passes.pst.train import run_


class Pst(Pass):
    """Prune by trained scores while training an update of low rank."""

    Settings = PstSettings
    uses = frozenset[DataUse]({"training"})
    settings: PstSettings

    def plan(self, facts: Facts) -> Facts:
        """Return the facts of the trained model with the masks to come.

        Raises:
            BadSettings: an embedding model, a rank above a linear's own, a schedule that does not fit into the steps
                or falls, patterns that choose nothing, or masks that cannot be.
        """
        given, rule = self.settings, Rule.of(self.settings)
        if facts.task == "embedding":
            raise BadSettings("an embedding model has no loss of its own to train scores with; 'magnitude' would do")
        if given.initial_sparsity > rule.sparsity:
            what = f"must be <= {rule.sparsity:g}, the final sparsity, got {given.initial_sparsity:g}"
            raise BadSettings(f"{what}; masks only grow on the way", key="initial_sparsity")
        if given.prune_warmup + given.prune_cooldown > 1:
            what = f"must be <= {1 - given.prune_warmup:g}, what prune_warmup leaves, got {given.prune_cooldown:g}"
            raise BadSettings(f"{what}; lower one of them", key="prune_cooldown")
        names = self._chosen(facts)
        _adapter.check_plain(facts, names)
        for name in names:
            for key in ("rank", "score_rank"):
                if (rank := getattr(given, key)) > min(facts.shapes[name]):
                    most = f"must be <= {min(facts.shapes[name])}, the rank of {name}"
                    raise BadSettings(f"{most}, got {rank}; lower it or exclude the linear", key=key)
        return rule.plan(facts, names).after(trained=True)

    def trainable(self, facts: Facts) -> int:
        """Return how many parameters are trained in the linears: (rank + score_rank + 1) (out + in) each."""
        each = self.settings.rank + self.settings.score_rank + 1
        return sum(each * sum(facts.shapes[n]) for n in self._chosen(facts))

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost: that of training, and a selection of the masks every `refresh` steps."""
        given = self.settings
        sizes = [math.prod(facts.shapes[n]) for n in self._chosen(facts)]
        training = cost(facts, given, self.trainable(facts))
        return replace(
            training,
            peak_mib=training.peak_mib + (sum(sizes) + 30 * max(sizes)) / 2**20,
            disk_mib=training.disk_mib + sum(sizes) / 8 / 2**20,
            seconds=training.seconds + 3e-8 * sum(sizes) * given.steps / given.refresh,
        )

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Train, select, merge, and give the model back with nothing but plain linears in it."""
        facts = tree.facts(artifact.model, artifact.task)
        names = self._chosen(facts)
        self._tell(artifact, facts, context)
        made = run_(artifact, names, Rule.of(self.settings), self.settings, context)
        context.report.note(f"pruned {sparsity_of(made.values()):.2%} of {len(names)} linears")
        return artifact.after(masks={**artifact.masks, **made})

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check the counts of every mask, the zeros under it, and that what is not trained kept its bits."""
        chosen = self._chosen(tree.facts(after.model, after.task))
        _keeping.check_pruned(Rule.of(self.settings), before, after, chosen)
        _keeping.check_rest(before, after, {*(f"{n}.weight" for n in chosen), *heads_of(before)})

    def _chosen(self, facts: Facts) -> list[str]:
        return tree.select(list(facts.shapes), self.settings.include, self.settings.exclude)

    def _tell(self, artifact: Artifact, facts: Facts, context: Context) -> None:
        """Note and record what is trained, of the model and beside movement pruning, which the paper compares with."""
        sizes = dict(artifact.model.named_parameters())
        trained = self.trainable(facts)
        scored = sum(math.prod(facts.shapes[n]) for n in self._chosen(facts))
        head = sum(sizes[n].numel() for n in heads_of(artifact))
        of_model, of_movement = (trained + head) / facts.parameters, trained / (facts.parameters + scored)
        context.report.note(
            f"trains {trained:,} parameters of the linears and {head:,} of the head, {of_model:.3%} of the model's "
            f"{facts.parameters:,}; without the head, {of_movement:.3%} of what movement pruning trains (the paper's "
            "way of counting: every parameter and a score for every pruned weight)"
        )
        context.report.record("trainable", trained + head)
        context.report.record("trainable_share", {"of_model": of_model, "of_movement_pruning": of_movement})
