"""What is measured: tasks, methods, sparsity and seeds."""

from __future__ import annotations

from benchmarks._methods import SMALLER

TASKS = {"e2e": "mr", "webnlg": "triples"}  # by its folder, the column that holds what is to be said
SPARSITIES = (0.5,)
SEEDS = 3
GRID: dict[str, tuple[float, ...]] = {
    "full": (3e-4, 1e-3, 3e-3),
    "lora": (1e-3, 3e-3, 1e-2),
    "dsee": (1e-3, 3e-3, 1e-2),
    "pst": (1e-3, 3e-3, 1e-2),
    SMALLER: (1e-3, 3e-3, 1e-2),
}
