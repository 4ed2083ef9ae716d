"""Remove attention heads, FFN neurons and whole blocks; what stays is a smaller dense model that runs faster anywhere.

Formula: the highest scores stay, in each block by itself.  A unit u is a key-value head with its query heads, or a
neuron; R is the linear that reads it (output projection, down projection), of which R[:, u] are its columns:

    magnitude    |R[:, u]| * prod |W[u, :]|     over the values, or up (and gate): what is linear in the unit
    activation   mean_t |R[:, u] x_t[u]|^2      what it adds on calibration windows, given the blocks cut before it
    gates        c_u, trained with loss + penalty * sum |c|, a factor of x[u], beside low-rank updates of all linears

Blocks go first.  `similarity`: those of lowest mean_t 1 - cos(input, output).  `das`: those of highest gate g after
rounds that skip random subsets, drawn by p = sigmoid(g), and move g by rate * advantage * p (1 - p), the advantage of a
subset being how much lower its loss is than the round's mean, in units of the usual spread.

Papers: Gu et al. 2024, Light-PEFT (arXiv 2406.03792) for the gates; Wu et al. 2023, DAS (arXiv 2309.01479); Men et al.
2024, ShortGPT (arXiv 2403.03853) for the similarity; Chen et al. 2021, DSEE (arXiv 2111.00160).

Cost: `magnitude` reads the weights once; `activation` and `similarity` run the calibration windows twice and once;
`gates` trains `steps` steps; `das` runs three batches a round, forward only.
Keeps: all that stays bit for bit, in its order: gates and updates are dropped.  Masks are cut alike; of an N:M mask
whole groups stay.  Shares of neurons are rounded to `multiple`.
Helps: latency and size on every runtime, for what is left is dense: where the FFN is four times as wide as the model, a
quarter of the heads and two fifths of the neurons are 35 % of the blocks' products.  Retrain afterwards.
Hurts: without retraining, much more than the same share of scattered zeros; blocks at the ends more than inside.
"""

from __future__ import annotations

import dataclasses

from compress import blocks, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate, Pass
from compress.errors import BadSettings, BrokenPromise
from compress.facts import Facts, MaskFact
from passes._narrowing import plan, shaped
from passes.structured import layers, scores
from passes.structured.checking import check
from passes.structured.cutting import narrow_
from passes.structured.settings import StructuredSettings


class Structured(Pass):
    """Make the model itself smaller."""

    Settings = StructuredSettings
    uses = frozenset[DataUse]({"calibration", "training"})
    settings: StructuredSettings

    def data_uses(self) -> frozenset[DataUse]:
        """Return the roles that the criteria read; weights alone need none."""
        given = self.settings
        read: dict[str, DataUse] = {
            "activation": "calibration", "similarity": "calibration", "gates": "training", "das": "training"
        }  # fmt: skip
        criteria = [given.criterion] * self._narrows() + [given.layer_criterion] * (given.layers > 0)
        return frozenset(read[c] for c in criteria if c in read)

    def plan(self, facts: Facts) -> Facts:
        """Return the facts of the smaller model.

        Raises:
            BadSettings: nothing would go, or nothing stay; numbers that do not fit the blocks; blocks that go and are
                unlike; heads that cut the groups of a mask; a criterion that learns where there is no loss.
        """
        self._check_loss(facts)
        return plan(self.settings.asked, facts).facts

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost, by a core of 3e10 products a second."""
        given, after = self.settings, plan(self.settings.asked, facts).facts
        products = sum(out * inputs for out, inputs in facts.shapes.values())
        tokens = given.batch * (facts.positions or 512)
        trained = 0
        if self._narrows() and given.criterion == "gates":
            trained = sum(given.rank * (out + inputs) for out, inputs in after.shapes.values())
            trained += sum(b.kv_heads + b.ffn for b in after.layout)
        rounds = 3 * given.steps * (given.layers > 0 and given.layer_criterion == "das")
        work = tokens * products * (rounds + 3 * given.steps * given.accumulation * bool(trained))
        width = sum(inputs for _, inputs in facts.shapes.values())
        model = 4 * facts.parameters
        return Estimate(
            trainable=trained,
            peak_mib=(model + 16 * trained + 12 * tokens * width * bool(trained)) / 2**20,
            disk_mib=(4 * after.parameters + 12 * trained) / 2**20,
            seconds=model / 1e9 + work / 3e10,
        )

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Take blocks away, then heads and neurons of those that stay."""
        given, was = self.settings, artifact.model.num_parameters()
        planned = plan(given.asked, context.facts or _facts(artifact))
        for note in planned.notes:
            context.report.note(note)
        if given.layers:
            artifact = self._without_layers(artifact, context)
        if self._narrows():
            artifact = artifact.after(masks=narrow_(artifact, planned, given, context))
        now = artifact.model.num_parameters()
        shapes = ", ".join(dict.fromkeys(f"{b.heads} heads and {b.ffn} neurons" for b in tree.layout(artifact.model)))
        context.report.note(
            f"{now:,} of {was:,} parameters stay ({now / was:.1%}): {len(planned.facts.layout)} blocks of {shapes}"
        )
        context.report.record("parameters", now)
        return artifact

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check the shapes, and that the model is the old one with something taken out, to the last bit."""
        wanted, found = shaped(self.settings.asked, _facts(before)).facts.layout, tree.layout(after.model)
        if len(found) != len(wanted):
            raise BrokenPromise(f"{len(found)} blocks are left, {len(wanted)} were asked for")
        for index, (name, now, asked) in enumerate(zip(tree.blocks(after.model), found, wanted, strict=True)):
            if f"{name}.{tree.family(after.model).down}" in after.masks:  # maybe of a pattern that rounds once more
                asked = dataclasses.replace(asked, ffn=now.ffn)
            if now != asked:
                raise BrokenPromise(f"block {index} is {now}, and {asked} was asked for")
        check(before, after)

    def _check_loss(self, facts: Facts) -> None:
        given = self.settings
        learned = {
            "criterion": given.criterion == "gates",
            "layer_criterion": given.layers > 0 and given.layer_criterion == "das",
        }
        for key, asked in learned.items():
            if asked and facts.task == "embedding":
                what = f"an embedding model has no loss of its own to learn from, got {getattr(given, key)!r}"
                raise BadSettings(f"{what}; 'activation' and 'similarity' need none", key=key)

    def _narrows(self) -> bool:
        return bool(self.settings.heads or self.settings.neurons)

    def _without_layers(self, artifact: Artifact, context: Context) -> Artifact:
        given = self.settings
        if given.layer_criterion == "das":
            gates = layers.trials(artifact, given, context)
            worth = [-gate for gate in gates]
        else:
            worth = layers.changes(artifact, given, context)
        gone = scores.lowest(worth, given.layers)
        context.report.record("layers", {"worth": worth, "removed": gone})
        context.report.note(f"of {len(worth)} blocks, counted from 0, these go: {', '.join(map(str, gone))}")
        names = blocks.drop_(artifact.model, gone)
        masks, planned = (
            {new: found[old] for old, new in names.items() if old in found} for found in (artifact.masks, artifact.plan)
        )
        return artifact.after(masks=masks, plan=planned)


def _facts(artifact: Artifact) -> Facts:
    """Return what an artifact knows of itself: which masks there are, but not their patterns."""
    masks = dict.fromkeys(artifact.masks, MaskFact("unstructured", 0.0))
    return tree.facts(artifact.model, artifact.task).after(masks=masks, plan=artifact.plan)
