"""End to end on training data: the loss of a task, the distance to the dense parent, and both on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from compress.artifact import Artifact
from compress.context import Context
from compress.data.examples import IGNORED
from compress.errors import BadData, BadSettings
from compress.facts import Task
from passes._train.recipe import TURN, TrainSettings, draw, frozen, inputs_of

Objective = Literal["lm", "kl", "both"]  # the task's own loss, the distance to the parent's outputs, their sum

_HELD_OUT = 0.1  # of labelled examples, where the settings do not say
_LOOKS = 10  # at what is held out, of a training
_LEAST = 64  # examples that such a look judges by, where as many are held out


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
    total = functional.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORED)
    return total / (labels != IGNORED).sum().clamp(min=1)


def divergence(outputs: Tensor, parent: Tensor, task: Task, counted: Tensor | None = None) -> Tensor:
    """Return how far outputs are from the dense parent's.

    Of logits that is the mean of KL(parent || model) in nats; of values the mean squared difference, as between
    Gaussians of one width; of embeddings the squared difference as a share of the parent's square.

    Args:
        outputs: logits `[..., classes]`, values `[batch, 1]`, or hidden states `[batch, tokens, width]`.
        parent: the parent's, of the same shape.
        task: which of them.
        counted: bool `[batch, tokens]`, which tokens count; None where there is one output for each example.
    """
    if counted is not None:
        outputs, parent = outputs[counted], parent[counted]
    outputs, parent = outputs.float(), parent.float()
    if task in ("regression", "embedding"):
        scale = parent.square().mean() if task == "embedding" else 1
        return functional.mse_loss(outputs, parent) / scale
    ours, theirs = outputs.log_softmax(-1), parent.log_softmax(-1)
    return functional.kl_div(ours, theirs, reduction="sum", log_target=True) / max(len(ours), 1)


@dataclass(frozen=True)
class Teacher:
    """The dense parent beside the model that is trained.

    Attributes:
        model: the parent's, frozen.
        alone: whether the distance to it is the whole loss; else the task's loss is added.
    """

    model: PreTrainedModel
    alone: bool


@contextmanager
def parent_of(settings: TrainSettings, context: Context, what: str, *, key: str) -> Iterator[PreTrainedModel]:
    """Yield the dense parent's model on the context's device, frozen while the context lasts.

    Args:
        settings: of the training.
        context: hands the parent over.
        what: who needs it, for the message.
        key: the setting that asks for it.

    Raises:
        BadSettings: nobody hands it over.
    """
    if context.parent is None:
        raise BadSettings(f"{what} needs the dense parent, which only a pipeline hands over", key=key)
    model = context.parent().model.to(context.device)  # type: ignore[arg-type]
    with frozen(model, settings, context.device):
        yield model


def batches_of(
    artifact: Artifact, settings: TrainSettings, context: Context, rows: Sequence[int] | None = None
) -> Callable[[int], dict[str, Tensor]]:
    """Return training batch i of some rows (None: of all), i = 0, 1, 2, ..., on the context's device.

    Passes of one chain that train one after the other read the rows in different orders: not the first ones each.
    """
    seed = context.seed + TURN * context.turn
    examples = context.data["training"].examples(artifact.tokenizer)
    rows = range(len(examples)) if rows is None else rows

    def batch_of(number: int) -> dict[str, Tensor]:
        batch = examples.batch([rows[i] for i in draw(number, len(rows), settings.batch, seed)])
        return {n: t.to(context.device) for n, t in batch.items()}

    return batch_of


def loss_on(
    artifact: Artifact,
    settings: TrainSettings,
    context: Context,
    rows: Sequence[int] | None = None,
    teacher: Teacher | None = None,
) -> Callable[[int], Tensor]:
    """Return the mean loss of training batch i, i = 0, 1, 2, ..., as `train_` asks for it; None takes all rows.

    Of a causal language model that is the next tokens' cross-entropy, of classes cross-entropy, of values the squared
    error; with a teacher, the distance to its outputs too, or alone.
    """
    model, task = artifact.model, artifact.task
    batch_of = batches_of(artifact, settings, context, rows)

    def loss_of(number: int) -> Tensor:
        batch = batch_of(number)
        outputs = outputs_of(model, batch, task)
        own = not teacher or not teacher.alone
        value = loss(outputs, batch["labels"], task) if own else outputs.new_zeros(())
        if teacher:
            with torch.no_grad():
                wanted = outputs_of(teacher.model, batch, task)
            value = value + divergence(outputs, wanted, task, counted(batch, task))
        return value

    return loss_of


def outputs_of(model: PreTrainedModel, batch: Mapping[str, Tensor], task: Task) -> Tensor:
    """Return a model's logits, values or, of an embedding model, last hidden states for a batch."""
    found = model(**inputs_of(model, batch, model.device))
    return found.last_hidden_state if task == "embedding" else found.logits  # type: ignore[no-any-return]


def counted(batch: Mapping[str, Tensor], task: Task) -> Tensor | None:
    """Return which tokens' outputs are compared: those that predict a token with a label, or that are no padding."""
    if task == "embedding":
        return batch["attention_mask"].bool()
    if task != "causal-lm":
        return None
    return functional.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))


def look_every(steps: int) -> int:
    """Return after how many steps of a training what is held out is looked at."""
    return max(steps // _LOOKS, 1)


def split_of(artifact: Artifact, settings: TaskSettings, context: Context) -> tuple[list[int], list[int]]:
    """Return which training examples are trained on, and which judge: of a held-out share above 0, one at least.

    Of a large share a part judges, as many examples as are trained on from one look to the next, so that a short
    training is not mostly judging.

    Raises:
        BadData: the share leaves nothing to train on.
    """
    held_out = settings.held_out_of(artifact.task)
    count = len(context.data["training"].examples(artifact.tokenizer))
    split = count - (max(round(held_out * count), 1) if held_out else 0)
    if not split:
        what = f"training: a share of {held_out:g} held out of {count} examples leaves none to train on"
        raise BadData(f"{what}; more data, another held_out or none would do")
    order = draw(0, count, count, context.seed)
    judges = max(math.ceil(settings.steps / _LOOKS) * settings.batch, _LEAST)
    return order[:split], order[split : split + judges]


def split_on(
    artifact: Artifact, settings: TaskSettings, context: Context, teacher: Teacher | None = None
) -> tuple[Callable[[int], Tensor], Callable[[], float] | None]:
    """Return the mean loss of training batch i and, when a share of the data is held out, the mean loss of that.

    Raises:
        BadData: the share leaves nothing to train on.
    """
    if not settings.held_out_of(artifact.task):
        return loss_on(artifact, settings, context, teacher=teacher), None
    rows, held_out = split_of(artifact, settings, context)
    judge = loss_on(artifact, settings, context, held_out, teacher)
    return loss_on(artifact, settings, context, rows, teacher), partial(mean_of, judge, len(held_out), settings)


def mean_of(loss_of: Callable[[int], Tensor], count: int, settings: TrainSettings) -> float:
    """Return the mean loss of the batches that so many rows make."""
    batches = math.ceil(count / settings.batch)
    return sum(float(loss_of(i)) for i in range(batches)) / batches
