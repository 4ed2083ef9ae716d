"""The pass itself: rules, the walk, what is told and promised."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from compress import files, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Candidate, DataUse, Estimate, Pass
from compress.errors import BadSettings
from compress.facts import Facts
from passes import _densities, _pruned, _rules, _swaps
from passes._layerwise import Inputs, Journal, Layer, cost, walk_
from passes._masks import Rule, Scope
from passes._oneshot.settings import OneshotSettings
from passes._oneshot.task import Attempt, Task
from passes._pruned import Readable


class Oneshot(Pass):
    """Choose masks block by block from what the linears read."""

    uses = frozenset[DataUse]({"calibration"})
    streams = True
    updates = False  # whether weights that stay get other values
    settings: OneshotSettings

    @property
    @abstractmethod
    def scope(self) -> Scope:
        """What the sparsity is of when the pattern is unstructured."""

    @abstractmethod
    def attempts(self, inputs: Inputs, tasks: Sequence[Task], note: Callable[[str], None]) -> Iterator[list[Attempt]]:
        """Yield of each task in turn what its linear may become; all tasks read the same inputs.

        Args:
            inputs: with `gram` where the pass or swaps need it.
            tasks: one or more.
            note: keeps a note of what had to be done otherwise.
        """

    @abstractmethod
    def saliency(self, weight: Tensor, square: Tensor) -> Tensor:
        """Return the scores by which candidates are judged, float32 `[out, in]`, the highest stay.

        Args:
            weight: W `[out, in]`.
            square: mean square of each input, `[in]`.
        """

    @property
    def gram(self) -> bool:
        """Whether products between inputs are needed."""
        return self.settings.refine == "swaps" or self.updates

    @property
    def rule(self) -> Rule:
        """What is asked of the masks; with 'owl' the mean of what is asked."""
        given = self.settings
        fixed = given.pattern != "unstructured" and "scope" not in given.model_fields_set
        return Rule.of(given, "matrix" if fixed else self.scope)

    def rules(self, artifact: Artifact) -> dict[str, Rule]:
        """Return what is asked of every linear that is to be pruned, or was; with 'owl' the mean of what is asked."""
        return _rules.of_artifact(artifact, self.settings, lambda: self.rule)

    def plan(self, facts: Facts) -> Facts:
        """Return the facts with the masks to come.

        Raises:
            BadSettings: the patterns choose nothing, no such mask can be made of the chosen linears, or settings
                contradict each other.
        """
        given = self.settings
        planned = _rules.plan(facts, given, lambda: self.rule)
        if given.densities == "owl" and given.pattern != "unstructured":
            what = f"{given.pattern} makes every block alike"
            raise BadSettings(f"{what}, got 'owl'; use an unstructured pattern", key="densities")
        if given.reference == "dense" and not self.updates:
            what = "only a pass that changes the weights that stay can aim at the dense model's outputs"
            raise BadSettings(f"{what}, got 'dense'; use sparsegpt or leave it out", key="reference")
        for key, used in (("owl_", given.densities == "owl"), ("refine_cycles", given.refine == "swaps")):
            for name in sorted(n for n in given.model_fields_set if n.startswith(key) and not used):
                needs = "densities 'owl'" if key == "owl_" else "refine 'swaps'"
                raise BadSettings(f"only with {needs}, got {getattr(given, name):g}; leave it out", key=name)
        for name, rule in _rules.of(facts, given, lambda: self.rule).items():
            rows, inputs = facts.shapes[name]
            size = inputs if rule.scope == "row" else rows * inputs
            if not rule.pattern.group and round(rule.sparsity * size) == size:
                raise BadSettings(f"leaves no weight of {name}, got {rule.sparsity:g}; ask for less", key="sparsity")
        return planned

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost of the walk, of updates and of swaps."""
        names = list(_rules.of(facts, self.settings, lambda: self.rule))
        shapes = [facts.shapes[n] for n in names]
        work = sum(i * i * (i + 2 * o) for o, i in shapes) if self.updates else 0
        if self.settings.refine == "swaps":
            work += sum(o * i * i for o, i in shapes) * self.settings.refine_cycles
        kept = sum(map(math.prod, shapes)) / 8
        return cost(facts, names, self.settings, gram=self.gram, work=work, kept=kept)

    def prune(self, artifact: Artifact, context: Context) -> Artifact:
        """Return the artifact pruned; what was found of finished blocks is kept for whoever resumes."""
        rules, given = self.rules(artifact), self.settings
        names = list(rules)
        if not names:
            context.report.note(_rules.NOTHING)
            return artifact
        if given.densities == "owl":
            squares = _densities.squares(artifact, names, given, context)
            rules = _densities.rules(
                artifact, self.rule, squares, width=given.owl_lambda, threshold=given.owl_threshold
            )
        journal = Journal(context.folder / "journal.json")

        def change_(layers: Sequence[Layer]) -> dict[str, Tensor]:
            made = dict[str, Tensor]()
            for _, together in groupby(layers, key=lambda layer: id(layer.inputs)):
                tasks = [Task(la, rules[la.name], _old(artifact.masks, la)) for la in together]
                made |= self._change_(tasks, journal)
            journal.save()
            return made

        masks = walk_(artifact, names, given, context, change_, gram=self.gram).masks
        zeros, size = (sum(f(masks[n]) for n in names) for f in (lambda m: int((~m).sum()), Tensor.numel))
        context.report.note(
            f"pruned {zeros / size:.2%} of {len(names)} linears; {_pruned.share_of_model(artifact, masks)}"
        )
        if given.densities == "owl":
            context.report.note(f"sparsity of the blocks: {', '.join(_by_block(artifact, rules))}")
        journal.tell(names, context.report)
        return artifact.after(masks=masks)

    def candidates(self, artifact: Artifact, context: Context) -> Sequence[Candidate]:
        """Return each linear, block or part (as `choose` says) pruned, and as it is; judged on unpruned inputs.

        Neither swaps, densities nor updates are looked at: what matters is which linears bear zeros, and it is cheap.
        """
        rules = self.rules(artifact)
        walked = files.digest_of([list(rules), self.settings.batch])  # one folder may serve candidates of all kinds
        own = replace(context, folder=context.folder / f"candidates-{walked[:12]}")
        own.folder.mkdir(exist_ok=True)
        squares = _densities.squares(artifact, list(rules), self.settings, own)

        def score(name: str, weight: Tensor) -> Tensor:
            return self.saliency(weight, squares[name].to(weight.device))

        return _rules.candidates(artifact, self.settings, rules, score, context)

    def check(self, before: Readable, after: Artifact) -> None:
        """Raise `BrokenPromise` unless counts, zeros and all that is left alone are as declared."""
        rules = self.rules(after)
        _pruned.check_masked(after, rules)
        if self.settings.densities == "owl":
            _densities.check(self.rule, before.masks, {n: after.masks[n] for n in rules})
        else:
            for name, rule in rules.items():
                rule.check(before.masks, {name: after.masks[name]})
        _pruned.check_rest(before, after, rules, updates=self.updates)

    def refined(self, weight: Tensor, mask: Tensor, task: Task) -> list[Attempt]:
        """Return plain zeroing under a mask and, where asked for, under what swaps make of the mask."""
        found = [Attempt("plain zeroing", weight.masked_fill(~mask, 0), mask)]
        gram = task.layer.inputs.gram
        if self.settings.refine == "swaps" and gram is not None:
            better, kept = _swaps.swaps(
                found[0].weight, mask, weight, gram, allowed=task.old, values=weight,
                group=task.rule.pattern.group, cycles=self.settings.refine_cycles,
            )  # fmt: skip
            found.append(Attempt("swaps", better, kept))
        return found

    def _change_(self, tasks: Sequence[Task], journal: Journal) -> Iterable[tuple[str, Tensor]]:
        """Make the attempts at linears that read the same, and leave the best of each in its place."""
        inputs = tasks[0].layer.inputs
        names = [task.layer.name for task in tasks]
        for name in names:
            journal.begin(name)
        if not inputs.square.any():
            journal.note(
                names[0], f"{', '.join(names)}: nothing but zeros is read, so that nothing tells weights apart"
            )
        with torch.no_grad():
            for task, found in zip(
                tasks, self.attempts(inputs, tasks, lambda text: journal.note(names[0], text)), strict=True
            ):
                layer = task.layer
                best = journal.choose(layer, [(a.what, a.weight) for a in found])
                if not found[best].mask.any():
                    journal.note(layer.name, f"{layer.name}: nothing is left of it")
                layer.linear.weight.copy_(found[best].weight)
                yield layer.name, found[best].mask


def _by_block(artifact: Artifact, rules: Mapping[str, Rule]) -> Iterator[str]:
    """Yield the share of zeros that is asked of each block."""
    linears = tree.block_linears(artifact.model)
    for block in tree.blocks(artifact.model):
        sizes = {n: linears[n].weight.numel() for n in rules if n.startswith(f"{block}.")}
        if sizes:
            yield f"{sum(rules[n].sparsity * size for n, size in sizes.items()) / sum(sizes.values()):.1%}"


def _old(masks: Mapping[str, Tensor], layer: Layer) -> Tensor:
    weight = layer.linear.weight
    if layer.name in masks:
        return masks[layer.name].to(weight.device)
    return torch.ones_like(weight, dtype=torch.bool)
