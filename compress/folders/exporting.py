"""An export outside a pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import files, grids, registry
from compress.contracts import Exporter, Target
from compress.errors import BadSettings, Unavailable
from compress.facts import Task
from compress.settings.faults import checked

if TYPE_CHECKING:
    from compress.context import Report


def export(
    source: Path | str,
    folder: Path | str,
    *,
    use: str = "onnx",
    target: Target | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    task: Task = "causal-lm",
    trust_remote_code: bool = False,
    report: Report | None = None,
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
        report: receives notes and figures.

    Returns:
        The folder.

    Raises:
        UserFault: an unknown exporter or setting, a model that cannot be opened or exported, a folder in the way.
        ParityError: the engine's outputs differ from the model's.
    """
    from compress import tree
    from compress.context import Context, QuietReport
    from compress.engines import Engines

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadSettings(f"{folder}: is there already and not empty; give another folder, or delete it")
    exporter = _exporter(use, settings or {})
    wanted = _target(target) if exporter.runtimes else None
    artifact = _opened(source, task, trust_remote_code)
    facts = tree.facts(artifact.model, artifact.task).after(grids=grids.facts(artifact.grids))
    exporter.plan(facts, wanted)
    with tempfile.TemporaryDirectory() as scratch, files.atomic_folder(folder) as new:
        context = Context(folder=Path(scratch), report=report or QuietReport())
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
