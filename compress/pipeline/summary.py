"""What a finished run tells: the content of `report.json`, and the few lines that end its output."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compress import files, installed, measure, profiling, report, tree
from compress.artifact import Artifact
from compress.contracts import Target
from compress.engines import NOT_RUN, read_manifest
from compress.facts import Facts
from compress.measure import Measurement
from compress.pipeline import figures
from compress.pipeline.runner import MEASURED, Done, Runner
from compress.report import gains

_VERSIONS = ("compress-engine", "torch", "transformers", "onnx", *installed.ONNXRUNTIME, "numpy")


def write(
    runner: Runner,
    facts: Sequence[Facts],
    dense: Done,
    last: Done,
    exported: Sequence[Done],
    engines: Mapping[str, Path],
    worth: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Measure what is not measured yet, write the report into the run folder and return its content."""
    pipeline, model = runner.pipeline, runner.pipeline.model
    index = len(runner.done) + len(exported) + 1
    told = {d.name: d for d in exported}
    idle = {n: why for n in engines if (why := runner.engines.absent(told[n].folder))}
    opened = {n: folder for n, folder in engines.items() if n not in idle}
    quality = figures.quality(runner, dense, last, opened, index)
    content: dict[str, Any] = {
        "format": report.FORMAT,
        "name": pipeline.path.stem,
        "created": time.strftime("%Y-%m-%d %H:%M"),
        "model": {
            "source": model.source,
            "task": model.task,
            "parameters": facts[0].parameters,
            "parameters_left": facts[-1].parameters,
            "family": facts[0].family,
        },
        "steps": [_step(d) for d in runner.done],
        "layers": _layers(last, facts[-1], runner),
        "quality": _quality(quality, runner),
        "engines": [],
        "gains": list(worth),
        "profiles": _profiles(runner.done),
        "versions": _versions(),
        "machine": _machine(runner),
        **_truth(facts[-1], engines, idle),
        "warnings": [],
    }
    for place, target in enumerate(pipeline.targets, start=index + 1):
        names = [n for n, folder in engines.items() if read_manifest(folder)["target"]["name"] == target.name]
        names.sort(key=lambda n: not n.endswith("-dense"))  # the parent is the reference
        if not names:
            continue
        if why := idle.get(names[-1]):
            content["engines"].append(_not_run(told[names[-1]], target, why, runner))
            continue
        latency = figures.latency(runner, target, names, engines, place)
        content["warnings"] += measure.cautions(Measurement.model_validate(latency))
        content["engines"].append(_engine(told[names[-1]], target, latency, runner))
        _keep_figures(told, names, latency, quality)
    report.write(runner.folder, content)  # type: ignore[arg-type]
    return content


def headline(content: Mapping[str, Any]) -> list[str]:
    """Return the run's result in a few lines."""
    quality = content["quality"]
    lines = []
    deltas = {m["name"]: m for m in quality.get("delta", ())}
    dense = {m["name"]: m for m in quality.get("dense", ())}
    for metric in quality.get("compressed", ())[:2]:
        name = metric["name"]
        text = f"{name}: {metric['value']:.4g}"
        if name in deltas:
            d = deltas[name]
            text += (
                f" (dense {dense[name]['value']:.4g}; difference {d['value']:+.3g} [{d['low']:+.3g}, {d['high']:+.3g}])"
            )
        lines.append(text)
    for row in content["gains"]:
        lines.append(f"{row['name']}: {gains.told(row)}")
    for engine in content["engines"]:
        if not engine["latency"]:
            lines.append(f"engine {engine['folder']}: not run: {engine['not_run']}")
            continue
        measured = Measurement.model_validate(engine["latency"])
        lines.append(f"engine {engine['folder']}:")
        lines += [f"  {line}" for line in measure.lines(measured)]
    return lines


def _not_run(done: Done, target: Target, why: str, runner: Runner) -> dict[str, Any]:
    """Return what is known of an engine that cannot be opened here: figures of its target, if these were imported."""
    told = _engine(done, target, done.measured.get("latency"), runner)
    return told if told["latency"] else {**told, NOT_RUN: why}


def _engine(done: Done, target: Target, latency: Mapping[str, Any] | None, runner: Runner) -> dict[str, Any]:
    manifest = read_manifest(done.folder)
    return {
        **{k: manifest[k] for k in ("codes", "choice") if k in manifest},
        "kernel_times": next(iter(done.measured.get("kernels", [])), {}),
        "target": target.name,
        "folder": str(done.folder.relative_to(runner.folder)),
        "export": done.use,
        "settings": target.model_dump(mode="json"),
        "parity": next(iter(done.measured.get("parity", [])), {}),
        "latency": latency,
    }


