"""Engines of every method side by side on the clock; a zero costs what any number does, and this shows it.

Engines are made by the passes themselves, with two steps of training: time does not depend on what a weight is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks._ledger import Row
from benchmarks._methods import SMALLER, Cell
from benchmarks.glue.cells import SPARSITIES
from benchmarks.glue.measure import Bench
from compress import registry
from compress.context import Context
from compress.contracts import Exporter, Target
from compress.engines import Engines
from compress.measure import measure

_STEPS = 2


def run(bench: Bench, folder: Path, seconds: float) -> Row:
    """Return the time of a request by engine, and its ratio to that of the dense model, with the 95 % interval."""
    task = bench.task.name
    wanted: list[tuple[Cell, dict[str, Any]]] = [(Cell(task=task, method="full", lr=1e-5), {})]
    wanted += [(Cell(task=task, method=m, sparsity=s, lr=1e-4), {}) for m in ("dsee", "pst") for s in SPARSITIES]
    wanted += [(Cell(task=task, method="dsee", sparsity=SPARSITIES[-1], lr=1e-4), {"merge": "branch"})]
    wanted += [(Cell(task=task, method=SMALLER, lr=1e-4), {})]
    found = registry.load("exporters", "onnx", Exporter)
    target = Target(prompt=bench.tokens, generate=0)
    folders = {}
    for cell, more in wanted:
        title = cell.title + (", branch" if more else "")
        folders[title] = folder / title.replace(", ", "-").replace(" %", "")
        folders[title].mkdir()
        artifact = bench.through(cell, bench.start(0), _STEPS, **more)[1]
        Engines().build(artifact, found(found.Settings()), target, folders[title], Context(folder=folder))
    clock = measure(list(folders.values()), target, seconds=seconds)
    times = {
        title: {"ms": f.request.ms, "ratio": f.request.ratio, "low": f.request.ratio_low, "high": f.request.ratio_high}
        for title, f in zip(folders, clock.engines, strict=True)
    }
    return {"tokens": bench.tokens, "clock": clock.clock, "flags": list(clock.flags), "times": times}
