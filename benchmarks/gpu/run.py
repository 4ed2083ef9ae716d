"""Engines on a GPU: parity, perplexity, latency beside torch and onnxruntime, what 2:4 zeros and codes gain by shape.

    python -m benchmarks.gpu.run --engines            # anywhere: build ahead of time all that can be, into runs/gpu
    python -m benchmarks.gpu.run --quick              # on the GPU, some minutes: the demo model, one width
    python -m benchmarks.gpu.run                      # all; kill it and run it again, it goes on
    python -m benchmarks.gpu.run --report --name NAME # only the tables, from what is finished

Each finished line goes to results/<GPU>.jsonl; results/<GPU>.md holds the tables.  Engines that are not in the work
folder are made on the way.  A runtime that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks._ledger import Results, Row, conclude
from benchmarks.gpu import engines, measure, plan, report
from benchmarks.gpu.plan import DEMO
from compress.errors import Unavailable

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("torch", "onnxruntime-gpu", "onnxruntime", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt")


def lacking() -> str | None:
    """Return what this machine lacks to measure anything, or None."""
    if torch.cuda.is_available():
        return None
    mend = "--engines builds here what can be, --report --name NAME writes the tables of what is finished"
    return f"no GPU: torch {torch.__version__} finds no CUDA device; {mend}"


def broken() -> str | None:
    """Return that what failed broke the process's connection to the GPU, so that all after it would fail too."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError as error:
        return f"that broke the GPU for this process ({str(error).splitlines()[0]}); run it again, it goes on"
    return None


def setup(*, quick: bool) -> Row:
    """Return what all lines of a file share."""
    here = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in metadata.distributions()}
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "quick": quick,
        "python": sys.version.split()[0],
        "libraries": {n: here[n] for n in _LIBRARIES if n in here},
    }


def finish(results: Results, key: str, make: Callable[[], Row]) -> None:
    """Run what is not finished; what is not installed leaves no line."""
    if key in results.rows:
        return
    try:
        row = make()
    except Unavailable as error:
        print(f"{key}: left out: {error}", flush=True)
        return
    results.add({"key": key, **row})
    print(f"{key}: {row.get('failed', 'done')}", flush=True)
    if "failed" in row and (why := broken()):
        sys.exit(f"error: {why}")


def work(path: Path, folder: Path, *, quick: bool) -> None:
    """Run what is not finished: engines one by one, then in turns those that passed, then the kit."""
    results = Results(path, setup(quick=quick))
    windows, seconds = measure.examples(16 if quick else 64), 0.5 if quick else 2.0
    for change in plan.CHANGES:
        finish(results, f"torch/{change or 'dense'}", lambda c=change: _torch(c, windows))
    for model, ways in plan.ways(quick=quick).items():
        scored = windows if model == DEMO else None
        for way in ways:
            key = f"engine/{model}/{way.name}"
            finish(results, key, lambda m=model, w=way, s=scored: measure.engine(folder, m, w, s))
        engines.artifact.cache_clear()
    for turns in plan.turns(quick=quick):
        able = [w for w in turns.ways if passed(results.rows.get(f"engine/{turns.model}/{w.name}"))]
        if len(able) > 1:
            finish(results, turns.key, lambda t=turns, a=able: measure.clock(folder, t, a, seconds))
    finish(results, "kit", lambda: measure.kit(folder))


def passed(row: Row | None) -> bool:
    """Tell whether an engine's line says that it runs and agrees with the model."""
    return row is not None and "failed" not in row


def _torch(change: str, windows: Any) -> Row:
    return measure.quality(engines.artifact(DEMO, change), windows)


def main() -> None:
    """Run what is asked and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", action="store_true", help="only build engines; needs no GPU")
    parser.add_argument("--quick", action="store_true", help="the demo model and one width, one request, short times")
    parser.add_argument("--name", help="of the results; by default the GPU's, with -quick")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="where engines are kept")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the tables")
    given = parser.parse_args()
    if given.engines:
        engines.ahead(given.work, plan.ways(quick=given.quick), lambda line: print(line, flush=True))
        return
    if not given.report and (why := lacking()):
        sys.exit(f"error: {why}")
    if given.report and not given.name:
        parser.error("--report needs --name, the results' name")
    name = given.name or re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()) + "-quick" * given.quick
    path = RESULTS / f"{name}.jsonl"
    conclude(path, report.render, None if given.report else lambda: work(path, given.work, quick=given.quick))


if __name__ == "__main__":
    main()
