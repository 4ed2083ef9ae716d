"""End to end on training data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from passes import _adapter
from passes._adapter import Adapter
from passes._train import autocast, frozen, loss_on, recomputed, train_
from passes.perp.settings import PerpSettings
from passes.perp.subsets import Chosen, attach_

_PROBES = 4  # batches on which the jump of a merge is measured


def run_(artifact: Artifact, chosen: Chosen, settings: PerpSettings, context: Context) -> None:
    """Train what was chosen with the task's loss and merge it."""
    model = artifact.model
    loss_of = loss_on(artifact, settings, context)
    with frozen(model, settings, context.device):
        groups = attach_(artifact, chosen, settings, context.seed)
        with recomputed(tree.blocks(model).values(), settings.recompute):
            train_(groups, loss_of, settings, context)
        if chosen.form == "lora_prune":
            _merge_with_jump_(artifact, settings, context, loss_of)
        elif chosen.form or chosen.head:
            _adapter.merge_(model)


def _merge_with_jump_(
    artifact: Artifact, settings: PerpSettings, context: Context, loss_of: Callable[[int], Tensor]
) -> None:
    """Merge and report what the mask takes from the update, in norm and in loss."""

    def mean() -> float:
        with torch.no_grad(), autocast(settings, context.device):
            return sum(float(loss_of(i)) for i in range(_PROBES)) / _PROBES

    parts = [m.jump() for m in artifact.model.modules() if isinstance(m, Adapter) and m.mask is not None]
    share = (sum(d for d, _ in parts) / max(sum(w for _, w in parts), 1e-30)) ** 0.5
    before = mean()
    _adapter.merge_(artifact.model)
    after = mean()
    context.report.record("merge_jump", {"norm": share, "loss_before": before, "loss_after": after})
    context.report.note(
        f"the mask takes {share:.1%} of the norm of lora_prune's update; the loss goes from {before:.4f} to {after:.4f}"
    )
