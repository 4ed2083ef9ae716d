"""The measured figures of a run: quality of the models and of every engine, latency beside the dense engine.

Both are kept in the run folder under the key of what was measured and how, so that a rerun measures nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from compress import artifact as artifacts
from compress import files, measure
from compress.contracts import Target
from compress.evaluate import Evaluation, compare, evaluate_source
from compress.measure import Measurement
from compress.pipeline.code import code_digest
from compress.pipeline.runner import Done, Runner
from compress.sweep import clock


def quality(runner: Runner, dense: Done, last: Done, engines: Mapping[str, Path], index: int) -> dict[str, Any]:
    """Return, as JSON, the evaluations of `dense`, `compressed` and, under `engines`, of every compressed engine.

    The dense parent is evaluated on the same batches as the compressed artifact, whose evaluation holds it.
    """
    shipped = {n: f for n, f in engines.items() if not n.endswith("-dense")}
    source = runner.keys.sources["evaluation"]
    key = files.digest_of(
        {
            "data": source.digest,
            "dense": artifacts.digest(dense.folder),
            "last": artifacts.digest(last.folder),
            "engines": {n: files.sha256(f / "engine.json") for n, f in shipped.items()},
            "code": code_digest("compress.evaluate"),
            **runner.keys.surroundings(),
        }
    )

    def make() -> dict[str, Any]:
        runner.context("quality", {})  # seeds and threads
        parent = runner.open(dense.folder)
        tokenizer, task, seed = parent.tokenizer, parent.task, runner.pipeline.run.seed
        ask = partial(evaluate_source, source=source, tokenizer=tokenizer, report=runner.console, seed=seed)
        if last.folder == dense.folder and task != "embedding":  # an embedding is good as far as it is the parent's
            child = ask(parent)
        else:
            child = ask(runner.open(last.folder), parent=parent)
        found: dict[str, Any] = {"compressed": child.to_dict(), "engines": {}}
        for name, folder in shipped.items():
            engine = runner.engines.open(folder)
            try:
                ran = ask(engine, parent=parent if task == "embedding" else None)
            finally:
                engine.close()
            deltas = compare(ran.samples, child.samples, seed=seed)
            found["engines"][name] = Evaluation(
                kind=ran.kind, metrics=ran.metrics, samples=ran.samples, deltas=deltas
            ).to_dict()
        return found

    return _kept(runner, "quality", "quality", key, index, make)


def latency(
    runner: Runner, target: Target, names: Sequence[str], engines: Mapping[str, Path], index: int
) -> dict[str, Any]:
    """Return, as JSON, the measurement of the named engines on their target; the dense parent's first."""
    folders = [engines[n] for n in names]
    engine_files = [files.sha256(f / "engine.json") for f in folders]
    key = files.digest_of({"engines": engine_files, "costs": runner.costs, **_timing(target)})

    def make() -> dict[str, Any]:
        return clock.timed(folders, target, runner.console, runner.costs).model_dump(mode="json")

    return _kept(runner, "latency", f"latency on {target.name}", key, index, make)


def gained(
    runner: Runner,
    target: Target,
    name: str,
    keys: Sequence[str],
    engines: Callable[[], list[Path]],
    used: Callable[[Path], list[str]],
) -> tuple[Measurement, list[str]]:
    """Return the measurement of the engines before and after a pass, and which kernels the second uses, in words.

    Args:
        runner: of the run.
        target: of the engines.
        name: of the pass.
        keys: of the two exports.
        engines: makes them, or finds them; not called where they were measured before.
        used: tells the kernels of one.
    """
    key = files.digest_of({"gain": keys, "tells": "used", **_timing(target)})

    def make() -> dict[str, Any]:
        folders = engines()
        measured = measure.measure(folders, target, runner.console)
        return {**measured.model_dump(mode="json"), "used": used(folders[-1])}

    found = _kept(runner, "latency", f"what {name} gains on {target.name}", key, len(runner.done), make)
    return Measurement.model_validate(found), found["used"]


def _timing(target: Target) -> dict[str, Any]:
    """Return what decides a measurement, beside the engines."""
    return {
        "target": target.model_dump(mode="json"),
        "code": code_digest("compress.measure"),
        "clock": [files.sha256(p) for p in sorted(Path(measure.__file__).parent.glob("bench*.py"))],
    }


def _kept(
    runner: Runner, folder: str, what: str, key: str, index: int, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    path = runner.folder / folder / f"{key[:16]}.json"
    cached = path.is_file()
    runner.console.begin(index, runner.count, what, cached)
    if not cached:
        started = time.monotonic()
        path.parent.mkdir(exist_ok=True)
        files.write_json(path, make())
        runner.console.end(time.monotonic() - started)
    found: dict[str, Any] = files.read_json(path)
    return found