def _keep_figures(
    told: Mapping[str, Done], names: Sequence[str], latency: Mapping[str, Any], quality: Mapping[str, Any]
) -> None:
    """Lay beside every compressed engine what it was measured to do, each figure beside the dense parent's."""
    child = quality["compressed"]
    for name in names:
        measured = {**told[name].measured, "latency": latency}
        if name in quality["engines"]:
            measured["quality"] = {
                "engine": quality["engines"][name]["metrics"],
                "dense": (child["parent"] or child)["metrics"],
                "compressed minus dense": child["deltas"],
                "engine minus compressed": quality["engines"][name]["deltas"],
            }
        files.write_json(told[name].folder / MEASURED, measured)


def _truth(facts: Facts, engines: Mapping[str, Path], idle: Mapping[str, str]) -> dict[str, list[str]]:
    """Say which figures were measured on the real thing, which gains were not, and which engines never ran."""
    not_run = [f"{name}: {why}" for name, why in idle.items()]
    if len(idle) == len(engines):
        return {"measured": ["quality: on the models, in torch"], "simulated": [], NOT_RUN: not_run}
    measured = [
        "quality of the engine: on the engine itself, reopened in its runtime",
        "latency, memory: of both engines, interleaved in fresh processes on this machine",
    ]
    simulated = (
        ["speed of masked weights on kernels for them: not measured, onnxruntime has none"] if facts.masks else []
    )
    for name, folder in engines.items():
        manifest = read_manifest(folder)
        simulated += [f"{name}: {told}" for told in manifest.get("codes", {}).get("simulated", ())]
        if any((manifest.get("choice") or {}).get("tried", {}).values()):
            measured.append(f"{name}: what its kernels lose against exact ones, on calibration data")
    return {"measured": measured, "simulated": simulated, NOT_RUN: not_run}


def _step(done: Done) -> dict[str, Any]:
    step = files.read_json(done.folder / "compress.json")["lineage"][-1]
    measured = {k: v for k, v in done.measured.items() if k != "seconds"}
    return {
        "index": done.index,
        "use": done.use,
        "name": done.name,
        "settings": step["settings"],
        "seconds": done.measured["seconds"],
        "cached": done.cached,
        "notes": step["notes"],
        "measured": measured,
    }


def _profiles(done: Sequence[Done]) -> list[dict[str, Any]]:
    """Return what the latency profiles say that passes recorded to have chosen by, while they are there."""
    profiler = profiling.profiler()
    recorded = dict.fromkeys(path for d in done for path in d.measured.get("profile", ()))
    return [profiler.figures(path) for path in recorded if profiler.known(path)]


def _layers(last: Done, facts: Facts, runner: Runner) -> list[dict[str, Any]]:
    trust = runner.pipeline.model.trust_remote_code
    opened = Artifact.load(last.folder, stored=True, trust_remote_code=trust)  # a weight at a time will do
    return [
        {
            "name": name,
            "shape": list(linear.weight.shape),
            "sparsity": round(float((opened.tensor(f"{name}.weight") == 0).float().mean()), 6),
            "pattern": facts.masks[name].pattern if name in facts.masks else None,
        }
        for name, linear in tree.block_linears(opened.model).items()
    ]


def _quality(found: Mapping[str, Any], runner: Runner) -> dict[str, Any]:
    child = found["compressed"]
    data = runner.pipeline.data["evaluation"]
    dense = f"; dense: the model after {runner.dense.name}" if runner.pipeline.dense else ""
    quality = {
        "data": f"{data.source}, {data.windows or 'all'} windows of {data.length} tokens{dense}",
        "dense": (child["parent"] or child)["metrics"],
        "compressed": child["metrics"] if child["parent"] else [],
        "delta": child["deltas"],
    }
    engines = list(found["engines"].values())
    return {**quality, "engine": engines[0]["metrics"]} if engines else quality


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{n: v for n in _VERSIONS if (v := installed.version(n))}}


def _machine(runner: Runner) -> dict[str, Any]:
    machine = {
        "system": platform.system(),
        "processor": platform.machine(),
        "threads of the passes": runner.keys.threads,
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine
