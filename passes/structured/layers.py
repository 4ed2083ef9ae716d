"""Which blocks the model misses least."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress import files, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BadModel
from passes._layerwise import Stream, run, windows
from passes._train import autocast, frozen, loss_on
from passes._train.recipe import STRIDE
from passes.structured.settings import StructuredSettings

_ARMS = 3  # subsets that are tried in one round
_SURE = 6.0  # gates beyond this, either way, do not change chances any more, so that others are soon drawn too


def changes(artifact: Artifact, settings: StructuredSettings, context: Context) -> list[float]:
    """Return how much each block changes its input: one minus the cosine of input and output, a mean over tokens."""
    blocks = list(tree.blocks(artifact.model).values())
    doors = Stream(context.folder / "similarity", context.device)
    chunks = windows(artifact, settings.batch, context, "'similarity'", doors)
    total = torch.zeros(len(blocks), dtype=torch.float64)
    for number, chunk in enumerate(chunks):
        hidden = doors.get(number)
        for index, block in enumerate(blocks):
            after = run(block, hidden, chunk.calls[index])
            alike = functional.cosine_similarity(hidden.float(), after.float(), dim=-1)
            total[index] += (1 - alike)[chunk.real].sum().cpu()
            hidden = after
    found: list[float] = (total / sum(int(c.real.sum()) for c in chunks)).tolist()
    return found


def trials(artifact: Artifact, settings: StructuredSettings, context: Context) -> list[float]:
    """Return each block's gate: the higher, the less the model missed the block when it was skipped.

    Every round skips a few subsets of blocks, drawn by the gates' chances p = sigmoid(g), on one training batch, and
    moves the gates of a subset's blocks by rate * advantage * p (1 - p).  The advantage is how much lower its loss was
    than the round's mean, in units of the usual spread within a round.
    """
    blocks = list(tree.blocks(artifact.model).values())
    loss_of = loss_on(artifact, settings, context)
    bandit = _Bandit(len(blocks), settings, context)
    with (
        frozen(artifact.model, settings, context.device),
        torch.no_grad(),
        autocast(settings, context.device),
        context.report.bar("trials", settings.steps, bandit.round) as bar,
    ):
        while bandit.round < settings.steps:
            bandit.play(lambda subset, number: _loss_without(blocks, subset, number, loss_of))
            bar.advance()
    found: list[float] = bandit.gates.tolist()
    return found


class _Bandit:
    """The gates on their way; a killed run resumes from what `save` wrote."""

    def __init__(self, blocks: int, settings: StructuredSettings, context: Context) -> None:
        self.settings, self.context, self.path = settings, context, context.folder / "trials.json"
        self.gates, self.spread, self.round = torch.zeros(blocks, dtype=torch.float64), 0.0, 0
        self.arms = min(_ARMS, math.comb(blocks, settings.layers))
        if self.path.exists():
            found = files.read_json(self.path)
            self.gates, self.spread = torch.tensor(found["gates"], dtype=torch.float64), found["spread"]
            self.round = found["round"]

    def play(self, loss_without: Callable[[list[int], int], float]) -> None:
        """Do one round."""
        random = torch.Generator().manual_seed((self.context.seed + STRIDE * self.round) % 2**63)
        chances = torch.sigmoid(self.gates.clamp(-_SURE, _SURE))
        subsets = dict[tuple[int, ...], float]()
        while len(subsets) < self.arms:
            drawn = torch.multinomial(chances, self.settings.layers, generator=random)
            subsets[tuple(sorted(drawn.tolist()))] = 0.0
        losses = torch.tensor([loss_without(list(s), self.round) for s in subsets], dtype=torch.float64)
        advantages = losses.mean() - losses
        self.round += 1
        self.spread += (float(advantages.square().mean()) - self.spread) / self.round
        if self.spread > 0:
            step = self.settings.rate * chances * (1 - chances) / math.sqrt(self.spread)
            for subset, advantage in zip(subsets, advantages, strict=True):
                self.gates[list(subset)] += advantage * step[list(subset)]
        self.context.report.record("trial_loss", [self.round, float(losses.mean())])
        if self.round % self.settings.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Write the state; numbers survive JSON to the last bit."""
        state = {"gates": self.gates.tolist(), "spread": self.spread, "round": self.round}
        files.write_atomic(self.path, json.dumps(state))


def _loss_without(blocks: list[nn.Module], subset: list[int], number: int, loss_of: Callable[[int], Tensor]) -> float:
    with skipped(blocks[i] for i in subset):
        loss = float(loss_of(number))
    if not math.isfinite(loss):
        raise BadModel(f"without blocks {subset} the loss is {loss}; 'similarity' needs no loss")
    return loss


@contextmanager
def skipped(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Let blocks return what they are given while the context lasts."""
    changed = list(blocks)
    for block in changed:
        block.forward = lambda hidden_states, *_, **__: hidden_states
    try:
        yield
    finally:
        for block in changed:
            del block.forward
