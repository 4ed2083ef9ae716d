"""The benchmark of sentence tasks: its cells, its count of FLOPs, its tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks._ledger import Row
from benchmarks._methods import SMALLER, Cell, best_rate, cells, flops
from benchmarks.glue import report
from benchmarks.glue.cells import GRID, SPARSITIES, TASKS
from compress import registry, tree
from compress.artifact import Artifact
from compress.contracts import Pass


def test_every_cell_is_a_pass_with_settings_that_fit() -> None:
    shape: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
    with torch.device("meta"):
        wide = tree.facts(BertForSequenceClassification(BertConfig(num_hidden_layers=1, **shape)), "classification")
    seen = list(cells(tuple(TASKS), SPARSITIES, 2))
    assert len({c.key for c in seen}) == len(seen) == 2 * len(TASKS) * 7
    for cell in [c.at(lr=lr) for c in seen for lr in GRID[c.method]]:
        for each in (cell, *cell.prunings(SPARSITIES)):
            use, settings = each.settings(8, 4, 0.1)
            found = registry.load("passes", use, Pass)
            facts = found(found.Settings(**settings)).plan(wide)
            assert {m.sparsity for m in facts.masks.values()} == ({each.sparsity} if each.sparsity else set())
            smaller = [(b.heads, b.ffn) for b in facts.layout] == [(9, 1152)]
            assert smaller == (each.method == SMALLER)
            assert settings.get("tune_steps", 0) + settings.get("steps", 8) == 8


def test_flops_count_the_weights_that_are_left(tiny: Callable[..., Artifact]) -> None:
    model = tiny("bert").model
    weights, attention = 2 * (4 * 32 * 32 + 2 * 32 * 64), 4 * 10**2 * 32 * 2
    assert flops(model, 10) == 20 * weights + attention
    with torch.no_grad():
        next(iter(tree.block_linears(model).values())).weight[:8] = 0
    assert flops(model, 10) == 20 * (weights - 8 * 32) + attention


def rows() -> dict[str, Row]:
    """Two seeds of full (80 % right), magnitude (60 %) and PST (80 % on other examples), and a worse rate."""
    labels = [float(i % 2) for i in range(100)]
    found: dict[str, Row] = {"truth/sst2": {"key": "truth/sst2", "labels": labels}}

    def add(cell: Cell, right: Callable[[int], bool], tuning: float) -> None:
        predicted = [v if right(i) else 1 - v for i, v in enumerate(labels)]
        named: dict[str, Any] = {f: getattr(cell, f) for f in Cell.__dataclass_fields__}
        counts = {"trainable": 10, "parameters": 100, "flops": 10, "flops_kept": 5, "seconds": 1}
        found[cell.key] = {**named, "key": cell.key, "predicted": predicted, "tuning": tuning, **counts}

    for seed in (0, 1):
        full = Cell(task="sst2", method="full", seed=seed, lr=5e-5)
        add(full, lambda i: i % 5 > 0, 0.8)
        add(full.prunings(SPARSITIES)[0], lambda i: i % 5 > 1, 0.6)
        add(Cell(task="sst2", method="pst", sparsity=0.5, seed=seed, lr=1e-3), lambda i: i % 5 < 4, 0.8)
    add(Cell(task="sst2", method="full", lr=1e-4), lambda i: False, 0.1)
    return found


def test_tables_compare_the_tuned_cells_on_the_same_examples() -> None:
    found = rows()
    table = report.Table("sst2", found)
    full, pst = Cell(task="sst2", method="full"), Cell(task="sst2", method="pst", sparsity=SPARSITIES[0])
    magnitude = pst.at(method="magnitude")
    assert best_rate(found, full) == best_rate(found, magnitude) == 5e-5
    assert table.each(pst) == pytest.approx([80, 80])
    assert table.minus(pst, full).startswith("+0.0 (-")  # they differ on examples, and as often either way
    assert table.minus(pst, magnitude).startswith("+20.0 (+")
    assert table.minus(full, full) == ""
    text = report.render({"steps": 2}, found)
    assert "| pst, 50 % | 10.00% | 50% | 0.001 | 80.0 ± 0.0 | 2 | +0.0" in text
    assert "lora" not in text  # not finished
