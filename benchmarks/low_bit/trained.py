"""L4Q beside what else trains low bits: as many steps on the same batches, each at its best learning rate.

Learning rates are chosen by the loss on the calibration windows, on which nothing trains, with the first seed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks import _cases, _score
from benchmarks._ledger import Results, Row
from benchmarks._passes import context_of, through
from benchmarks.low_bit import oneshot, rivals
from benchmarks.low_bit.ours import ready
from benchmarks.peers._case import Grid
from compress import loading
from compress.artifact import Artifact
from compress.errors import Diverged
from passes._train import TrainSettings

LORA = "lora, 16 bits"
# Name in the tables -> what is done one after the other: a pass, or a rival's training; trainings share the steps.
METHODS: dict[str, tuple[str, ...]] = {
    LORA: ("lora",),
    "gptq": ("gptq",),
    "gptq, lora, merged, gptq": ("gptq", "lora", "gptq"),
    "lora, merged, gptq": ("lora", "gptq"),
    "gptq, qa-lora": ("gptq", "qa-lora"),
    "qat-lora": ("qat-lora",),
    "l4q": ("l4q",),
    "gptq, l4q": ("gptq", "l4q"),
    "gptq, l4q stay": ("gptq", "l4q stay"),
    "lora, merged, gptq, l4q": ("lora", "gptq", "l4q"),
    "l4q floats, gptq": ("l4q floats", "gptq"),
}
OWN = ("l4q", "gptq, l4q stay", "l4q floats, gptq")  # that all others stand beside
PASSES = ("gptq", "l4q")
# What follows a pass's name: settings that are not as by default; their rates were chosen on the tuning windows.
WAYS: dict[str, dict[str, Any]] = {
    "stay": {"borders": "stay", "lr_steps": 0.06},
    "floats": {"borders": "none", "lr_steps": 0.06},
}
GRIDS, QUICK = ("W3 g64", "W4 g64", "W2 g64"), ("W3 g64",)
RATES, QUICK_RATES = (1e-3, 3e-3, 1e-2), (1e-2,)
SEEDS = (0, 1, 2)
STEPS, QUICK_STEPS, BATCH, RANK = 128, 24, 8, 8


@dataclass(frozen=True)
class Cell:
    """One training at one grid, learning rate and seed; without a rate nothing is trained."""

    method: str
    grid: str
    steps: int
    lr: float | None = None
    seed: int = 0

    @property
    def key(self) -> str:
        """Return its name in the results."""
        rate = "" if self.lr is None else f"/{self.lr:g}/{self.seed}"
        return f"trained/{self.method}/{self.grid}/{self.steps}{rate}"


def groups(*, quick: bool) -> Iterator[Cell]:
    """Yield what is to be run, without learning rates and seeds."""
    for grid in QUICK if quick else GRIDS:
        for method, uses in METHODS.items():
            if all(ready(name) for name, *_ in map(str.split, uses) if name in PASSES):
                yield Cell(method, "" if method == LORA else grid, QUICK_STEPS if quick else STEPS)


def run(results: Results, case: Path, *, quick: bool) -> None:
    """Finish the trainings that are not finished yet; first one seed of all, then the others at the best rates."""
    ids, rates = _cases.ids_of(case), QUICK_RATES if quick else RATES
    found = list(dict.fromkeys(groups(quick=quick)))
    for cell in found:
        for rate in rates if trains(cell.method) else (None,):
            _finish(results, replace(cell, lr=rate), case, ids)
    for seed in SEEDS[1:] if not quick else ():
        for cell in filter(lambda c: trains(c.method), found):
            _finish(results, replace(cell, lr=best_rate(results.rows, cell), seed=seed), case, ids)


def trains(method: str) -> bool:
    """Return whether a method trains."""
    return any(use != "gptq" for use in METHODS[method])


def best_rate(rows: Mapping[str, Row], cell: Cell) -> float:
    """Return the learning rate that was best on the tuning windows."""
    tried = {r["lr"]: r["tuning"] for r in rows.values() if _same(r, cell) and r["seed"] == 0}
    return min(tried, key=lambda lr: tried[lr])


def best(rows: Mapping[str, Row], cell: Cell) -> list[Row]:
    """Return the rows of a method at its best rate, a seed each."""
    found = [r for r in rows.values() if _same(r, cell)]
    rate = best_rate(rows, cell) if found and trains(cell.method) else None
    return [r for r in found if r["lr"] == rate and "losses" in r]


def _same(row: Row, cell: Cell) -> bool:
    keys = ("method", "grid", "steps")
    return row["key"].startswith("trained/") and all(row[k] == getattr(cell, k) for k in keys)


def _finish(results: Results, cell: Cell, case: Path, ids: Mapping[str, Tensor]) -> None:
    if cell.key in results.rows:
        return
    started = time.process_time()
    row: Row = {"key": cell.key, **asdict(cell)}
    try:
        artifact = made(cell, case, ids)
        tuning = _score.window_losses(artifact.model, ids["calibration"])
        row |= {"tuning": round(sum(tuning) / len(tuning), 6), **oneshot.scores(artifact.model, case, cell.grid)}
    except Diverged as error:
        row |= {"tuning": float("inf"), "failed": str(error)}
    row["seconds"] = round(time.process_time() - started, 1)
    results.add(row)
    oneshot.tell(row)


def made(cell: Cell, case: Path, ids: Mapping[str, Tensor]) -> Artifact:
    """Return what a cell leaves."""
    artifact = opened(case)
    trainings = sum(use != "gptq" for use in METHODS[cell.method])
    given: dict[str, Any] = {"steps": cell.steps // max(trainings, 1), "batch": BATCH, "checkpoint_every": 10**6}
    given |= {"lr": cell.lr} if cell.lr else {}
    for use in METHODS[cell.method]:
        with tempfile.TemporaryDirectory() as folder:
            context = context_of(Path(folder), seed=cell.seed, parent=lambda: opened(case), **ids)
            if use in rivals.NAMES:
                make = rivals.expression(use, Grid.of(cell.grid or GRIDS[0]), RANK)
                artifact = rivals.train(artifact, make, TrainSettings(**given), context)
            else:
                name, *ways = use.split()
                settings = {**Grid.of(cell.grid)._asdict(), "again": True}
                settings |= {**given, "rank": RANK, "loss": "lm"} if name == "l4q" else {}
                settings |= {key: value for way in ways for key, value in WAYS[way].items()}
                artifact = through(name, settings, artifact, context)
    return artifact


def opened(case: Path) -> Artifact:
    """Return the dense model of a case."""
    model, tokenizer = loading.open_source(str(case / "model"), "causal-lm")
    return Artifact(model=model, tokenizer=tokenizer)
