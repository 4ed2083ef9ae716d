"""L4Q: quantization-aware LoRA, whose update is rounded with the weight and merges into the codes without a trace.

Formula: each linear computes with the weight that will be stored, and A, B and the steps s are trained through it:

    Wc = M * (W0 + alpha B A)
    Wq = s * round(clamp(Wc / s, lowest code, highest code))

B starts at 0.  What is trained of a step is its logarithm, so that it stays above 0 and `lr_steps` is a relative
change.  With `symmetric = false` every group keeps the code that stands for 0 it starts with; with `offset` a group
also trains a real number that is added.  With `borders = "stay"` codes are counted in the first steps s0,
`Wq = s * round(clamp(Wc / s0))`: a step that starts from codes has no gradient otherwise, for these stand in the middle
of their cells.  With `borders = "none"` nothing is rounded, `W = s / s0 * Wc`, and floats are left.  The loss is the
task's, the distance to the dense parent's outputs (KL), or both.  With `warm_steps` each block is trained by itself
before, W0 and s, towards the output of the dense parent's on the same input.

Papers: Jeon et al. 2024, L4Q: Parameter Efficient Quantization-Aware Fine-Tuning on Large Language Models (arXiv
2402.04902); the warm start after Chen et al. 2024, EfficientQAT (arXiv 2407.11062).  Masks, codes that stand for 0,
logarithms of steps and the distance to the parent are ours.

Cost: three large products a linear and step where LoRA has two, beside rounding twice; the memory of LoRA on floats,
for neither rounded weights nor their gradients are ever whole.  `kl` and `both` hold the dense parent too.
Keeps: masks, and every zero under them in the codes; all that is not quantized bit for bit.  Dropout is off.
Helps: where rounding alone costs quality, the more the fewer the bits; after pruning.  Best on top of the codes of
`gptq`, with `again = true`, `borders = "stay"` and `lr_steps` some 0.06.  By itself it starts from rounding to nearest,
which a short training does not bring to where `gptq` is, and `warm_steps` bring nearer.  To learn new text in few steps
also `borders = "none"` with such `lr_steps`, and `gptq` after it: in codes an update below half a step is lost, and
what moves a code undoes what `gptq` made up for, the more the fewer the bits.
Hurts: nothing to gain at 8 bits; long training with the task's loss on few data leaves the dense model behind; a real
offset has no place in TensorRT, nor in any kernel of integers alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from torch import Tensor

from compress import known, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate
from compress.errors import BadSettings
from compress.facts import Facts, GridFact
from compress.grid import groups
from passes import _adapter, _quant
from passes._quant import Steps
from passes._train import cost
from passes.l4q.settings import L4QSettings
from passes.l4q.train import run_


class L4Q(_quant.Quantizer):
    """Train low-rank updates and steps through the rounding, and leave codes."""

    Settings = L4QSettings
    uses = frozenset[DataUse]({"calibration", "training"})
    settings: L4QSettings

    def data_uses(self) -> frozenset[DataUse]:
        """Return training data, and calibration data too where bits are chosen or blocks trained by themselves."""
        calibrates = self.settings.average_bits is not None or self.settings.warm_steps
        return self.uses if calibrates else frozenset({"training"})

    def plan(self, facts: Facts) -> Facts:
        """Return the facts of the quantized model.

        Raises:
            BadSettings: a grid does not fit, an offset goes with masks or with codes that stand for 0, the rank is too
                high, a linear has a branch, or an embedding model is to be trained with a loss of its own.
        """
        found = _planned(facts, self.settings)
        grids = facts.grids if self.settings.borders == "none" else {**facts.grids, **found}
        return facts.after(grids=grids, trained=facts.trained or bool(found))

    def grids(self, artifact: Artifact) -> dict[str, GridFact]:
        """Return the grid that each linear gets, or got."""
        return {} if self.settings.borders == "none" else self._found(artifact)

    def changes(self, artifact: Artifact) -> Collection[str]:
        """Return the names of the weights that stay floats and are trained."""
        return {f"{n}.weight" for n in self._found(artifact)} if self.settings.borders == "none" else ()

    def resolved(self, artifact: Artifact, context: Context) -> dict[str, GridFact]:
        """Return the grid that each linear is to get, bits chosen where they are open."""
        return _with_offset(super().resolved(artifact, context), self.settings)

    def steps(self, weight: Tensor, fact: GridFact) -> Steps:
        """Return the first steps of a weight's grid."""
        return (_quant.search if self.settings.init == "search" else _quant.span)(weight, fact)

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost: half as much time again as other low-rank training, and the parent where it teaches."""
        given, found = self.settings, _planned(facts, self.settings)
        training = cost(facts, given, _trainable(facts, found, given.rank))
        taught = given.loss != "lm" or given.warm_steps > 0
        warm = given.warm_steps / (given.steps * given.accumulation)
        more = dataclasses.replace(
            training,
            peak_mib=training.peak_mib + taught * 4 * facts.parameters / 2**20,
            disk_mib=training.disk_mib + _quant.kept(facts, found) / 2**20,
            seconds=training.seconds * (1.5 * (1 + warm) + taught / 3),
        )
        return _quant.with_choice(more, facts, given)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Train, merge, and give the model back with plain linears and their codes."""
        found = self.resolved(artifact, context)
        if not found:
            self.tell(artifact, context, found)
            return artifact
        facts = tree.facts(artifact.model, artifact.task)
        trained = _trainable(facts, found, self.settings.rank)
        low = f"rank {self.settings.rank} and scale {self.settings.scale:g} on {len(found)} linears, and their steps"
        context.report.note(f"trains {trained:,} numbers beside {facts.parameters:,} parameters: {low}")
        context.report.record("trainable", trained)
        grids = artifact.new_grids()
        grids.update(run_(artifact, found, self.steps, self.settings, context))
        if self.settings.borders == "none":
            context.report.note("borders = 'none': all weights are floats as before")
        else:
            self.tell(artifact, context, found)
        return artifact.after(grids=grids)

    def _found(self, artifact: Artifact) -> dict[str, GridFact]:
        return _planned(known.told(artifact).after(grids={}), self.settings)


