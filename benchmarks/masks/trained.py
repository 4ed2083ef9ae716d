"""Pruned 2:4 and trained further, beside the dense model trained as long on the same text.

The steps are the same in all: those before the pruning, at a rate that stays high, and those under the mask.  Learning
rates are chosen on the calibration windows, on which nothing trains, for the control as for the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks import _cases, _score
from benchmarks._ledger import Results, Row
from benchmarks._passes import chained
from benchmarks.masks.ours import asked
from compress import loading, tree
from compress.artifact import Artifact

Settings = dict[str, Any]
PATTERN = "2:4"
CONTROL = "control"
FULL: Settings = {"method": "full"}
# Name in the tables -> the pass and its settings, and the share of the steps that come before, dense.
TRAININGS: dict[str, tuple[str, Settings, float]] = {
    CONTROL: ("recover", FULL, 0),
    "recover full": ("recover", FULL, 0),
    "recover sparse_delta 25 %": ("recover", {"method": "sparse_delta", "share": 0.25}, 0),
    "perp norms + mask_lora": ("perp", {"train": ["norms", "mask_lora"]}, 0),
    "half dense, recover full": ("recover", FULL, 0.5),
    "3/4 dense, recover full": ("recover", FULL, 0.75),
    "3/4 dense, perp norms + mask_lora": ("perp", {"train": ["norms", "mask_lora"]}, 0.75),
}
GRID = (3e-4, 1e-3, 2e-3, 3e-3)
STEPS, QUICK_STEPS, BATCH = 256, 32, 16


@dataclass(frozen=True)
class Training:
    """One training at one learning rate."""

    name: str
    steps: int
    lr: float

    @property
    def key(self) -> str:
        """Return its name in the results."""
        return f"trained/{self.name}/{self.steps}/{self.lr:g}"


def passes(training: Training) -> Iterator[tuple[str, Settings]]:
    """Yield the passes of a training, one after the other."""
    use, settings, dense = TRAININGS[training.name]
    given = {"lr": training.lr, "batch": BATCH, "checkpoint_every": 10**6}
    before = round(dense * training.steps)
    if before:
        yield "recover", {**FULL, **given, "steps": before, "schedule": "constant"}
    if training.name != CONTROL:
        yield asked("sparsegpt", PATTERN)
    yield use, {**settings, **given, "steps": training.steps - before}


def trained(training: Training, case: Path, ids: Mapping[str, Tensor]) -> Artifact:
    """Return what a training leaves."""
    model, tokenizer = loading.open_source(str(case / "model"), "causal-lm")
    return chained(passes(training), Artifact(model=model, tokenizer=tokenizer), **ids)


def trainings(quick: bool) -> Iterator[Training]:
    """Yield what is to be run."""
    names = [n for n in TRAININGS if not quick or n in (CONTROL, "recover full")]
    yield from (Training(n, QUICK_STEPS if quick else STEPS, lr) for n in names for lr in GRID)


def best(rows: Mapping[str, Row]) -> list[Row]:
    """Return of every training and number of steps the row whose learning rate was best on the tuning windows."""
    found: dict[tuple[str, int], Row] = {}
    for row in (r for r in rows.values() if "tuning" in r):
        place = row["name"], row["steps"]
        if place not in found or row["tuning"] < found[place]["tuning"]:
            found[place] = row
    return list(found.values())


def run(results: Results, case: Path, *, quick: bool) -> None:
    """Finish the trainings that are not finished yet."""
    ids = _cases.ids_of(case)
    for training in trainings(quick):
        if training.key in results.rows:
            continue
        started = time.perf_counter()
        artifact = trained(training, case, ids)
        row: Row = {"key": training.key, **asdict(training), "seconds": round(time.perf_counter() - started, 1)}
        tuning, losses = (_score.window_losses(artifact.model, ids[role]) for role in ("calibration", "evaluation"))
        row |= {"tuning": round(sum(tuning) / len(tuning), 6), "losses": [round(v, 6) for v in losses]}
        row["zeros"] = sum(int((w.weight == 0).sum()) for w in tree.block_linears(artifact.model).values())
        results.add(row)
        print(f"{training.key}: perplexity {_score.perplexity(losses):.4f} ({row['seconds']:.0f} s)", flush=True)
