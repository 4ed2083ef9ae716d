"""One cell: prune by magnitude, train what the cell says through the project's own passes, measure the loss."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks._ledger import Row
from benchmarks.perp.cells import Cell
from compress import loading, registry, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Pass
from compress.data import DataSettings, Examples, Role, Source
from compress.errors import Diverged
from passes._train import Group, TrainSettings, draw, frozen, train_

TUNING_WINDOWS = 64  # of the training side; nothing trains on them
CALIBRATION_WINDOWS = 128  # that reconstruction sees
_SEED = 0  # of which windows are taken; the cells' seeds only order them


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all cells of a run share.

    Attributes:
        model: a folder, or `demo`.
        text: source of training text: a built-in corpus or a file.
        evaluation: source of evaluation text; of a built-in corpus its held-out side.
        steps: optimizer steps; of reconstruction, of each window of each block.
        batch: windows a step.
        length: tokens a window.
        windows: evaluation windows, evenly spread over the text.
    """

    model: str
    text: str
    evaluation: str
    steps: int
    batch: int
    length: int
    windows: int


class Part:
    """Some of a source's windows, as a source that passes can read."""

    def __init__(self, whole: Examples, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, indices

    def examples(self, tokenizer: Any) -> Part:
        """Return the windows themselves."""
        return self

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """Return the windows at these places of the part."""
        return self.whole.batch([self.indices[i] for i in indices])


class Bench:
    """The dense model, its text, and what is done with both."""

    def __init__(self, setup: Setup, cache: Path) -> None:
        self.setup = setup
        model, tokenizer = loading.open_source(setup.model, "causal-lm")
        self.dense = Artifact(model=model, tokenizer=tokenizer)
        wanted = TUNING_WINDOWS + max(setup.steps * setup.batch, CALIBRATION_WINDOWS)
        training = self._windows("training", setup.text, wanted, cache)
        count = len(training)
        self.tuning = Part(training, range(TUNING_WINDOWS))
        self.training = Part(training, range(TUNING_WINDOWS, count))
        self.calibration = Part(training, range(TUNING_WINDOWS, min(count, TUNING_WINDOWS + CALIBRATION_WINDOWS)))
        evaluation = self._windows("evaluation", setup.evaluation, 0, cache)
        places = np.linspace(0, len(evaluation) - 1, min(setup.windows, len(evaluation)))
        self.evaluation = Part(evaluation, [round(place) for place in places])

    def run(self, cell: Cell) -> Row:
        """Return everything measured of a cell; a cell whose training diverges has no losses."""
        started = time.monotonic()
        artifact = self.pruned(cell.pattern)
        facts = tree.facts(artifact.model, "causal-lm")
        try:
            trainable, artifact = self.trained(artifact, cell) if cell.trains else (0, artifact)
        except Diverged as error:
            return {"diverged": str(error), "tuning": math.inf, "seconds": time.monotonic() - started}
        tuning, losses = (window_losses(artifact, p) for p in (self.tuning, self.evaluation))
        weights = tree.block_linears(artifact.model).values()
        zeros = sum(int((m.weight == 0).sum()) for m in weights) / sum(m.weight.numel() for m in weights)
        return {
            "losses": [round(v, 6) for v in losses],
            "tuning": round(sum(tuning) / len(tuning), 6),
            "trainable": trainable,
            "formula": formula(artifact.model.config, cell, facts.parameters),
            "parameters": facts.parameters,
            "zeros": round(zeros, 6),
            "seconds": round(time.monotonic() - started, 2),
        }

    def pruned(self, pattern: str) -> Artifact:
        """Return a fresh copy of the dense model, pruned by magnitude unless the pattern is `dense`."""
        artifact = self.dense.after(model=copy.deepcopy(self.dense.model))
        if pattern == "dense":
            return artifact
        settings: Row = {"pattern": pattern} if ":" in pattern else {"sparsity": float(pattern.rstrip("%")) / 100}
        return self._through("magnitude", settings, artifact, seed=0)[1]

    def trained(self, artifact: Artifact, cell: Cell, steps: int | None = None) -> tuple[int, Artifact]:
        """Return how many parameters were trained, and the artifact after that; its masks hold (but `lora`'s)."""
        if cell.lr is None:
            raise ValueError(f"{cell.key}: has no learning rate yet")
        steps = steps or self.setup.steps
        shared: Row = {"steps": steps, "lr": cell.lr, "batch": self.setup.batch, "checkpoint_every": 10**6}
        if cell.form == "full":
            return self._in_full(artifact, TrainSettings(**shared), cell.seed)
        train = [cell.form, *(["norms"] if cell.norms else [])]
        settings = {**shared, "train": train, "drop_mask": cell.form == "lora"}
        if cell.rank:
            settings["rank"] = cell.rank
        if cell.window:
            settings |= {"mode": "reconstruct", "window": cell.window}
        return self._through("perp", settings, artifact, cell.seed)

    def _through(self, use: str, settings: Row, artifact: Artifact, seed: int) -> tuple[int, Artifact]:
        """Run one pass as the pipeline would: plan, run; return what it says it trains, and the artifact."""
        plugin = registry.load("passes", use, Pass)
        step = plugin(plugin.Settings(**settings))
        with tempfile.TemporaryDirectory() as folder:
            context = self._context(Path(folder), seed)
            after = step.run(artifact, context)
        return int(cast(Any, context.report).measured.get("trainable", [0])[0]), after

    def _in_full(self, artifact: Artifact, settings: TrainSettings, seed: int) -> tuple[int, Artifact]:
        """Train every parameter on the same batches; a gradient that is zero under the mask keeps zeros zero."""
        model, masks = artifact.model, artifact.masks

        def loss_of(number: int) -> Tensor:
            batch = self.training.batch(draw(number, len(self.training), settings.batch, seed))
            return losses_of(model, batch).mean()

        with tempfile.TemporaryDirectory() as folder, frozen(model, settings, torch.device("cpu")):
            model.requires_grad_(True)
            parameters = dict(model.named_parameters())
            hooks = [_keep_(parameters[f"{n}.weight"], mask) for n, mask in masks.items()]
            train_([Group(parameters, settings.lr)], loss_of, settings, self._context(Path(folder), seed))
            for hook in hooks:
                hook.remove()
        return sum(p.numel() for p in parameters.values()), artifact

    def _context(self, folder: Path, seed: int) -> Context:
        data = {"training": self.training, "calibration": self.calibration}
        return Context(folder=folder, seed=seed, data=cast(Any, data), parent=lambda: self.pruned("dense"))

    def _windows(self, role: Role, source: str, windows: int, cache: Path) -> Examples:
        settings = DataSettings(source=source, windows=windows, length=self.setup.length)
        return Source(settings, role, "causal-lm", _SEED, cache).examples(self.dense.tokenizer)


@torch.inference_mode()
def window_losses(artifact: Artifact, part: Part, rows: int = 16) -> list[float]:
    """Return the mean loss of each window, nats a token."""
    losses: list[float] = []
    for start in range(0, len(part), rows):
        batch = part.batch(list(range(start, min(start + rows, len(part)))))
        losses += losses_of(artifact.model, batch).mean(1).tolist()
    return losses


def losses_of(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the next-token loss `[batch, tokens - 1]` in nats; windows of running text have no padding."""
    ids = batch["input_ids"]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits[:, :-1]
    paid = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return paid.view(len(ids), -1)


def formula(config: Any, cell: Cell, parameters: int) -> int | None:
    """Return the trainable parameters by the closed formula of the architecture; None where none is written here.

    A linear `[out, in]` has r (out + in) trained numbers at rank r.  Norms count with their biases, as GPT-2 has them;
    Llama has no biases.
    """
    r, d = cell.rank, config.hidden_size
    layers, vocabulary = config.num_hidden_layers, config.vocab_size
    if cell.form in {"none", "full"}:
        return 0 if cell.form == "none" else parameters
    if config.model_type == "llama":
        heads, f = config.num_attention_heads * config.head_dim, config.intermediate_size
        keys = config.num_key_value_heads * config.head_dim
        wide, norms, biases = 2 * (d + heads) + 2 * (d + keys) + 3 * (d + f), (2 * layers + 1) * d, 0
    elif config.model_type == "gpt2":
        f = config.n_inner or 4 * d
        wide = (d + 3 * d) + (d + d) + 2 * (d + f)
        norms, biases = 2 * (2 * layers + 1) * d, layers * (3 * d + d + f + d + 2 * d) + d
    else:
        return None
    final = 1 if config.model_type == "llama" else 2
    small = norms - final * d if cell.window else norms  # the final norm lies outside the blocks
    counts: dict[str, int] = {"norms": norms, "biases": biases, "head": r * (d + vocabulary)}
    return counts.get(cell.form, int(layers * r * wide + (small if cell.norms else 0)))


def _keep_(parameter: Any, mask: Tensor) -> Any:
    """Make the gradient zero where the mask prunes, and return the hook's handle."""
    return parameter.register_hook(lambda gradient: gradient * mask)
