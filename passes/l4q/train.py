"""Rounded linears put in, trained block by block where asked for, then end to end, and merged into codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.facts import GridFact
from compress.grid import Grid
from passes import _adapter, _blockwise
from passes._blockwise import Way
from passes._quant import Steps, finite
from passes._train import Group, Teacher, frozen, look_every, parent_of, recomputed, split_on, thaw_, train_
from passes.l4q.expression import widths
from passes.l4q.linear import Rounded, merge_
from passes.l4q.settings import L4QSettings

StepsOf = Callable[[Tensor, GridFact], Steps]


def run_(
    artifact: Artifact,
    planned: Mapping[str, GridFact],
    steps_of: StepsOf,
    settings: L4QSettings,
    context: Context,
) -> dict[str, Grid]:
    """Train the planned linears of the model under their grids, merge them, and return these."""
    with _parent(settings, context) as parent, frozen(artifact.model, settings, context.device):
        rounded = attach_(artifact, planned, steps_of, settings, context.seed)
        if parent and settings.warm_steps:
            warm = settings.model_copy(update={"steps": settings.warm_steps})
            way = Way(settings=warm, window="block", dense=False, what="'warm_steps'")
            _blockwise.reconstruct_(artifact, parent, _Blocks(rounded, warm), way, context)
        teacher = Teacher(parent, alone=settings.loss == "kl") if parent and settings.loss != "lm" else None
        _train_(artifact, rounded, settings, context, teacher)
        return merge_(artifact.model)


def _parent(settings: L4QSettings, context: Context) -> AbstractContextManager[PreTrainedModel | None]:
    """Open the dense parent where anything is compared with it."""
    if settings.warm_steps:
        return parent_of(settings, context, "a warm start", key="warm_steps")
    if settings.loss != "lm":
        return parent_of(settings, context, repr(settings.loss), key="loss")
    return nullcontext()


def _train_(
    artifact: Artifact,
    rounded: Mapping[str, Rounded],
    settings: L4QSettings,
    context: Context,
    teacher: Teacher | None,
) -> None:
    """Train end to end."""
    loss_of, judge = split_on(artifact, settings, context, teacher)
    with recomputed(tree.blocks(artifact.model).values(), settings.recompute):
        done = train_(
            groups_of(rounded, settings),
            loss_of,
            settings,
            context,
            validate=judge,
            every=look_every(settings.steps),
        )
    for step, value in done.validations:
        context.report.record("held_out_loss", [step, value])


@dataclass(frozen=True)
class _Blocks:
    """What is trained block by block: W0 itself under the rounding, and steps; A and B stay as they are."""

    rounded: Mapping[str, Rounded]
    settings: L4QSettings

    def linears(self, block: str) -> list[str]:
        """Return the rounded linears of a block."""
        return [n for n in self.rounded if n.startswith(f"{block}.")]

    def groups(self, block: str, linears: list[str]) -> list[Group]:
        """Let the weights of some linears take gradients; each linear's have a rate of so many of its steps."""
        found = [Group({n: p for m in linears for n, p in self._steps(m).items()}, self.settings.lr_steps)]
        for name in linears:
            module = self.rounded[name]
            thaw_([module.weight])
            rate = self.settings.warm_lr * float(widths(module.lora_steps.detach()).median())
            found.append(Group({f"{name}.weight": module.weight}, rate))
        return found if linears else []

    def merge_(self, block: nn.Module) -> None:
        """Leave the block rounded, with weights that take no gradients and have the precision of the model's."""
        for module in block.modules():
            if isinstance(module, Rounded):
                module.weight.requires_grad_(False).grad = None
                module.weight.data = module.weight.data.to(module.dtype)

    def kept(self, block: str) -> list[str]:
        """Return what is trained of a block."""
        return sorted(p for n in self.linears(block) for p in (f"{n}.weight", *self._steps(n)))

    def _steps(self, name: str) -> dict[str, nn.Parameter]:
        return {n: p for n, p in _adapter.trained({name: self.rounded[name]}).items() if _quantizer(n)}


def attach_(
    artifact: Artifact, planned: Mapping[str, GridFact], steps_of: StepsOf, settings: L4QSettings, seed: int
) -> dict[str, Rounded]:
    """Put a rounded linear in the place of each planned one and return them by name."""
    made = {}
    for name, fact in planned.items():
        layer = _adapter.plain_linear(artifact.model, name)
        finite(name, layer)
        made[name] = Rounded(
            layer,
            artifact.masks.get(name),
            fact,
            _kept(artifact.grids.get(name), fact) or steps_of(layer.weight.detach(), fact),
            rank=settings.rank,
            alpha=settings.scale,
            seed=_adapter.seed_of(name, seed),
            scale_gradients=settings.scale_gradients,
            borders=settings.borders,
        )
        tree.replace_(artifact.model, name, made[name])
    return made


def groups_of(rounded: Mapping[str, Rounded], settings: L4QSettings) -> list[Group]:
    """Return what is trained: A and B, then steps and offsets, which have a rate of their own and never decay."""
    every = _adapter.trained(rounded)
    quantizers = {n: p for n, p in every.items() if _quantizer(n)}
    low_rank = {n: p for n, p in every.items() if n not in quantizers}
    return [Group(low_rank, settings.lr, settings.weight_decay), Group(quantizers, settings.lr_steps)]


def _quantizer(name: str) -> bool:
    """Tell steps and offsets from A and B."""
    return name.endswith((".lora_steps", ".lora_offset"))


def _kept(old: Grid | None, fact: GridFact) -> Steps | None:
    """Return the steps of the codes that a weight has already, if they are on such a grid."""
    if old is None or any(getattr(old.fact, n) != getattr(fact, n) for n in ("bits", "group_size", "zero", "format")):
        return None
    return Steps(old.scale, old.zero)
