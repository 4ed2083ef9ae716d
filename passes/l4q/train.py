"""Rounded linears put in, trained end to end, and merged into codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.facts import GridFact
from compress.grid import Grid
from passes import _adapter
from passes._quant import Steps, finite
from passes._train import Group, frozen, recomputed, split_on, taught, train_
from passes.l4q.linear import Rounded, merge_
from passes.l4q.settings import L4QSettings

_VALIDATIONS = 10

StepsOf = Callable[[Tensor, GridFact], Steps]


def run_(
    artifact: Artifact,
    planned: Mapping[str, GridFact],
    steps_of: StepsOf,
    settings: L4QSettings,
    context: Context,
) -> dict[str, Grid]:
    """Train the planned linears of the model under their grids, merge them, and return these."""
    model, device = artifact.model, context.device
    with taught(settings.loss, settings, context) as teacher, frozen(model, settings, device):
        loss_of, judge = split_on(artifact, settings, context, teacher)
        rounded = attach_(artifact, planned, steps_of, settings, context.seed)
        with recomputed(tree.blocks(model).values(), settings.recompute):
            done = train_(
                groups_of(rounded, settings),
                loss_of,
                settings,
                context,
                validate=judge,
                every=max(settings.steps // _VALIDATIONS, 1),
            )
        for step, value in done.validations:
            context.report.record("held_out_loss", [step, value])
        return merge_(model)


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
        )
        tree.replace_(artifact.model, name, made[name])
    return made


def groups_of(rounded: Mapping[str, Rounded], settings: L4QSettings) -> list[Group]:
    """Return what is trained: A and B, then steps and offsets, which have a rate of their own and never decay."""
    every = _adapter.trained(rounded)
    quantizers = {n: p for n, p in every.items() if n.endswith((".lora_steps", ".lora_offset"))}
    low_rank = {n: p for n, p in every.items() if n not in quantizers}
    return [Group(low_rank, settings.lr, settings.weight_decay), Group(quantizers, settings.lr_steps)]


def _kept(old: Grid | None, fact: GridFact) -> Steps | None:
    """Return the steps of the codes that a weight has already, if they are on such a grid."""
    if old is None or (old.bits, old.group_size, old.zero is not None) != (fact.bits, fact.group_size, fact.zero):
        return None
    return Steps(old.scale, old.zero)
