"""Cut heads and neurons out of every block by their scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress import blocks, tree
from compress.artifact import Artifact
from compress.context import Context
from passes import _masks
from passes._narrowing.planning import Plan

Units = Mapping[str, int]  # per linear that reads them, how many heads or neurons there are


def units_of(model: PreTrainedModel, plan: Plan) -> list[Units]:
    """Return for each block how many units it has now, by those linears in front of which some go."""
    table, found = tree.family(model), list[Units]()
    for name, was, now in zip(tree.blocks(model), tree.layout(model), plan.facts.layout, strict=True):
        counts = {table.qkvo[-1]: (was.kv_heads, now.kv_heads), table.down: (was.ffn, now.ffn)}
        found.append({f"{name}.{inner}": had for inner, (had, left) in counts.items() if left < had})
    return found


def cut_(artifact: Artifact, plan: Plan, worth: Iterable[Mapping[str, Tensor]], context: Context) -> dict[str, Tensor]:
    """Cut every block to its planned shape and return the masks of what is left.

    Args:
        artifact: the model, with all blocks of the plan.
        plan: the shapes to come.
        worth: block after block, the scores of its units by the linear that reads them, float [units]; the next one is
            asked for when the block is cut.
        context: where progress goes.
    """
    model, wanted, masks = artifact.model, plan.facts.layout, dict(artifact.masks)
    table, names = tree.family(model), list(tree.blocks(model))
    with context.report.bar("blocks", len(wanted)) as bar:
        for index, scores in enumerate(worth):
            heads, neurons = (scores.get(f"{names[index]}.{inner}") for inner in (table.qkvo[-1], table.down))
            cuts = blocks.slice_(
                model,
                index,
                kv_groups=None if heads is None else keep(heads, wanted[index].kv_heads),
                neurons=None if neurons is None else keep(neurons, wanted[index].ffn, plan.groups[index]),
            )
            masks = blocks.cut_masks(masks, cuts)
            bar.advance()
    return masks


def keep(score: Tensor, count: int, group: int = 1) -> Tensor:
    """Return the units that stay, int64 [count] ascending: those of the highest score, the later ones of equals.

    Args:
        score: float [units].
        count: how many; a multiple of the group.
        group: how many neighbours stay or go together, by the sum of their scores; divides the units.
    """
    together = score.view(-1, group).sum(1)
    groups = _masks.keep_n_of_m(together.view(1, -1), count // group, len(together)).view(-1).nonzero().view(-1)
    return (groups[:, None] * group + torch.arange(group, device=groups.device)).reshape(-1).cpu()
