"""PERP: retrain a pruned model through a few of its parameters; every zero stays zero.

Formula: biases, norms and the head's low-rank update are trained beside one reparametrisation of the pruned linears:

    mask_lora    What = M * (W + s B A)                 merged as it trained
    scale_lora   What = W * (B A)                       merged as it trained
    lora_prune   What = W + s B A, dense while training merged to W + M * s B A: a jump, reported
    lora         What = W + s B A                       merged as it trained: fills the zeros and drops the mask

with s = alpha / rank.  Mode `retrain` minimises the loss of the task end to end; mode `reconstruct` goes block by block
and minimises the squared error of each attention|MLP window (or block) to the dense parent's output on the same input,
on calibration windows; a part of them is held out, and the state that is best there stays, so it never gets worse.

Paper: Zimmer et al. 2023, PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs (arXiv 2312.15230); windows
after Free Lunch in LLM Compression (arXiv 2510.14444).

Cost: the time of full retraining, at optimizer memory of the trained share alone; `reconstruct` holds the dense parent
beside the model.  Trained: norms and biases, and rank * (out + in) a linear.
Keeps: masks, every zero, tied embeddings, all that is not trained bit for bit.  Dropout is off.
Helps: after one-shot pruning, the more the higher the sparsity.
Hurts: `lora_prune` at high sparsity (the jump); long reconstruction on few windows fits their text, not the language.
"""

from __future__ import annotations

from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate, Pass
from compress.facts import Facts
from passes import _keeping, _pruned
from passes._train import classifier, cost
from passes.perp import reconstruct, retrain
from passes.perp.settings import PerpSettings
from passes.perp.subsets import choose


class Perp(Pass):
    """Retrain a small share of the parameters under the mask."""

    Settings = PerpSettings
    uses = frozenset[DataUse]({"calibration", "training"})
    settings: PerpSettings

    def data_uses(self) -> frozenset[DataUse]:
        """Return the role that the mode reads."""
        return frozenset({"training" if self.settings.mode == "retrain" else "calibration"})

    def plan(self, facts: Facts) -> Facts:
        """Return the facts of the trained model; plain `lora` takes the masks of its linears away.

        Raises:
            BadSettings: a subset that the model does not have, forms that exclude each other, a form without a mask,
                a tied head, or settings of the other mode.
        """
        unmasked = choose(self.settings, facts).unmasked
        return facts.after(masks={n: m for n, m in facts.masks.items() if n not in unmasked}, trained=True)

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost; of `reconstruct`, that of one block at a time beside the dense parent."""
        given = self.settings
        trained = choose(given, facts).trainable(facts, given.rank)
        return cost(facts, given, trained, blockwise=given.mode == "reconstruct")

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Train what was chosen, merge, and give the model back with nothing but plain linears in it."""
        given, model = self.settings, artifact.model
        facts = _pruned.facts_of(artifact)
        chosen = choose(given, facts)
        trained = chosen.trainable(facts, given.rank)
        if chosen.classifier:
            sizes = dict(model.named_parameters())
            trained += sum(sizes[n].numel() for n in classifier(model) if n not in chosen.small)
        share = f"{trained:,} of {facts.parameters:,} parameters ({trained / facts.parameters:.3%})"
        low = f", rank {given.rank} and scale {given.scale:g} on {len(chosen.linears)} linears" if chosen.form else ""
        context.report.note(f"trains {share}: {', '.join(given.train)}{low}")
        context.report.record("trainable", trained)
        mode = retrain if given.mode == "retrain" else reconstruct
        mode.run_(artifact, chosen, given, context)
        return artifact.after(masks={n: m for n, m in artifact.masks.items() if n not in chosen.unmasked})

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check the masks, every zero under them, and that what is not trained kept its bits."""
        chosen = choose(self.settings, _pruned.facts_of(before))
        _keeping.check(before, after, chosen.changes(before.model), unmasked=chosen.unmasked)
