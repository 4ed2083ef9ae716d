"""The stages with heads and neurons removed instead of masks made: tune, cut, tune on, all merged into the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from passes import _adapter, _gates, _masks
from passes._adapter import Adapter
from passes._narrowing import Plan, Units, cut_, units_of
from passes._train import Group, frozen, recomputed
from passes.dsee.plan import Chosen
from passes.dsee.settings import DseeSettings
from passes.dsee.tune import attach_, groups_of, score_of, tune_


def run_(artifact: Artifact, chosen: Chosen, planned: Plan, settings: DseeSettings, context: Context) -> Artifact:
    """Tune, remove heads and neurons, tune on and merge; return the smaller artifact.

    The update of the first stage is merged before the cut, and the second stage begins with a new one: its rank and its
    entries are those of the smaller matrices.
    """
    model, units = artifact.model, units_of(artifact.model, planned)
    for note in planned.notes:
        context.report.note(note)
    with frozen(model, settings, context.device):
        worth = first_(artifact, chosen, units, settings, context)
        artifact = artifact.after(masks=cut_(artifact, planned, worth, context))
        groups = groups_of(artifact, attach_(artifact, chosen, settings, context), settings)
        with recomputed(tree.blocks(model).values(), settings.recompute):
            tune_(artifact, groups, settings, context, pruned=True)
        _adapter.merge_(model)
    return artifact


def first_(
    artifact: Artifact, chosen: Chosen, units: Sequence[Units], settings: DseeSettings, context: Context
) -> list[dict[str, Tensor]]:
    """Tune updates and gates, merge both, and return each block's scores by the linear that reads the units."""
    model = artifact.model
    downs = {f"{block}.{tree.family(model).down}" for block in tree.blocks(model)}
    neurons = {n: count for found in units for n, count in found.items() if n in downs}
    adapters = attach_(artifact, chosen, settings, context)
    with _gates.gated(model, neurons) as gates, recomputed(tree.blocks(model).values(), settings.recompute):
        trained = {f"{n}.gate": gate for n, gate in gates.items()}
        groups = [*groups_of(artifact, adapters, settings), *([Group(trained, settings.lr)] if trained else [])]
        context.report.record("trainable", sum(p.numel() for g in groups for p in g.parameters.values()))

        def penalty() -> Tensor | float:
            return settings.penalty * _gates.penalty(gates.values()) if gates else 0.0

        tune_(artifact, groups, settings, context, pruned=False, penalty=penalty)
    worth = []
    for block, found in zip(tree.blocks(model), units, strict=True):
        heads = {n: _heads(artifact, block, adapters, count, settings) for n, count in found.items() if n not in gates}
        worth.append(heads | {n: gates[n].detach().abs() for n in found if n in gates})
    _adapter.merge_(model)
    for name, gate in gates.items():
        fold_(model.get_parameter(f"{name}.weight"), gate, artifact.masks.get(name))
    return worth


def head_score(parts: Iterable[Tensor], heads: int) -> Tensor:
    """Return what each key-value head is worth, float `[heads]`: the sum of its rows in the scores of all parts.

    Args:
        parts: scores of queries and of values, `[heads * rows, in]` each, in the order of the key-value heads.
        heads: how many there are.
    """
    return torch.stack([score.reshape(heads, -1).sum(1) for score in parts]).sum(0)


def fold_(weight: Tensor, gate: Tensor, mask: Tensor | None) -> None:
    """Multiply the columns of a weight by their gates; what its mask prunes is +0 again."""
    with torch.no_grad():
        weight.mul_(gate)
    if mask is not None:
        _masks.apply_(weight, mask.to(weight.device))


def _heads(
    artifact: Artifact, block: str, adapters: Mapping[str, Adapter], count: int, settings: DseeSettings
) -> Tensor:
    table = tree.family(artifact.model)
    names = [f"{block}.{part}" for part in (table.qkvo[:1] if table.fused else table.qkvo[:3:2])]
    parts = [score_of(n, adapters[n], settings) for n in names]
    if table.fused:
        queries, _, values = parts[0].chunk(3)
        parts = [queries, values]
    return head_score(parts, count)
