"""Changes to blocks, one by one: made, led to the end of the model, judged and noted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import files, tree
from compress.artifact import Artifact
from compress.context import Bar, Context
from compress.errors import BadModel
from passes._layerwise import Call, calls, first, run
from passes._sensitivity.judge import Judge, Kind
from passes._sensitivity.score import Score
from passes._train import draw, inputs_of

_BATCH = 4  # windows at once


@dataclass(frozen=True, kw_only=True)
class Change:
    """Other weights for linears of one block.

    Attributes:
        key: its name, of its own among all changes.
        names: the linears.
        made: returns from the name of one and its weight `[out, in]` the other weight, which may have another dtype.
        reads: returns what they read instead, from what they read, float [..., tokens, in]; None = what they read.
    """

    key: str
    names: Sequence[str]
    made: Callable[[str, Tensor], Tensor]
    reads: Callable[[Tensor], Tensor] | None = None

    def inside(self, block: str) -> bool:
        """Tell whether it is about a block of this name."""
        return self.names[0].startswith(f"{block}.")


@dataclass(frozen=True, kw_only=True)
class Swap:
    """Another module in a block's place.

    Attributes:
        key: its name, of its own among all changes.
        block: the block's name.
        made: returns the module, called as the block is; asked for while the block holds real weights.
    """

    key: str
    block: str
    made: Callable[[], nn.Module]

    def inside(self, block: str) -> bool:
        """Tell whether it is about a block of this name."""
        return self.block == block


def distances(
    artifact: Artifact, changes: Sequence[Change | Swap], windows: int, context: Context, journal: Path
) -> dict[str, float]:
    """Return by key how far each change by itself takes the model's outputs, as `scores` does, without the rows."""
    return {key: score.mean for key, score in scores(artifact, changes, windows, context, journal).items()}


@torch.no_grad()
def scores(
    artifact: Artifact,
    changes: Sequence[Change | Swap],
    windows: int,
    context: Context,
    journal: Path,
    kind: Kind = "kl",
    company: Sequence[Swap] = (),
) -> dict[str, Score]:
    """Return by key how far each change by itself takes the model's outputs; the model stays as it is.

    Cost: a forward of the windows through half of the blocks, and the head, for each change; the hidden states of all
    changes to one block are held at once.

    Args:
        artifact: on the context's device; one block is opened at a time.
        changes: in any order.
        windows: how many rows of the calibration data are drawn, if there are as many.
        context: data, device, seed and report.
        journal: a file that holds what was judged already, by these rows and this formula; written after each block.
        kind: the formula, as `Judge` has them.
        company: what stands in other blocks' places while changes are judged, one a block at most; outputs are still
            held against those of the model as it is.

    Raises:
        BadModel: outputs are NaN or infinite.
        BadData: the rows have no labels, where the formula needs some.
    """
    kept: dict[str, Any] = files.read_json(journal) if journal.exists() else {"weights": [], "sums": {}}
    found: dict[str, list[float]] = kept["sums"]
    names = list(tree.blocks(artifact.model))
    todo = [[c for c in changes if c.inside(block)] for block in names]
    blocks_left = [len(names) - index for index in range(len(names))]
    done = [sum(c.key in found for c in here) * left for here, left in zip(todo, blocks_left, strict=True)]
    total = [len(here) * left for here, left in zip(todo, blocks_left, strict=True)]
    if done != total:
        artifact.model.train(False)
        walk = _Walk(artifact, windows, context, kind, company)
        kept["weights"] = list(walk.judge.weights)
        with context.report.bar("sensitivity", sum(total), sum(done)) as bar:
            for index, here in enumerate(todo):
                if missing := [c for c in here if c.key not in found]:
                    found |= walk.judged(index, missing, bar)
                    files.write_json(journal, kept)
                walk.advance(index)
    return {c.key: Score(tuple(found[c.key]), tuple(kept["weights"])) for c in changes}


class _Walk:
    """The windows on their way through the model as it is, at the door of one block after the other."""

    def __init__(self, artifact: Artifact, windows: int, context: Context, kind: Kind, company: Sequence[Swap]) -> None:
        self.artifact, self.names = artifact, list(tree.blocks(artifact.model))
        self.company: dict[str, Swap] = {}  # none until the model as it is has been heard
        examples = context.data["calibration"].examples(artifact.tokenizer)
        rows = draw(0, len(examples), windows, context.seed)
        batches = [examples.batch(rows[at : at + _BATCH]) for at in range(0, len(rows), _BATCH)]
        given = [calls(artifact.model, inputs_of(artifact.model, b, context.device)) for b in batches]
        self.calls: list[Sequence[Call]] = [call for call, _ in given]
        self.hidden = door = [hidden for _, hidden in given]
        for index in range(len(self.names)):
            self.advance(index)
        self.judge = Judge(artifact, batches, self.hidden, kind)
        self.hidden = door
        self.company = {swap.block: swap for swap in company}

    def advance(self, index: int) -> None:
        """Let the windows pass a block."""
        with self._opened(index) as block:
            self.hidden = self._passed(block, index, self.hidden)

    @contextmanager
    def _opened(self, index: int) -> Iterator[nn.Module]:
        """Open a block, or what stands in its place."""
        name = self.names[index]
        with self.artifact.opened(name) as block:
            yield self.company[name].made() if name in self.company else block

    def judged(self, index: int, changes: Sequence[Change | Swap], bar: Bar) -> dict[str, list[float]]:
        """Return how far each change to the block of this number takes the outputs, row by row."""
        with self.artifact.opened(self.names[index]) as block:
            models = [self._changed(block, index, change) for change in changes]
            bar.advance(len(changes))
        for later in range(index + 1, len(self.names)):
            with self._opened(later) as block:
                models = [self._passed(block, later, hidden) for hidden in models]
                bar.advance(len(changes))
        found = dict(zip((c.key for c in changes), self.judge.rows(models), strict=True))
        for key, distances in found.items():
            if not all(map(math.isfinite, distances)):
                raise BadModel(f"{key}: the outputs with this change, or without, are NaN or infinite")
        return found

    def _changed(self, block: nn.Module, index: int, change: Change | Swap) -> list[Tensor]:
        """Return what the block gives with a change."""
        if isinstance(change, Swap):
            return self._passed(change.made(), index, self.hidden)
        new: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name in change.names:
                inner = name.removeprefix(f"{self.names[index]}.")
                old = block.get_parameter(f"{inner}.weight").detach()
                new[f"{inner}.weight"] = change.made(name, old).to(old)
                if change.reads:
                    hooks.enter_context(block.get_submodule(inner).register_forward_pre_hook(_reading(change.reads)))
            return self._passed(block, index, self.hidden, new)

    def _passed(
        self, block: nn.Module, index: int, hidden: Sequence[Tensor], new: Mapping[str, Tensor] | None = None
    ) -> list[Tensor]:
        """Return what the block makes of hidden states, with new parameters where they are given."""
        if not new:
            return [run(block, h, c[index]) for h, c in zip(hidden, self.calls, strict=True)]
        found = []
        for h, c in zip(hidden, self.calls, strict=True):
            args, kwargs = c[index]
            found.append(first(torch.func.functional_call(block, dict(new), (h, *args), kwargs)))
        return found


def _reading(reads: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return a hook by which a module reads something else."""
    return lambda _, args: (reads(args[0]), *args[1:])
