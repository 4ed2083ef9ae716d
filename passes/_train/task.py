"""End to end on training data: the loss of a task, and of the share that is held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BadData
from compress.facts import Task
from passes._train.recipe import TrainSettings, draw, inputs_of

_HELD_OUT = 0.1  # of labelled examples, where the settings do not say


class TaskSettings(TrainSettings):
    """What a pass takes that trains on training data and may judge itself by a part of it."""

    held_out: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the training examples that only choose the best state; 0 = the last state stays; "
        "empty = 0.1 of labelled examples, none of running text",
    )

    def held_out_of(self, task: Task) -> float:
        """Return the share of the training examples that are held out."""
        if self.held_out is None:
            return 0.0 if task == "causal-lm" else _HELD_OUT
        return self.held_out


def loss(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return the mean loss: next-token cross-entropy or cross-entropy in nats, or squared error.

    Args:
        logits: float [batch, tokens, vocabulary] of a causal language model, else [batch, classes] or [batch, 1].
        labels: int64 [batch, tokens] with -100 where no loss is taken, int64 [batch] classes, or float [batch] values.
        task: which of them.
    """
    if task == "regression":
        return functional.mse_loss(logits.float().squeeze(-1), labels.float())
    if task == "causal-lm":
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    total = functional.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=-100)
    return total / (labels != -100).sum().clamp(min=1)


def loss_on(
    artifact: Artifact, settings: TrainSettings, context: Context, rows: Sequence[int] | None = None
) -> Callable[[int], Tensor]:
    """Return the mean loss of training batch i, i = 0, 1, 2, ..., as `train_` asks for it; None takes all rows."""
    model = artifact.model
    examples = context.data["training"].examples(artifact.tokenizer)
    rows = range(len(examples)) if rows is None else rows

    def loss_of(number: int) -> Tensor:
        batch = examples.batch([rows[i] for i in draw(number, len(rows), settings.batch, context.seed)])
        logits = model(**inputs_of(model, batch, context.device)).logits
        return loss(logits, batch["labels"].to(context.device), artifact.task)

    return loss_of


def split_on(
    artifact: Artifact, settings: TaskSettings, context: Context
) -> tuple[Callable[[int], Tensor], Callable[[], float] | None]:
    """Return the mean loss of training batch i and, when a share of the data is held out, the mean loss of that.

    Raises:
        BadData: the share leaves nothing to train on, or nothing to judge by.
    """
    held_out = settings.held_out_of(artifact.task)
    if not held_out:
        return loss_on(artifact, settings, context), None
    count = len(context.data["training"].examples(artifact.tokenizer))
    split = count - round(held_out * count)
    if not 0 < split < count:
        what = f"training: a share of {held_out:g} held out of {count} examples leaves none on one side"
        raise BadData(f"{what}; more data, another held_out or none would do")
    order = draw(0, count, count, context.seed)
    judge = loss_on(artifact, settings, context, order[split:])
    batches = math.ceil((count - split) / settings.batch)

    def judged() -> float:
        return sum(float(judge(i)) for i in range(batches)) / batches

    return loss_on(artifact, settings, context, order[:split]), judged
