"""DSEE: tune a sparse and low-rank update, prune the weights, and tune on under the mask.

Formula: What = M * (W + s (B A + S2)), s = alpha / rank, with `merge = "inside"`: merged as it trained, exactly sparse;
or What = M * (W + s S2) + s B A with `merge = "branch"`: the low-rank part stays beside the sparse weight.  S2 has
`entries` trained numbers on a support that is fixed before any training:

    decomposition   the entries of |W - U V| that are largest, U V being a low-rank fit to all of W but these
    top-magnitude   those of |W|
    random          drawn by the seed

First B A + S2 and a task's classifier are tuned on the dense weight, then every matrix is pruned, updated ones by
|s (B A + S2)| (or |W|, or |W + s (B A + S2)|), others by |W|, then the same tensors are tuned on under the mask.

Instead of that, `structured_heads` removes heads, those of the lowest sum of these scores over their queries' and
values' rows, and `structured_neurons` FFN neurons, those whose gate, a trained factor under an l1 penalty, became
smallest.  The first stage is merged, gates and all, and a second update is tuned and merged in the smaller matrices.

Paper: Chen et al. 2021, DSEE: Dually Sparsity-Embedded Efficient Tuning of Pre-trained Language Models
(arXiv 2111.00160); it updates queries and values, and masks W alone, so that a merge would fill the zeros again.

Cost: two trainings at optimizer memory of rank * (out + in) + entries a linear; a low-rank fit a linear.
Keeps: earlier zeros, biases, norms, embeddings and a language model's head bit for bit; all that is pruned and not
updated, but for its zeros.  Dropout is off.
Helps: where a model is fine-tuned to a task anyway and shall come out sparse, from few trained numbers.
Hurts: masks drawn from a short tuning follow its noise, not the weights' worth; a branch costs two more products.
"""

from __future__ import annotations

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate, Pass
from compress.errors import BrokenPromise
from compress.facts import Facts
from passes import _keeping, _masks, _pruned
from passes._train import cost, heads_of
from passes.dsee import checking, slim, tune
from passes.dsee.plan import choose, narrowed
from passes.dsee.settings import DseeSettings


class Dsee(Pass):
    """Tune a small update and prune by it."""

    Settings = DseeSettings
    uses = frozenset[DataUse]({"training"})
    settings: DseeSettings

    def plan(self, facts: Facts) -> Facts:
        """Return the facts of the pruned and tuned model.

        Raises:
            BadSettings: nothing to update or to train, more than a linear can hold, a mask that cannot be made, or a
                task without a loss.
        """
        given, chosen = self.settings, choose(self.settings, facts)
        if given.structured:
            return narrowed(given, facts, chosen).facts.after(trained=True)
        facts = chosen.rule.plan(facts, chosen.pruned).after(trained=True)
        if given.merge == "inside":
            return facts
        made = given.rank * sum(sum(facts.shapes[n]) for n in chosen.updated)
        branches = dict.fromkeys(chosen.updated, given.rank)
        return facts.after(branches={**facts.branches, **branches}, parameters=facts.parameters + made)

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost of both stages."""
        given = self.settings
        steps = given.tune_steps + given.steps
        trained = choose(given, facts).trainable(facts, given)
        return cost(facts, given.model_copy(update={"steps": steps}), trained)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Tune, prune, tune on, and give the model back with nothing trainable beside its weights."""
        facts = context.facts or _pruned.facts_of(artifact)
        chosen = choose(self.settings, facts)
        trained = chosen.trainable(facts, self.settings)
        share = f"{trained:,} of {facts.parameters:,} parameters ({trained / facts.parameters:.3%})"
        context.report.note(f"trains {share} on {len(chosen.updated)} linears, and what a task model has as classifier")
        if self.settings.structured:
            return slim.run_(artifact, chosen, narrowed(self.settings, facts, chosen), self.settings, context)
        return tune.run_(artifact, chosen, self.settings, context)

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check masks, zeros and that nothing but updated weights, branches and a classifier has other bits."""
        facts = _pruned.facts_of(before)
        chosen = choose(self.settings, facts)
        if self.settings.structured:
            changes = {*(f"{n}.weight" for n in chosen.updated), *heads_of(before)}
            if self.settings.structured_neurons:
                changes |= {f"{n}.{tree.family(before.model).down}.weight" for n in tree.blocks(before.model)}
            checking.check(before, after, narrowed(self.settings, facts, chosen).facts.layout, changes)
            return
        _keeping.check_pruned(chosen.rule, before, after, chosen.pruned)
        changes = {*(f"{n}.weight" for n in chosen.pruned), *heads_of(before)}
        came = [f"{n}.{part}" for n in chosen.updated for part in ("a", "b")] if self.settings.merge == "branch" else []
        _keeping.check_rest(before, after, changes, came)
        for name in chosen.pruned:
            self._check_weight(name, name in chosen.updated, before, after)

    def _check_weight(self, name: str, updated: bool, before: Artifact, after: Artifact) -> None:
        """Check that a weight differs by its zeros alone or, beside a branch, by those and its entries."""
        if updated and self.settings.merge == "inside":
            return
        was = before.tensor(f"{name}.weight").masked_fill(~after.masks[name], 0)
        now = after.tensor(f"{name}.weight")
        differ = int((was != now).sum()) if updated else int(not _masks.same_bits(was, now))
        if differ > (self.settings.entries if updated else 0):
            raise BrokenPromise(f"{name}: differs from what it was by more than its zeros and entries")
