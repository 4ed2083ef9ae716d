"""What is measured: tasks, methods, sparsities and seeds, and the pass that each method is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["classification", "regression"]

SPARSITIES = (0.5, 0.9)
DENSE = ("full", "lora")
SPARSE = ("dsee", "pst")  # beside magnitude, which prunes what `full` has trained
SMALLER = "dsee-structured"  # a quarter of the heads and of the FFN neurons is gone
SEEDS = 3
GRID: dict[str, tuple[float, ...]] = {
    "full": (2e-5, 5e-5, 1e-4),
    "lora": (3e-4, 1e-3, 3e-3),
    "dsee": (3e-4, 1e-3, 3e-3),
    "pst": (3e-4, 1e-3, 3e-3),
    SMALLER: (3e-4, 1e-3, 3e-3),
}


@dataclass(frozen=True)
class Task:
    """One data set.

    Attributes:
        name: of its folder.
        kind: what is learnt.
        metric: what counts.
        train: training examples that are used, a fixed random choice; 0 = all.
    """

    name: str
    kind: Kind
    metric: str
    train: int = 0


TASKS = {
    t.name: t
    for t in (
        Task("sst2", "classification", "accuracy", 10_000),
        Task("rte", "classification", "accuracy"),
        Task("mrpc", "classification", "f1"),
        Task("stsb", "regression", "pearson_spearman"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training, or for `magnitude` one pruning of what `full` has trained with that seed and rate.

    Attributes:
        task: a key of `TASKS`.
        method: `full`, `lora`, `magnitude`, `dsee`, `pst` or `dsee-structured`.
        sparsity: share of zeros in every linear of the blocks.
        seed: of the classifier, of initial values and of the order of batches.
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

    def prunings(self) -> list[Cell]:
        """Return what magnitude makes of the cell's model: something of `full` alone."""
        return [self.at(method="magnitude", sparsity=s) for s in SPARSITIES] if self.method == "full" else []

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


def cells(tasks: tuple[str, ...], seeds: int) -> Iterator[Cell]:
    """Yield what is trained, what matters most first: all of one seed before the next."""
    for seed in range(seeds):
        for task in tasks:
            yield from (Cell(task=task, method=m, seed=seed) for m in DENSE)
            yield from (Cell(task=task, method=m, sparsity=s, seed=seed) for s in SPARSITIES for m in SPARSE)
            yield Cell(task=task, method=SMALLER, seed=seed)
