"""One cell: fine-tune and prune the decoder through the project's own passes, measure its loss, let it write."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import _methods
from benchmarks._ledger import Row
from benchmarks.nlg import pairs, text
from benchmarks.nlg.cells import SPARSITIES
from benchmarks.perp.measure import Part
from compress import files, loading, registry
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Exporter, Target
from compress.data import encode_answer
from compress.engines import Engines
from compress.errors import BadData
from compress.evaluate import evaluate
from compress.generate import tokens
from passes._train import draw

_TUNING = 32  # training inputs that choose the learning rate and train nothing
_SEED = 0  # of which inputs are taken; the cells' seeds only order them


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all cells of a run share.

    Attributes:
        model: a folder.
        data: a folder with one folder for each task.
        steps: optimizer steps of every method.
        batch: pairs a step.
        length: tokens after which a pair is cut.
        held_out: training pairs by which each training chooses its best state.
        train: training inputs that are used; 0 = all.
        test: test inputs that are used; 0 = all.
        references: of an input, those on which the loss is measured; 0 = all.  Texts are held against all.
        written: the most tokens of a text.
    """

    model: str
    data: str
    steps: int
    batch: int
    length: int
    held_out: int
    train: int
    test: int
    references: int
    written: int


class Bench(_methods.Bench):
    """The decoder, one task, and what is done with both."""

    def __init__(self, setup: Setup, task: str, cache: Path) -> None:
        model, self.tokenizer = loading.open_source(setup.model, "causal-lm")
        self.dense = Artifact(model=model, tokenizer=self.tokenizer)
        folder = Path(setup.data) / task
        (told, known), (asked, new) = (pairs.read(folder, s) for s in (pairs.TRAINING, pairs.EVALUATION))
        if len(known) <= _TUNING:
            raise BadData(f"{told}: {len(known)} inputs are too few; give more than the {_TUNING} that choose the rate")
        self.test = _some(new, setup.test)
        known = _some(known, setup.train + _TUNING if setup.train else 0)
        self.tuning, (training, owners), self.evaluation = (
            pairs.examples(rows, self.tokenizer, setup.length, cache / f"{task}-{name}.jsonl", most)
            for name, rows, most in (
                ("tuning", known[:_TUNING], setup.references),
                ("training", known[_TUNING:], 0),
                ("test", self.test, setup.references),
            )
        )
        self.about: Row = {
            "training": [told.name, len(known) - _TUNING, len(owners)],
            "test": [asked.name, len(self.test), len(self.evaluation[1])],
            "digest": files.digest_of([files.sha256(p) for p in (told, asked)])[:12],
        }
        length = round(float(self.evaluation[0].lengths.float().mean()))
        super().__init__(setup, Part(training, range(len(owners))), length, SPARSITIES)

    def start(self, seed: int) -> Artifact:
        """Return the decoder."""
        return self.dense

    def judged(self, artifact: Artifact) -> Row:
        """Return the loss on the tuning pairs, what each test input's references cost, and what the texts come to."""
        return {
            **self.paid(artifact),
            **text.counted(self.texts(artifact), [m.references for m in self.test]),
            "tuning": -evaluate(artifact, self.tuning[0], "causal-lm")["nats_per_token"].value,
        }

    def paid(self, artifact: Artifact) -> Row:
        """Return of each test input the `nats` and `tokens` of its references, their ends among them."""
        examples, owners = self.evaluation
        found = evaluate(artifact, examples, "causal-lm").samples
        count = np.asarray(found["tokens"])
        nats = np.bincount(owners, np.asarray(found["loss"]) * count)
        return {"nats": nats.round(4).tolist(), "tokens": np.bincount(owners, count).astype(int).tolist()}

    def texts(self, artifact: Artifact) -> list[str]:
        """Return what the artifact's engine writes for each test input, greedily."""
        found = registry.load("exporters", "onnx", Exporter)
        prompts = [encode_answer(self.tokenizer, m.prompt, "")[0] for m in self.test]
        longest, most = max(map(len, prompts)), self.setup.written
        target = Target(prompt=longest, generate=most, threads=torch.get_num_threads())
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work, "engine")
            folder.mkdir()
            Engines().build(artifact, found(found.Settings()), target, folder, Context(folder=Path(work)))
            engine = Engines().open(folder)
            try:
                written = [list(tokens(engine, ids, most)) for ids in prompts]
            finally:
                engine.close()
        decode: Any = self.tokenizer.decode
        return [decode(ids, skip_special_tokens=True).strip() for ids in written]


def _some(meanings: Sequence[pairs.Meaning], count: int) -> list[pairs.Meaning]:
    """Return a fixed random choice of the inputs in a random order; 0 = all."""
    return [meanings[i] for i in draw(0, len(meanings), len(meanings), _SEED)][: count or None]
