"""What a folder is: a run, an artifact, an engine or a model; and how one becomes an export outside a pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from compress import files, registry
from compress.contracts import Exporter, Target
from compress.errors import BadModel, BadSettings, Unavailable
from compress.facts import Task
from compress.settings.faults import checked

Kind = Literal["run", "engine", "artifact", "model"]
_OF_ENGINES = ("task", "family", "parameters", "precision", "target", "versions")
_SIGNS: tuple[tuple[str, Kind], ...] = (
    ("steps", "run"),
    ("engine.json", "engine"),
    ("compress.json", "artifact"),
    ("config.json", "model"),
)


def kind_of(path: Path | str) -> Kind:
    """Return what a folder is.

    Raises:
        BadModel: it is none of them, or not there.
    """
    path = Path(path)
    if not path.is_dir():
        raise BadModel(f"{path}: no such folder")
    for sign, kind in _SIGNS:
        if (path / sign).exists():
            return kind
    raise BadModel(f"{path}: no run, artifact, engine or model folder; none of {', '.join(s for s, _ in _SIGNS)} in it")


def show(path: Path | str) -> dict[str, Any]:
    """Return what a folder is and how it was made, without opening the model.

    Raises:
        BadModel: it is no folder of ours and no model.
    """
    path = Path(path)
    kind = kind_of(path)
    mib = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) / 2**20
    about: dict[str, Any] = {"path": str(path), "kind": kind, "size_mib": round(mib, 3)}
    match kind:
        case "run":
            about["steps"] = [show(p) for p in sorted((path / "steps").iterdir()) if (p / "compress.json").exists()]
            engines = sorted(p.parent for p in path.glob("engines/*/engine.json"))
            about["engines"] = [show(p) for p in engines]
            about["finished"] = (path / "report.json").exists()
        case "artifact":
            card = files.read_json(path / "compress.json")
            about |= {"task": card["task"], "lineage": card["lineage"], **_sparsity(path, card["masks"])}
            about |= _shapes(files.read_json(path / "config.json"))
        case "engine":
            about |= files.read_json(path / "engine.json")
        case "model":
            config = files.read_json(path / "config.json")
            about |= _shapes(config)
            parent = config.get("parent", {}) | {"model_type": config.get("parent_type")}  # where blocks differ
            about |= {k: parent.get(k) or config.get(k) for k in ("model_type", "architectures", "dtype")}
    if (path / "measured.json").exists():
        measured = files.read_json(path / "measured.json")
        if isinstance(measured.get("parity"), dict):  # an engine exported outside a run
            measured["parity"] = [measured["parity"]]
        about["measured"] = measured
    return about


def lines(about: Mapping[str, Any], indent: str = "", steps: int | None = None) -> list[str]:
    """Return what `show` found as lines to read.

    Args:
        about: what `show` returned.
        indent: put before every line.
        steps: how many of the last steps of an artifact's lineage to tell; all unless given.
    """
    head = f"{indent}{about['path']}: {about['kind']}, {about['size_mib']:.1f} MiB"
    inner = f"{indent}  "
    match about["kind"]:
        case "run":
            state = "finished" if about["finished"] else "not finished"
            parts = [lines(p, inner, steps=1) for p in (*about["steps"], *about["engines"])]
            return [f"{head}, {state}", *(line for part in parts for line in part)]
        case "artifact":
            lineage = about["lineage"][-steps:] if steps else about["lineage"]
            told = [line for step in lineage for line in _step_lines(step, inner)]
            return [head, *told, *_mask_lines(about, inner), *_shape_lines(about, inner)]
        case "engine":
            uses = " -> ".join(step["use"] for step in about["lineage"])
            told = [*_key_lines(about, _OF_ENGINES, inner), *_measured_lines(about, inner)]
            return [head, f"{inner}{uses} -> {about['exporter']}", *told]
        case _:
            told = _key_lines(about, ("model_type", "architectures", "dtype"), inner)
            return [head, *told, *_shape_lines(about, inner)]


def _step_lines(step: Mapping[str, Any], indent: str) -> list[str]:
    told = {k: v for k, v in step["settings"].items() if v not in (None, "", [])}
    settings = ", ".join(f"{k} = {_shown(v)}" for k, v in told.items())
    return [f"{indent}{step['use']}: {settings}", *(f"{indent}  {note}" for note in step["notes"])]


def _mask_lines(about: Mapping[str, Any], indent: str) -> list[str]:
    shares = about["sparsity"].values()
    if not shares:
        return []
    total = f"{about['sparsity_of_masked']:.2%} zeros under them"
    return [f"{indent}{len(shares)} masks: {total}, {min(shares):.2%} to {max(shares):.2%} per layer"]


def _shape_lines(about: Mapping[str, Any], indent: str) -> list[str]:
    """Return a line for each run of equal blocks, and one for the branches."""
    runs: list[tuple[int, int, str]] = []
    for index, block in enumerate(about.get("blocks", [])):
        attention = (
            "{heads} query heads on {kv_heads} key heads of width {head_dim}".format(**block) if block["heads"] else ""
        )
        what = f"{attention or 'no attention'}, {block['ffn'] or 'no'} neurons"
        first = runs.pop()[0] if runs and runs[-1][2] == what else index
        runs.append((first, index, what))
    told = [f"{indent}block {a}: {t}" if a == b else f"{indent}blocks {a} to {b}: {t}" for a, b, t in runs]
    if ranks := about.get("branches", {}).values():
        told.append(f"{indent}{len(ranks)} branches, rank {min(ranks)} to {max(ranks)}")
    return told


def _measured_lines(about: Mapping[str, Any], indent: str) -> list[str]:
    measured = about.get("measured", {})
    found = []
    for parity in measured.get("parity", []):
        found.append(f"{indent}parity: logits differ from the model's by at most {parity['logits']['difference']:.1e}")
    for engine in measured.get("latency", {}).get("engines", []):
        if Path(engine["folder"]).name == Path(about["path"]).name:
            times = ", ".join(f"{n} {engine[n]['ms']:.3g} ms" for n in ("prefill", "decode", "request") if engine[n])
            found.append(f"{indent}latency: {times}, {engine['request']['ratio']:.3g} of the parent's request")
    return found


def _key_lines(about: Mapping[str, Any], keys: Sequence[str], indent: str) -> list[str]:
    return [f"{indent}{key}: {_shown(about[key])}" for key in keys if about.get(key) is not None]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return blocks and branches of a `config.json` that tells them, as one does whose blocks differ."""
    return {k: config[k] for k in ("blocks", "branches")} if config.get("model_type") == "compress" else {}


