"""What is measured: tasks, methods, sparsities and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks._methods import SMALLER

Kind = Literal["classification", "regression"]

SPARSITIES = (0.5, 0.9)
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
