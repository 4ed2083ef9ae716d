"""All engines of a run on the clock at once: interleaved, in more processes until their ratios are known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks._ledger import Results, Row
from benchmarks.puzzle.cells import BATCHES, TARGET
from compress.measure import Figures, Measurement, measure
from compress.sweep.clock import HALF, margin

PHASES = ("prefill", "decode", "request")


def run(results: Results, engines: Mapping[str, Path], processes: Sequence[int]) -> None:
    """Time engines at every batch, unless just these were.

    Args:
        results: gets one row a batch.
        engines: folders by cell, the dense one first: all ratios are to it.
        processes: fresh ones to time in; the next count is tried while a ratio is known less well than 1 %.
    """
    for batch in BATCHES:
        key = f"clock/{batch}/{these(engines)}"
        if key in results.rows:
            continue
        for count in processes:
            target = TARGET.model_copy(update={"batch": batch})
            found = measure(list(engines.values()), target, processes=count, seconds=1.0)
            if all(margin(e.decode) <= HALF for e in found.engines):
                break
        results.add({"key": key, "batch": batch, **_row(list(engines), found)})
        print(f"{key}: {len(engines)} engines, {found.processes} processes, load {found.load_average:.1f}", flush=True)


def these(names: Iterable[str]) -> str:
    """Return what stands for just these engines in a row's key."""
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]


def _row(names: Sequence[str], found: Measurement) -> Row:
    return {
        "clock": found.clock, "processes": found.processes, "load": round(found.load_average, 2),
        "machine": found.machine, "flags": found.flags,
        "engines": {n: times(e) for n, e in zip(names, found.engines, strict=True)},
    }  # fmt: skip


def times(engine: Figures) -> Row:
    """Return an engine's times by phase: ms, ratio to the first engine's, and where its 95 % interval is."""
    every = {phase: getattr(engine, phase) for phase in PHASES}
    return {n: [t.ms, t.ratio, t.ratio_low, t.ratio_high] for n, t in every.items() if t}
