"""Methods that train and prune, side by side: the pass that each is, its run, and the learning rate that suits it."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from benchmarks import _passes
from benchmarks._ledger import Results, Row, surroundings
from compress import tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.errors import Diverged

DENSE = ("full", "lora")
SPARSE = ("dsee", "pst")  # beside magnitude, which prunes what `full` has trained
SMALLER = "dsee-structured"  # a quarter of the heads and of the FFN neurons is gone


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training, or for `magnitude` one pruning of what `full` has trained with that seed and rate.

    Attributes:
        task: what is learnt.
        method: `full`, `lora`, `magnitude`, `dsee`, `pst` or `dsee-structured`.
        sparsity: share of zeros in every linear of the blocks.
        seed: of initial values (a classifier's, too) and of the order of batches.
        lr: the peak learning rate; None = the one that tuning found.
    """

    task: str
    method: str
    sparsity: float = 0.0
    seed: int = 0
    lr: float | None = None

    @property
    def key(self) -> str:
        """Return the cell's name in the results."""
        return "/".join(f"{v:g}" if isinstance(v, float) else str(v) for v in dataclasses.astuple(self))

    @property
    def title(self) -> str:
        """Return the method for a reader: `pst, 90 %`."""
        return self.method + (f", {self.sparsity:.0%}".replace("%", " %") if self.sparsity else "")

    def at(self, **changes: Any) -> Cell:
        """Return the cell with some of it replaced."""
        return dataclasses.replace(self, **changes)

    def prunings(self, sparsities: Sequence[float]) -> list[Cell]:
        """Return what magnitude makes of the cell's model: something of `full` alone."""
        return [self.at(method="magnitude", sparsity=s) for s in sparsities] if self.method == "full" else []

    def settings(self, steps: int, batch: int, held_out: float) -> tuple[str, dict[str, Any]]:
        """Return the pass and its settings; every method does as many steps and chooses its best state alike."""
        shared = {"lr": self.lr, "batch": batch, "held_out": held_out, "checkpoint_every": 10**6}
        match self.method:
            case "full" | "lora":
                return "recover", {**shared, "method": self.method, "steps": steps}
            case "magnitude":
                return "magnitude", {"sparsity": self.sparsity}
            case "dsee" | "dsee-structured":
                share = {"structured_heads": 0.25, "structured_neurons": 0.25}
                asked = {"sparsity": self.sparsity} if self.method == "dsee" else share
                return "dsee", {**shared, **asked, "tune_steps": steps // 2, "steps": steps - steps // 2}
        return "pst", {**shared, "sparsity": self.sparsity, "steps": steps}


def cells(tasks: Sequence[str], sparsities: Sequence[float], seeds: int) -> Iterator[Cell]:
    """Yield what is trained, what matters most first: all of one seed before the next."""
    for seed in range(seeds):
        for task in tasks:
            yield from (Cell(task=task, method=m, seed=seed) for m in DENSE)
            yield from (Cell(task=task, method=m, sparsity=s, seed=seed) for s in sparsities for m in SPARSE)
            yield Cell(task=task, method=SMALLER, seed=seed)


def named(cell: Cell) -> Row:
    """Return what a row of the results says of its cell."""
    return {"key": cell.key, **dataclasses.asdict(cell)}


def best_rate(rows: Mapping[str, Row], cell: Cell) -> float | None:
    """Return the learning rate of the best tuning value with seed 0; the lower of equals, None before any was tried."""
    wanted = {"task": cell.task, "method": cell.method, "sparsity": cell.sparsity, "seed": 0}
    if cell.method == "magnitude":  # it prunes what `full` would hand out
        wanted |= {"method": "full", "sparsity": 0.0}
    tried = {r["lr"]: r["tuning"] for r in rows.values() if all(r.get(k) == v for k, v in wanted.items())}
    return min(tried, key=lambda lr: (-tried[lr], lr)) if tried else None


def finished(rows: Mapping[str, Row], cell: Cell, seeds: int) -> list[Row]:
    """Return the finished seeds of a cell at its tuned learning rate, but those that diverged."""
    lr = best_rate(rows, cell)
    keys = [cell.at(seed=s, lr=lr).key for s in range(seeds)]
    return [rows[k] for k in keys if k in rows and "diverged" not in rows[k]]


class Bench(ABC):
    """A task, and what is done with it.

    Args:
        setup: what all cells of a run share; its `steps`, `batch` and `held_out` (examples that choose the best state
            alone) are those of every training.
        training: the examples, as a source that passes can read.
        tokens: the mean length of what the model is judged by.
        sparsities: those to which what `full` has trained is pruned.
    """

    def __init__(self, setup: Any, training: Sized, tokens: int, sparsities: Sequence[float]) -> None:
        self.setup, self.training, self.tokens, self.sparsities = setup, training, tokens, sparsities

    @abstractmethod
    def start(self, seed: int) -> Artifact:
        """Return the model that cells of a seed begin with."""

    @abstractmethod
    def judged(self, artifact: Artifact) -> Row:
        """Return what the task says of a model; the higher `tuning`, the better."""

    def run(self, cell: Cell) -> Iterator[Row]:
        """Yield everything measured of a cell; after `full`, of its prunings by magnitude too."""
        started, prunings = time.monotonic(), cell.prunings(self.sparsities)
        try:
            trainable, artifact = self.through(cell, self.start(cell.seed), self.setup.steps)
        except Diverged as error:
            yield from ({**named(c), "diverged": str(error), "tuning": -math.inf} for c in (cell, *prunings))
            return
        yield self._row(cell, artifact, trainable, started)
        for pruned in prunings:
            started = time.monotonic()
            yield self._row(pruned, self.through(pruned, artifact, 0)[1], trainable, started)

    def through(self, cell: Cell, artifact: Artifact, steps: int, **more: Any) -> tuple[int, Artifact]:
        """Run the cell's pass on a copy, as the pipeline would, with more of its settings.

        Returns:
            The number of parameters that the pass says it trains, and the artifact after it.
        """
        use, settings = cell.settings(steps, self.setup.batch, self.setup.held_out / len(self.training))
        again, report = artifact.after(model=copy.deepcopy(artifact.model)), QuietReport()
        with tempfile.TemporaryDirectory() as folder:
            data = cast(Any, {"training": self.training})
            context = Context(folder=Path(folder), seed=cell.seed, data=data, report=report)
            after = _passes.through(use, {**settings, **more}, again, context)
        return int(report.measured.get("trainable", [0])[0]), after

    @cached_property
    def dense_flops(self) -> int:
        """What the model takes before anything is pruned."""
        return flops(self.start(0).model, self.tokens)

    def _row(self, cell: Cell, artifact: Artifact, trainable: int, started: float) -> Row:
        model, masks = artifact.model, artifact.masks
        return {
            **named(cell),
            **self.judged(artifact),
            "trainable": trainable,
            "parameters": sum(p.numel() for p in model.parameters()),
            "zeros": sum(1 - m.float().mean().item() for m in masks.values()) / max(len(masks), 1),
            "flops": self.dense_flops,
            "flops_kept": flops(model, self.tokens),
            "seconds": round(time.monotonic() - started, 1),
        }


def flops(model: PreTrainedModel, tokens: int) -> int:
    """Return the products and sums of the blocks for one sequence, those of zero weights left out.

    Two for each weight and token, four for each pair of tokens and each channel of the attention (its scores and their
    use); norms, activations, embeddings and the head are left out.
    """
    channels = sum(block.heads * block.head_dim for block in tree.layout(model))
    weights = sum(int(m.weight.count_nonzero()) for m in tree.block_linears(model).values())
    return 2 * tokens * weights + 4 * tokens**2 * channels


class Runner:
    """Runs cells that are not finished yet, tuning learning rates on the way.

    Args:
        results: where finished cells are.
        deadline: `time.monotonic()` after which no cell starts.
        grid: the learning rates that are tried, by method.
    """

    def __init__(self, results: Results, deadline: float, grid: Mapping[str, Sequence[float]]) -> None:
        self.results, self.deadline, self.grid = results, deadline, grid

    def run(self, bench: Bench, cell: Cell) -> None:
        """Finish the cell at its tuned learning rate; with seed 0 that is the tuning itself.

        Raises:
            TimeoutError: the time is up.
        """
        rates = self.grid[cell.method]
        if cell.seed:
            rates = (best_rate(self.results.rows, cell) or rates[0],)
        for lr in rates:
            self._finish(bench, cell.at(lr=lr))

    def _finish(self, bench: Bench, cell: Cell) -> None:
        if all(c.key in self.results.rows for c in (cell, *cell.prunings(bench.sparsities))):
            return
        if time.monotonic() > self.deadline:
            raise TimeoutError
        for row in bench.run(cell):
            if row["key"] not in self.results.rows:  # a kill may have come between two of them
                self.results.add(row)
            print(f"{row['key']}: {row['tuning']:.4f} on the tuning slice ({row.get('seconds', 0):.0f} s)", flush=True)


def middle(grid: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    """Return a grid with only the middle rate of each method."""
    return {method: (rates[len(rates) // 2],) for method, rates in grid.items()}


def recorded(setup: Any) -> Row:
    """Return what a results file keeps of a setup: names and digests in the place of paths, and the machine."""
    return {
        **{k: v for k, v in dataclasses.asdict(setup).items() if k not in ("model", "data")},
        **surroundings(Path(setup.model)),
    }