def _sparsity(folder: Path, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Return the share of zeros under each mask; bits are counted packed, one mask at a time."""
    if not shapes:
        return {"sparsity": {}}
    import numpy as np
    from safetensors import safe_open

    with safe_open(folder / "masks.safetensors", framework="numpy") as masks:
        kept = {n: int(np.bitwise_count(masks.get_tensor(n)).sum(dtype=np.int64)) for n in shapes}
    shares = {n: round(1 - kept[n] / (rows * inputs), 6) for n, (rows, inputs) in shapes.items()}
    total = sum(rows * inputs for rows, inputs in shapes.values())
    return {"sparsity": shares, "sparsity_of_masked": round(1 - sum(kept.values()) / total, 6)}


def export(
    source: Path | str,
    folder: Path | str,
    *,
    use: str = "onnx",
    target: Target | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    task: Task = "causal-lm",
    trust_remote_code: bool = False,
) -> Path:
    """Export an artifact, a model folder, a hub id or the demo model; an engine is verified before it gets its name.

    Args:
        source: what to export.
        folder: the folder to write; must not exist yet, or be empty.
        use: the exporter.
        target: what the engine is for; a plain CPU unless given; of no use to exporters that write no engine.
        settings: the exporter's settings.
        task: of a model that is no artifact.
        trust_remote_code: whether Python files beside the weights may run.

    Returns:
        The folder.

    Raises:
        UserFault: an unknown exporter or setting, a model that cannot be opened or exported, a folder in the way.
        ParityError: the engine's outputs differ from the model's.
    """
    from compress import tree
    from compress.context import Context
    from compress.engines import Engines

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadSettings(f"{folder}: is there already and not empty; give another folder, or delete it")
    exporter = _exporter(use, settings or {})
    wanted = _target(target) if exporter.runtimes else None
    artifact = _opened(source, task, trust_remote_code)
    exporter.plan(tree.facts(artifact.model, artifact.task), wanted)
    with tempfile.TemporaryDirectory() as scratch, files.atomic_folder(folder) as new:
        context = Context(folder=Path(scratch))
        if wanted:
            Engines().build(artifact, exporter, wanted, new, context)
        else:
            exporter.export(artifact, new, context, None)
    return folder


def _exporter(use: str, settings: Mapping[str, Any]) -> Exporter:
    found = registry.load("exporters", use, Exporter)
    exporter = found(checked(found.Settings, settings, use))
    if missing := exporter.available():
        raise Unavailable(f"{use}: {missing}")
    return exporter


def _target(given: Target | Mapping[str, Any] | None) -> Target:
    return given if isinstance(given, Target) else checked(Target, given or {}, "target")


def _opened(source: Path | str, task: Task, trust_remote_code: bool) -> Any:
    from compress import loading
    from compress.artifact import Artifact

    if (Path(source) / "compress.json").exists():
        return Artifact.load(Path(source), trust_remote_code=trust_remote_code)
    return Artifact.of(loading.locate(str(source)), task, trust_remote_code=trust_remote_code)
