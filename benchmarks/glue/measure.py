"""One cell: fine-tune and prune the encoder through the project's own passes, and measure it on every dev example."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks import _methods
from benchmarks._ledger import Row
from benchmarks._methods import Cell, named
from benchmarks.glue.cells import SPARSITIES, TASKS
from benchmarks.perp.measure import Part
from compress import loading, tree
from compress.artifact import Artifact
from compress.data import DataSettings, Role, Source
from compress.errors import BadData, Diverged
from compress.evaluate import evaluate
from passes._train import draw

_TUNING = 256  # training examples that choose the learning rate and train nothing
_SEED = 0  # of which examples are taken; the cells' seeds only order them


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all cells of a run share.

    Attributes:
        model: a folder.
        data: a folder with one folder for each task, `train.jsonl` (or `.jsonl.gz`) and `dev.jsonl` in it.
        steps: optimizer steps of every method.
        batch: examples a step.
        length: tokens after which an example is cut.
        held_out: training examples by which each training chooses its best state.
        dev: dev examples that are used; 0 = all.
    """

    model: str
    data: str
    steps: int
    batch: int
    length: int
    held_out: int
    dev: int


class Bench:
    """The encoder, one task, and what is done with both."""

    def __init__(self, setup: Setup, task: str, cache: Path) -> None:
        self.setup, self.task, self.cache = setup, TASKS[task], cache
        train, dev = (self._examples(role) for role in ("training", "evaluation"))
        order = draw(0, len(train), len(train), _SEED)
        self.tuning, self.training = Part(train, order[:_TUNING]), Part(train, order[_TUNING:])
        self.dev = Part(dev, draw(0, len(dev), setup.dev or len(dev), _SEED))

    def start(self, seed: int) -> Artifact:
        """Return the encoder with a fresh classifier."""
        torch.manual_seed(seed)
        labels = 2 if self.task.kind == "classification" else None
        model, tokenizer = loading.open_source(self.setup.model, self.task.kind, labels=labels)
        return Artifact(model=model, tokenizer=tokenizer, task=self.task.kind)

    @cached_property
    def truth(self) -> list[float]:
        """The label of every dev example."""
        return [float(v) for v in self.dev.batch(list(range(len(self.dev))))["labels"].tolist()]

    def run(self, cell: Cell) -> Iterator[Row]:
        """Yield everything measured of a cell; after `full`, of its prunings by magnitude too."""
        started, prunings = time.monotonic(), cell.prunings(SPARSITIES)
        try:
            trainable, artifact = self.through(cell, self.start(cell.seed), self.setup.steps)
        except Diverged as error:
            yield from ({**named(c), "diverged": str(error), "tuning": -math.inf} for c in (cell, *prunings))
            return
        yield self._row(cell, artifact, trainable, started)
        for pruned in prunings:
            again = artifact.after(model=copy.deepcopy(artifact.model))
            yield self._row(pruned, self.through(pruned, again, 0)[1], trainable, time.monotonic())

    def through(self, cell: Cell, artifact: Artifact, steps: int, **more: Any) -> tuple[int, Artifact]:
        """Run the cell's pass as the pipeline would; return what it says it trains, and the artifact."""
        given = self.setup
        return _methods.through(
            cell, artifact, self.training, steps=steps, batch=given.batch, held_out=given.held_out, **more
        )

    def _row(self, cell: Cell, artifact: Artifact, trainable: int, started: float) -> Row:
        model, kind = artifact.model, self.task.kind
        tuning, dev = (evaluate(artifact, part, kind) for part in (self.tuning, self.dev))
        return {
            **named(cell),
            "predicted": [round(v, 5) for v in dev.samples["predicted" if kind == "classification" else "score"]],
            "tuning": tuning[self.task.metric].value,
            "trainable": trainable,
            "parameters": sum(p.numel() for p in model.parameters()),
            "zeros": sum(1 - m.float().mean().item() for m in artifact.masks.values()) / max(len(artifact.masks), 1),
            "flops": self.dense_flops,
            "flops_kept": flops(model, self.tokens),
            "seconds": round(time.monotonic() - started, 1),
        }

    @cached_property
    def dense_flops(self) -> int:
        """What the encoder takes before anything is pruned."""
        return flops(self.start(0).model, self.tokens)

    @cached_property
    def tokens(self) -> int:
        """The mean length of a dev example."""
        mask = self.dev.batch(list(range(len(self.dev))))["attention_mask"]
        return round(float(mask.sum(1).float().mean()))

    def _examples(self, role: Role) -> Any:
        folder, name = Path(self.setup.data) / self.task.name, "train" if role == "training" else "dev"
        paths = [p for p in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if p.exists()]
        if not paths:
            raise BadData(f"{folder}: no {name}.jsonl in it; --data names a folder with one folder for each task")
        windows = self.task.train if role == "training" else 0
        settings = DataSettings(source=str(paths[0]), windows=windows, length=self.setup.length)
        return Source(settings, role, self.task.kind, _SEED, self.cache).examples(self.start(0).tokenizer)


def flops(model: PreTrainedModel, tokens: int) -> int:
    """Return the products and sums of the blocks for one sequence, those of zero weights left out.

    Two for each weight and token, four for each pair of tokens and each channel of the attention (its scores and their
    use); norms, activations, embeddings and the head are left out.
    """
    channels = sum(block.heads * block.head_dim for block in tree.layout(model))
    weights = sum(int(m.weight.count_nonzero()) for m in tree.block_linears(model).values())
    return 2 * tokens * weights + 4 * tokens**2 * channels
