"""Gates on heads and neurons, trained with the task's loss and an l1 penalty; nothing but their values is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from passes import _adapter, _gates
from passes._train import Group, frozen, heads_of, loss_on, recomputed, train_
from passes.structured.settings import StructuredSettings


def gates(
    artifact: Artifact, units: Mapping[str, int], settings: StructuredSettings, context: Context
) -> dict[str, Tensor]:
    """Return the trained gates by the linear that they stand in front of, float32 [units]; the model is as before.

    Low-rank updates of all linears of the blocks, under their masks, are trained along, and so is what of a task model
    lies outside its backbone: a gate shall tell what a unit is worth once the rest has adapted.

    Args:
        artifact: the model and its masks.
        units: per linear, how many gates share its columns.
        settings: of the training.
        context: data, seed, and where checkpoints and figures go.
    """
    model = artifact.model
    loss_of = loss_on(artifact, settings, context)
    with (
        frozen(model, settings, context.device),
        _adapted(artifact, settings, context.seed) as updates,
        _gates.gated(model, units) as found,
        recomputed(tree.blocks(model).values(), settings.recompute),
    ):
        named = {f"{name}.gate": gate for name, gate in found.items()}
        groups = [Group(updates, settings.lr, settings.weight_decay), Group(named, settings.lr)]
        train_(
            groups,
            lambda number: loss_of(number) + settings.penalty * _gates.penalty(found.values()),
            settings,
            context,
            name="gates",
        )
        return {name: gate.detach() for name, gate in found.items()}


@contextmanager
def _adapted(artifact: Artifact, settings: StructuredSettings, seed: int) -> Iterator[dict[str, nn.Parameter]]:
    """Yield what is trained beside the gates; at the end all of it is as if it had never been."""
    model = artifact.model
    every = dict(model.named_parameters())
    heads = {n: every[n] for n in heads_of(artifact)}
    old = {n: p.detach().clone() for n, p in heads.items()}
    linears = {n: m for n, m in tree.block_linears(model).items() if type(m) is nn.Linear}  # a branched one stays so
    put_ = partial(_adapter.attach_, model, form="mask_lora", rank=settings.rank, scale=2.0, seed=seed)
    adapters = put_(linears, artifact.masks)
    updates = _adapter.trained(adapters)
    for parameter in heads.values():
        parameter.requires_grad_(True)
    try:
        yield updates | heads
    finally:
        for name, linear in linears.items():
            tree.replace_(model, name, linear)
        for name, parameter in heads.items():
            parameter.data.copy_(old[name])
