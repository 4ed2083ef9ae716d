"""The one training loop: AdamW over named tensors, the same bytes whether it ran through or was killed and resumed.

What a step draws (data, dropout) comes from the seed and the step's number alone, so the state is small: the trained
tensors, AdamW's moments and the curve.  It is written before an update and after the loss of that very state proved
finite, so what is on disk is always good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from compress.context import Context
from passes._train.cost import cost
from passes._train.launch import launch_
from passes._train.loop import Companion, Loop
from passes._train.parts import classifier, count_whole, heads_of, norms_of, pruned_of, thaw_, whole_names
from passes._train.recipe import Group, Trained, TrainSettings, autocast, draw, frozen, inputs_of, lr_factor, recomputed
from passes._train.task import (
    Objective,
    TaskSettings,
    Teacher,
    batches_of,
    counted,
    divergence,
    look_every,
    loss,
    loss_on,
    mean_of,
    outputs_of,
    parent_of,
    split_of,
    split_on,
)
from passes._train.team import Team, TeamSettings

ALONE = Team()

__all__ = [
    "ALONE",
    "Companion",
    "Group",
    "Objective",
    "TaskSettings",
    "Teacher",
    "Team",
    "TeamSettings",
    "TrainSettings",
    "Trained",
    "autocast",
    "batches_of",
    "classifier",
    "cost",
    "count_whole",
    "counted",
    "divergence",
    "draw",
    "frozen",
    "heads_of",
    "inputs_of",
    "launch_",
    "look_every",
    "loss",
    "loss_on",
    "lr_factor",
    "mean_of",
    "norms_of",
    "outputs_of",
    "parent_of",
    "pruned_of",
    "recomputed",
    "split_of",
    "split_on",
    "thaw_",
    "train_",
    "whole_names",
]


def train_(
    groups: Sequence[Group],
    loss_of: Callable[[int], Tensor],
    settings: TrainSettings,
    context: Context,
    *,
    name: str = "train",
    curve: str | None = "loss",
    validate: Callable[[], float] | None = None,
    every: int = 20,
    since: int = 0,
    companion: Companion | None = None,
    team: Team = ALONE,
) -> Trained:
    """Train the groups' tensors in place.

    Args:
        groups: what is trained; nothing else may need a gradient.
        loss_of: the mean loss of batch i, i = 0, 1, 2, ..., the same whenever it is asked for.
        settings: how.
        context: device, seed, and where checkpoints and figures go.
        name: of the bar and the checkpoint; unique within a pass.
        curve: under which (step, loss, learning rate of the first group) is recorded; None = nowhere.
        validate: a value, the lower the better; the state with the lowest stays, the first one included, and training
            stops when it no longer falls.
        every: steps between two validations.
        since: the first step whose state counts: what is trained still changes before, so nothing is validated, nor is
            a loss compared with one from before.
        companion: acts after each update, and is kept and resumed with the training.
        team: the processes that train together, of which this is one.

    Raises:
        Diverged: a loss, a gradient or a tensor is NaN or infinite, or the loss ran away; the tensors are then what
            the last checkpoint, which stays, holds.
    """
    loop = Loop(groups, settings, context, name, curve, validate, since, companion, team)
    if loop.path.exists():
        loop.load()
    for step, value in enumerate(loop.done.curve):
        loop.record(step, value)
    with context.report.bar(name, settings.steps, loop.step) as bar:
        while loop.step < settings.steps:
            if validate and loop.step >= since and loop.step % every == 0 and not loop.improves():
                break
            loop.advance(loss_of, bar)
    loop.finish()
    return loop.done
