"""One cell: fine-tune and prune the encoder through the project's own passes, and measure it on every dev example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import _methods
from benchmarks._ledger import Row
from benchmarks.glue.cells import SPARSITIES, TASKS
from benchmarks.perp.measure import Part
from compress import loading
from compress.artifact import Artifact
from compress.data import DataSettings, Role, Source
from compress.errors import BadData
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


class Bench(_methods.Bench):
    """The encoder, one task, and what is done with both."""

    def __init__(self, setup: Setup, task: str, cache: Path) -> None:
        self.setup, self.task, self.cache = setup, TASKS[task], cache
        train, dev = (self._examples(role) for role in ("training", "evaluation"))
        order = draw(0, len(train), len(train), _SEED)
        self.tuning, training = Part(train, order[:_TUNING]), Part(train, order[_TUNING:])
        self.dev = Part(dev, draw(0, len(dev), setup.dev or len(dev), _SEED))
        every = self.dev.batch(list(range(len(self.dev))))
        self.truth = [float(v) for v in every["labels"].tolist()]
        super().__init__(setup, training, round(float(every["attention_mask"].sum(1).float().mean())), SPARSITIES)

    def start(self, seed: int) -> Artifact:
        """Return the encoder with a fresh classifier."""
        torch.manual_seed(seed)
        labels = 2 if self.task.kind == "classification" else None
        model, tokenizer = loading.open_source(self.setup.model, self.task.kind, labels=labels)
        return Artifact(model=model, tokenizer=tokenizer, task=self.task.kind)

    def judged(self, artifact: Artifact) -> Row:
        """Return the metric of the tuning slice, and the answer to every dev example."""
        kind = self.task.kind
        tuning, dev = (evaluate(artifact, part, kind) for part in (self.tuning, self.dev))
        return {
            "predicted": [round(v, 5) for v in dev.samples["predicted" if kind == "classification" else "score"]],
            "tuning": tuning[self.task.metric].value,
        }

    def _examples(self, role: Role) -> Any:
        folder, name = Path(self.setup.data) / self.task.name, "train" if role == "training" else "dev"
        paths = [p for p in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if p.exists()]
        if not paths:
            raise BadData(f"{folder}: no {name}.jsonl in it; --data names a folder with one folder for each task")
        windows = self.task.train if role == "training" else 0
        settings = DataSettings(source=str(paths[0]), windows=windows, length=self.setup.length)
        return Source(settings, role, self.task.kind, _SEED, self.cache).examples(self.start(0).tokenizer)
