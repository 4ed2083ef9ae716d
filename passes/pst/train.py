"""End to end on training data while the sparsity rises."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import CompressError
from passes._masks import Rule
from passes._train import Group, frozen, heads_of, look_every, recomputed, split_on, thaw_, train_
from passes.pst.scored import Scored, masks_at
from passes.pst.settings import PstSettings


def run_(
    artifact: Artifact, names: Sequence[str], rule: Rule, settings: PstSettings, context: Context
) -> dict[str, Tensor]:
    """Train the named linears, leave plain ones in their places and return their masks."""
    model = artifact.model
    task_loss, judge = split_on(artifact, settings, context)
    with frozen(model, settings, context.device), scored(artifact, names, settings, context.seed) as layers:

        def select_(sparsity: float) -> None:
            for name, layer in layers.items():  # one score at a time
                layer.mask = masks_at(rule, sparsity, {name: layer.score()}, artifact.masks)[name]

        def loss_of(number: int) -> Tensor:
            step, part = divmod(number, settings.accumulation)
            if part == 0 and step % settings.refresh == 0:
                select_(settings.sparsity_at(step, rule.sparsity))
            return task_loss(number)

        def validate() -> float:
            assert judge is not None
            select_(rule.sparsity)
            return judge()

        with recomputed(tree.blocks(model).values(), settings.recompute):
            done = train_(
                groups(artifact, layers, settings),
                loss_of,
                _aligned(settings),
                context,
                validate=validate if judge else None,
                every=look_every(settings.steps - settings.settled),
                since=settings.settled,
            )
        for step, value in done.validations:
            context.report.record("held_out_loss", [step, value])
        if judge:
            context.report.note(f"the state after step {done.best} of {settings.steps} is the best on what is held out")
        select_(rule.sparsity)
        return {n: layer.mask for n, layer in layers.items()}


@contextmanager
def scored(artifact: Artifact, names: Sequence[str], settings: PstSettings, seed: int) -> Iterator[dict[str, Scored]]:
    """Put scored linears in the places of plain ones and merge them back at the end."""
    model = artifact.model
    plain: dict[str, nn.Linear] = {}
    for name in names:
        layer = model.get_submodule(name)
        if type(layer) is not nn.Linear:  # a subclass computes something else with its weight
            raise CompressError(f"{name}: a {type(layer).__name__} takes no scores; only a plain linear does")
        plain[name] = layer
    layers = {
        n: Scored(layer, artifact.masks.get(n), settings, (seed + zlib.crc32(n.encode())) % 2**63)
        for n, layer in plain.items()
    }
    for name, layer in layers.items():
        tree.replace_(model, name, layer)
    yield layers
    with torch.no_grad():
        for name, layer in layers.items():
            plain[name].weight.copy_(layer.merged())
            tree.replace_(model, name, plain[name])


def groups(artifact: Artifact, layers: Mapping[str, Scored], settings: PstSettings) -> list[Group]:
    """Return what is trained, the updates first; a task model's classifier is let take gradients."""
    model = artifact.model

    def named(*kinds: str) -> dict[str, nn.Parameter]:
        return {f"{n}.pst_{k}": layer.get_parameter(f"pst_{k}") for n, layer in layers.items() for k in kinds}

    every = dict(model.named_parameters())
    whole = {n: every[n] for n in heads_of(artifact)}
    thaw_(whole.values())
    found = [
        Group(named("u", "v"), settings.lr, settings.weight_decay),
        Group(named("a", "b", "r", "c"), settings.lr * settings.score_lr, settings.weight_decay),
        Group(whole, settings.lr, settings.weight_decay),
    ]
    return [g for g in found if g.parameters]


def _aligned(settings: PstSettings) -> PstSettings:
    """Return the settings with checkpoints on selections alone, so that a resumed run needs no stored mask."""
    every = math.ceil(settings.checkpoint_every / settings.refresh) * settings.refresh
    return settings.model_copy(update={"checkpoint_every": every})
