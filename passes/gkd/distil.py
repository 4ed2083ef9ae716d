"""The distance of a student to its dense parent, hidden states and outputs, and the training that lowers it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.facts import Task
from passes._layerwise import first
from passes._train import (
    Group,
    Team,
    batches_of,
    counted,
    divergence,
    frozen,
    look_every,
    loss,
    mean_of,
    outputs_of,
    parent_of,
    recomputed,
    split_of,
    thaw_,
    train_,
)
from passes.gkd.settings import GkdSettings

Loss = Callable[[int], Tensor]


def distil_(artifact: Artifact, names: Collection[str], settings: GkdSettings, context: Context, team: Team) -> None:
    """Train the named parameters of the artifact's model towards the dense parent.

    Raises:
        BadSettings: nobody hands the parent over.
        BadData: too few training examples to hold some out.
    """
    model, device = artifact.model, context.device
    with (
        parent_of(settings, context, "gkd", key="use") as parent,
        frozen(model, settings, device),
        recomputed(tree.blocks(model).values(), settings.recompute),
        _watched(artifact, parent, settings, context) as watched,
    ):
        named = {n: p for n, p in model.named_parameters() if n in set(names)}
        thaw_(named.values())
        if settings.sharding == "fsdp":
            team.shard_(parent)
            team.shard_(model)
            named = {n: p for n, p in model.named_parameters() if n in named}
        masks = {f"{n}.weight": m for n, m in artifact.masks.items() if f"{n}.weight" in named}
        loss_of, judge = _losses(artifact, parent, watched, settings, context)
        done = train_(
            [Group(named, settings.lr, settings.weight_decay, masks)],
            loss_of,
            settings,
            context,
            validate=judge,
            every=look_every(settings.steps),
            team=team,
        )
    for step, value in done.validations:
        context.report.record("held_out_divergence", [step, value])
    if judge:
        was, now = done.validations[0][1], dict(done.validations)[done.best]
        context.report.note(
            f"the state after step {done.best} of {settings.steps} is nearest to the parent on what is held out: "
            f"{now:.4g} after {was:.4g}"
        )


def distance(
    outputs: tuple[Tensor, Tensor],
    hidden: Sequence[tuple[Tensor, Tensor]],
    batch: Mapping[str, Tensor],
    task: Task,
    settings: GkdSettings,
) -> Tensor:
    """Return the loss of a batch: `cosine * sum_i mean(1 - cos(h_i, h'_i)) + kl * D(outputs) + lm * L(task)`.

    Args:
        outputs: the student's and the parent's.
        hidden: the student's and the parent's hidden states, float `[batch, tokens, width]` each, one pair for each
            place at which they are matched; tokens that are padding do not count.
        batch: what both were given.
        task: of the model; D is the KL of softened logits, else as `divergence` has it.
        settings: the weights.
    """
    ours, theirs = outputs
    total = ours.new_zeros((), dtype=torch.float32)
    if settings.cosine:
        real = batch["attention_mask"].bool()
        total = total + settings.cosine * sum(apart(h[real], g[real]) for h, g in hidden)
    if settings.kl:
        soft = settings.temperature
        apart_ = divergence(ours / soft, theirs / soft, task, counted(batch, task)) * soft**2
        total = total + settings.kl * apart_
    if settings.lm:
        total = total + settings.lm * loss(ours, batch["labels"], task)
    return total


def apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean over rows of `1 - cos`, float `[rows, width]` each."""
    return (1 - functional.cosine_similarity(ours.float(), theirs.float(), dim=-1)).mean()


class Watched:
    """The hidden states of the last call of each model at the matched places, the student's first."""

    def __init__(self, places: Sequence[tuple[nn.Module, nn.Module]]) -> None:
        self.places = places
        self._seen: list[dict[int, Tensor]] = [{}, {}]

    def note(self, who: int, place: int, module: nn.Module, args: Any, output: Any) -> None:
        """Keep what a block gave."""
        self._seen[who][place] = first(output)

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """Return what was seen, pair by pair, and forget it."""
        ours, theirs = self._seen
        pairs = [(ours[i], theirs[i]) for i in range(len(self.places))]
        self._seen = [{}, {}]
        return pairs


@contextmanager
def _watched(artifact: Artifact, parent: PreTrainedModel, settings: GkdSettings, context: Context) -> Iterator[Watched]:
    """Match the blocks and note what they give, while the context lasts."""
    ours, theirs = (list(tree.blocks(m).values()) for m in (artifact.model, parent))
    pairs = list(zip(ours, theirs, strict=False))
    if settings.layers == "blocks" and settings.cosine and len(ours) != len(theirs):
        context.report.note(
            f"the model has {len(ours)} blocks and its parent {len(theirs)}, and which of them are gone is not known: "
            "only what the last blocks give is matched"
        )
    if settings.layers == "last" or len(ours) != len(theirs):
        pairs = [(ours[-1], theirs[-1])]
    watched = Watched(pairs if settings.cosine else [])
    hooks = [
        block.register_forward_hook(partial(watched.note, who, place))
        for place, pair in enumerate(watched.places)
        for who, block in enumerate(pair)
    ]
    try:
        yield watched
    finally:
        for hook in hooks:
            hook.remove()


def _losses(
    artifact: Artifact, parent: PreTrainedModel, watched: Watched, settings: GkdSettings, context: Context
) -> tuple[Loss, Callable[[], float] | None]:
    """Return the loss of training batch i, and how far the outputs on held-out rows are, if there are such rows."""
    model, task = artifact.model, artifact.task
    rows, held_out = split_of(artifact, settings, context)
    batch_of, judged_of = (batches_of(artifact, settings, context, part) for part in (rows, held_out))

    def both(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            wanted = outputs_of(parent, batch, task)
        return outputs_of(model, batch, task), wanted

    def loss_of(number: int) -> Tensor:
        batch = batch_of(number)
        outputs = both(batch)
        return distance(outputs, watched.take(), batch, task, settings)

    def judged(number: int) -> Tensor:
        batch = judged_of(number)
        found = divergence(*both(batch), task, counted(batch, task))
        watched.take()
        return found

    return loss_of, partial(mean_of, judged, len(held_out), settings) if held_out else None
