"""End to end on training data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Task
from passes import _adapter
from passes._adapter import Adapter
from passes._train import autocast, draw, frozen, recomputed, train_
from passes.perp.settings import PerpSettings
from passes.perp.subsets import Chosen, attach_

_PROBES = 4  # batches on which the jump of a merge is measured


def loss_of_batch(model: PreTrainedModel, batch: dict[str, Tensor], task: Task) -> Tensor:
    """Return the mean loss of a batch.

    Args:
        model: a causal language model, a classifier or a regressor.
        batch: what the model reads, int64 [batch, tokens] each; labels: int64 [batch, tokens] with -100 where no loss
            is taken, the classes [batch], or the values [batch].
        task: which of them; next-token cross-entropy in nats, cross-entropy in nats, or squared error.
    """
    inputs = {n: t for n, t in batch.items() if n != "labels"}
    labels, logits = batch["labels"], model(**inputs).logits.float()
    if task == "regression":
        return functional.mse_loss(logits.squeeze(-1), labels.float())
    if task == "causal-lm":
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    total = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
    return total / (labels != -100).sum().clamp(min=1)


def run_(artifact: Artifact, chosen: Chosen, settings: PerpSettings, context: Context) -> None:
    """Train what was chosen with the task's loss and merge it."""
    model = artifact.model
    examples = context.data["training"].examples(artifact.tokenizer)

    def loss_of(number: int) -> Tensor:
        batch = examples.batch(draw(number, len(examples), settings.batch, context.seed))
        return loss_of_batch(model, {n: t.to(context.device) for n, t in batch.items()}, artifact.task)

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

    def loss() -> float:
        with torch.no_grad(), autocast(settings, context.device):
            return sum(float(loss_of(i)) for i in range(_PROBES)) / _PROBES

    parts = [m.jump() for m in artifact.model.modules() if isinstance(m, Adapter)]
    share = (sum(d for d, _ in parts) / max(sum(w for _, w in parts), 1e-30)) ** 0.5
    before = loss()
    _adapter.merge_(artifact.model)
    after = loss()
    context.report.record("merge_jump", {"norm": share, "loss_before": before, "loss_after": after})
    context.report.note(
        f"the mask takes {share:.1%} of the norm of lora_prune's update; the loss goes from {before:.4f} to {after:.4f}"
    )