def _planned(facts: Facts, settings: L4QSettings) -> dict[str, GridFact]:
    """Return the grid of every linear that is to be trained, or raise `BadSettings`."""
    if facts.task == "embedding" and settings.loss != "kl":
        what = "an embedding model has no loss of its own"
        raise BadSettings(f"{what}, got {settings.loss!r}; 'kl' would do", key="loss")
    if settings.warm_steps and facts.dropped:
        what = f"{facts.dropped} blocks of the dense parent are gone, so that the others have no counterpart"
        raise BadSettings(f"{what}; leave it out", key="warm_steps")
    if settings.offset and settings.bits == "plan":
        what = "comes from the plan where bits = 'plan', got true"
        raise BadSettings(f"{what}; leave one of them out", key="offset")
    if settings.offset and not settings.symmetric:
        what = "a group has a real offset or a code that stands for 0, not both"
        raise BadSettings(f"{what}, got symmetric = false; leave one of them out", key="offset")
    if settings.borders == "none":
        _check_floats(facts, settings)
    found = _quant.planned(facts, settings)
    _adapter.check_plain(facts, found)
    for name in found:
        if settings.offset and name in facts.masks:
            what = f"{name} has a mask, and an offset would fill its zeros"
            raise BadSettings(f"{what}; leave it out, or exclude the linear", key="offset")
        if settings.rank > min(facts.shapes[name]):
            what = f"must be <= {min(facts.shapes[name])}, the rank of {name}, got {settings.rank}"
            raise BadSettings(what, key="rank")
    return _with_offset(found, settings)


def _check_floats(facts: Facts, settings: L4QSettings) -> None:
    """Raise unless floats can be left."""
    for key in ("offset", "average_bits", "activation", "warm_steps"):
        if key in settings.model_fields_set:
            what = f"only where codes are made, got {getattr(settings, key)!r} with borders = 'none'"
            raise BadSettings(f"{what}; leave it out", key=key)
    if facts.grids:
        what = f"{next(iter(facts.grids))} has codes, which floats would replace"
        raise BadSettings(f"{what}; 'stay' would do", key="borders")


def _with_offset(found: Mapping[str, GridFact], settings: L4QSettings) -> dict[str, GridFact]:
    if not settings.offset:
        return dict(found)

    def offset(fact: GridFact) -> GridFact:
        return dataclasses.replace(fact, offset=True, others=tuple(map(offset, fact.others)))

    return {n: offset(f) for n, f in found.items()}


def _trainable(facts: Facts, planned: Mapping[str, GridFact], rank: int) -> int:
    """Return how many numbers are trained: A, B, a step for each group, and an offset where asked for."""
    count = 0
    for name, fact in planned.items():
        out, inputs = facts.shapes[name]
        count += rank * (out + inputs) + out * groups(inputs, fact.group_size) * (1 + fact.offset)
    return count
