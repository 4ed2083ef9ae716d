"""Methods that train and prune, side by side: the pass that each is, its run, and the learning rate that suits it."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from benchmarks import _passes
from benchmarks._ledger import Results, Row, surroundings
from compress.artifact import Artifact
from compress.context import Context, QuietReport

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


def through(
    cell: Cell, artifact: Artifact, training: Sized, *, steps: int, batch: int, held_out: int, **more: Any
) -> tuple[int, Artifact]:
    """Run the cell's pass as the pipeline would.

    Args:
        cell: what is done.
        artifact: to what.
        training: the examples, as a source that passes can read.
        steps: optimizer steps.
        batch: examples a step.
        held_out: examples that choose the best state alone.
        more: settings of the pass.

    Returns:
        The number of parameters that the pass says it trains, and the artifact after it.
    """
    use, settings = cell.settings(steps, batch, held_out / len(training))
    report = QuietReport()
    with tempfile.TemporaryDirectory() as folder:
        data = cast(Any, {"training": training})
        context = Context(folder=Path(folder), seed=cell.seed, data=data, report=report)
        after = _passes.through(use, {**settings, **more}, artifact, context)
    return int(report.measured.get("trainable", [0])[0]), after


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


class Bench(Protocol):
    """A task, and what is done with it."""

    def run(self, cell: Cell) -> Iterator[Row]:
        """Yield everything measured of a cell, its prunings after it; the higher `tuning`, the better."""


class Runner:
    """Runs cells that are not finished yet, tuning learning rates on the way.

    Args:
        results: where finished cells are.
        deadline: `time.monotonic()` after which no cell starts.
        grid: the learning rates that are tried, by method.
        sparsities: those of the prunings that a bench yields after `full`.
    """

    def __init__(
        self, results: Results, deadline: float, grid: Mapping[str, Sequence[float]], sparsities: Sequence[float]
    ) -> None:
        self.results, self.deadline, self.grid, self.sparsities = results, deadline, grid, sparsities

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
        if all(c.key in self.results.rows for c in (cell, *cell.prunings(self.sparsities))):
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
