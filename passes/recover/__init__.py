"""Recover: fine-tune a dense model, or retrain a pruned one so that every zero stays zero.

Formula: with W the weight, M its mask and W = M * W, what stays is one plain weight of the old shape:

    sparse_delta     W + S, S on the best K = share of the surviving weights of all chosen linears together: those of
                     largest sum of squared gradients over some batches (SPT), of largest |W|, or those that move most
                     in a full tuning of `steps` steps that is then taken back (LT-SFT)
    mask_lora        M * (W + s B A), s = alpha / rank (PERP)
    full             every weight that survives, and all outside the block linears
    hira             W * (1 + B A)
    scale_bias_norm  W diag(a); biases where linears have one; norms (LLaMA-Adapter V2)
    ia3              diag(l) W with its bias; of the linear that reads the neurons of an FFN W diag(l)
    ln_tuning        the norms
    lora             W + s B A, on dense linears alone
    adalora          W + s B diag(e) A, on dense linears alone: starts with 1.5 * rank, and sheds what the smoothed
                     |w dL/dw| finds least worth until `rank` are left on average

The classifier of a task model is trained with each of them.  New biases are not made: no stock architecture has them.

Papers: Ansell et al. 2021, arXiv 2110.07560 (LT-SFT); He et al. 2023, arXiv 2303.08566 (SPT); Zimmer et al. 2023, arXiv
2312.15230 (PERP); Gao et al. 2023, arXiv 2304.15010 (LLaMA-Adapter V2); Liu et al. 2022, arXiv 2205.05638 (IA3); Zhao
et al. 2023, arXiv 2312.11420 (norms); Zhang et al. 2023, arXiv 2303.10512 (AdaLoRA); Hu et al. 2021, arXiv 2106.09685
(LoRA).  HiRA, IA3, norm tuning and AdaLoRA are `peft`'s.

Cost: the time of full training, `lottery` twice that; optimizer memory of what is trained alone, but the search of a
sparse delta holds a score (`lottery` also gradients and moments) for every weight of the chosen linears.
Keeps: masks, every zero, tied embeddings unless `full`, all that is not trained bit for bit.  Dropout is off.
Helps: after pruning; `sparse_delta` comes near `full` with a fraction of its optimizer memory, `mask_lora` and `hira`
need less again, `ln_tuning` and `ia3` least, and regain least.
Where text still teaches, prune before the learning rate falls, not after: dense training with `schedule = "constant"`,
then the mask, then `full` under it comes out where the dense model does that was trained in as many steps.
Hurts: `full` at a learning rate that suits the others; every method on few data, against which `held_out` guards.
"""

from __future__ import annotations

import math

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate, Pass
from compress.errors import BrokenPromise
from compress.facts import Facts
from passes import _keeping, _pruned
from passes._train import classifier, cost
from passes.recover.chosen import Chosen, choose
from passes.recover.settings import RecoverSettings
from passes.recover.train import run_


class Recover(Pass):
    """Train by a method that keeps zeros."""

    Settings = RecoverSettings
    uses = frozenset[DataUse]({"training"})
    settings: RecoverSettings

    def plan(self, facts: Facts) -> Facts:
        """Return the facts of the trained model; its masks stay.

        Raises:
            BadSettings: a method that would fill zeros, or does not fit the model; a setting of another method.
        """
        choose(self.settings, facts)
        return facts.after(trained=True)

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost; a search of the support counts its batches, and its scores per weight."""
        given, chosen = self.settings, choose(self.settings, facts)
        found = cost(facts, given, chosen.count)
        if given.method != "sparse_delta":
            return found
        weights = sum(math.prod(facts.shapes[n]) for n in chosen.linears)
        more = {
            "squared-gradients": given.probes / (given.steps * given.accumulation),
            "top-magnitude": 0.0,
            "lottery": 1.0,
        }
        bytes_ = 30 * weights if given.support != "lottery" else 36 * weights
        return Estimate(
            trainable=found.trainable,
            peak_mib=found.peak_mib + bytes_ / 2**20,
            disk_mib=found.disk_mib + (12 * weights if given.support == "lottery" else 8 * chosen.count) / 2**20,
            seconds=found.seconds * (1 + more[given.support]) + weights / 2e7,
        )

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Train what was chosen, merge, and give the model back with nothing but its own modules in it."""
        chosen, model = self._chosen(artifact), artifact.model
        total, trained = sum(p.numel() for p in model.parameters()), chosen.count
        parts = [self.settings.method + (f" on {len(chosen.linears)} linears" if chosen.linears else "")]
        if chosen.classifier and (names := classifier(model)):
            trained += sum(p.numel() for n, p in model.named_parameters() if n in set(names))
            parts.append("the classifier")
        context.report.note(f"trains {trained:,} of {total:,} parameters ({trained / total:.3%}): {', '.join(parts)}")
        context.report.record("trainable", trained)
        if self.settings.method == "scale_bias_norm" and self.settings.bias and not chosen.biases:
            context.report.note("the chosen linears have no bias and get none: no stock architecture would load it")
        run_(artifact, chosen, self.settings, context)
        return artifact

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check the masks, every zero under them, and that what is not trained kept its bits."""
        chosen = self._chosen(before)
        _keeping.check(before, after, chosen.changes(before.model))
        if self.settings.method == "sparse_delta":
            old, new = tree.block_linears(before.model), tree.block_linears(after.model)
            moved = sum(int((old[n].weight != new[n].weight).sum()) for n in chosen.linears)
            if moved > chosen.count:
                raise BrokenPromise(f"{moved} weights changed where a sparse delta has {chosen.count}")

    def _chosen(self, artifact: Artifact) -> Chosen:
        return choose(self.settings, _pruned.facts_of(artifact))
