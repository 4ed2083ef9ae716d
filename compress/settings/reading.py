"""Read a pipeline file; judge all that the file alone can tell."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress import registry
from compress.data import corpora
from compress.data.settings import DataSettings
from compress.errors import BadPipeline
from compress.facts import Facts
from compress.settings import entries
from compress.settings.faults import Faults
from compress.settings.judging import judge, judge_rest
from compress.settings.places import Places
from compress.settings.sweeping import judge_sweep, without_estimated
from compress.settings.tables import (
    LISTS,
    ROLES,
    TABLES,
    ComputeSettings,
    ModelSettings,
    Pipeline,
    RunSettings,
    SweepSettings,
)

BUILT_IN = ("demo", *corpora.ALL)
DEFAULT_EXPORT = "onnx"


def read(path: Path | str) -> Pipeline:
    """Return what a pipeline file says.

    A healthy file is judged alone.  Of a faulty one, what could be read is judged against a local model too, so that
    one look shows all that is to be mended.

    Raises:
        BadPipeline: every fault, a line each: `file:line: table[i].key (plug-in): what is wrong, got what; what to do`.
    """
    path = Path(path)
    text = _text(path)
    document = _parsed(path, text)
    places = Places(text)
    faults = Faults(path, places)
    pipeline = _pipeline(path, document, places, faults)
    source = pipeline.model.source if pipeline else ""
    if faults and pipeline and (source == "demo" or Path(source).is_dir()):
        judge(pipeline, faults)
    faults.raise_any()
    assert pipeline is not None
    return pipeline


def check(pipeline: Pipeline | Path | str) -> list[Facts]:
    """Judge a pipeline against its model, its data and this machine, before any compute.

    Returns:
        The facts of the model as it is, then after each pass.

    Raises:
        BadPipeline: every fault, a line each.
    """
    opened = pipeline if isinstance(pipeline, Pipeline) else read(pipeline)
    faults = Faults(opened.path, opened.places)
    facts = judge(opened, faults)
    faults.raise_any()
    return facts


def check_rest(pipeline: Pipeline, done: int, facts: Facts) -> list[Facts]:
    """Judge what is left of a pipeline once a pass has chosen what could not be told before.

    Args:
        pipeline: checked as a whole before.
        done: how many passes have run.
        facts: of the model that the last of them left.

    Returns:
        These facts, then those after each pass to come.

    Raises:
        BadPipeline: every fault, a line each.
    """
    faults = Faults(pipeline.path, pipeline.places)
    found: list[Facts] = judge_rest(pipeline, done, facts, faults)
    faults.raise_any()
    return found


def _pipeline(path: Path, document: Mapping[str, Any], places: Places, faults: Faults) -> Pipeline | None:
    """Return the file with what is faulty left out; None without a model."""
    _check_kinds(document, faults)
    run = faults.validated(RunSettings, {"folder": f"runs/{path.stem}", **_table(document, "run")}, ("run",))
    compute = faults.validated(ComputeSettings, _table(document, "compute"), ("compute",))
    model = _model(document, path.parent, faults)
    data = _data(document, path.parent, faults)
    passes = entries.read("pass", _list(document, "pass"), faults, places)
    leaving = _list(document, "export") if document.get("export") else [{"use": DEFAULT_EXPORT}]
    exports = entries.read("export", leaving, faults, places)
    tables = _list(document, "target") or ([{}] if entries.needs_target(exports) else [])
    targets = entries.read_targets(tables, faults, generates=model is None or model.task == "causal-lm")
    if not faults.about("target", "export"):
        exports = entries.served(exports, targets, faults)
    if faults.about("target", "export", "pass"):
        exports = ()  # what the faulty ones would change is not known
    sweep = faults.validated(SweepSettings, _table(document, "sweep"), ("sweep",)) if "sweep" in document else None
    if model is None:
        return None
    read = Pipeline(
        path=path, run=run or RunSettings(), compute=compute or ComputeSettings(), model=model, data=data,
        targets=targets, passes=passes, exports=exports, places=places, sweep=sweep,
    )  # fmt: skip
    if sweep and not faults.about("target", "pass"):
        judge_sweep(read, faults)
    return without_estimated(read)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BadPipeline([f"{path}: no such file; `compress init MODEL -o {path}` writes one"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadPipeline([f"{path}:{line}: is no UTF-8 text ({error.reason}); save it as UTF-8"]) from None
    except OSError as error:
        raise BadPipeline([f"{path}: cannot be read ({error.strerror})"]) from None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at ")
        numbers = re.findall(r"\d+", place)
        lines = text.rstrip("\n").split("\n")
        line, column = numbers if len(numbers) == 2 else (len(lines), len(lines[-1]) + 1)
        raise BadPipeline([f"{path}:{line}:{column}: is no TOML: {what[:1].lower()}{what[1:]}"]) from None


def _check_kinds(document: Mapping[str, Any], faults: Faults) -> None:
    """Report unknown tables, and tables written as lists or the other way round."""
    known = (*TABLES, "data", *LISTS)
    for name, content in document.items():
        if name not in known:
            faults.add((name,), f"unknown table{registry.nearest(name, known)}")
        elif name in LISTS and not (isinstance(content, list) and all(isinstance(c, dict) for c in content)):
            faults.add((name,), f"must be written [[{name}]], with two brackets, since it may repeat")
        elif name not in LISTS and not isinstance(content, dict):
            faults.add((name,), f"must be a table, written [{name}]")


def _table(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    content = document.get(name, {})
    return dict(content) if isinstance(content, dict) else {}


def _list(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    content = document.get(name, [])
    return [c for c in content if isinstance(c, dict)] if isinstance(content, list) else []


def _model(document: Mapping[str, Any], folder: Path, faults: Faults) -> ModelSettings | None:
    if "model" not in document:
        faults.add(("model",), 'the table is missing; add [model] with source = a folder, a hub id or "demo"')
        return None
    return faults.validated(ModelSettings, _beside(_table(document, "model"), folder), ("model",))


def _data(document: Mapping[str, Any], folder: Path, faults: Faults) -> dict[str, DataSettings]:
    tables = _table(document, "data")
    for name, content in tables.items():
        if name not in ROLES:
            faults.add(("data", name), f"unknown use of data{registry.nearest(name, ROLES)}")
        elif not isinstance(content, dict):
            faults.add(("data", name), f"must be a table, written [data.{name}]")
    read = {}
    for role in ROLES:
        content = DataSettings.defaults(role) | _beside(_table(tables, role), folder)
        read[role] = faults.validated(DataSettings, content, ("data", role))
    return {role: settings for role, settings in read.items() if settings}


def _beside(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Let a relative source that stands beside the pipeline file mean that."""
    source = table.get("source")
    if isinstance(source, str) and source and source not in BUILT_IN and (folder / source).exists():
        table["source"] = str(folder / source)
    return table
