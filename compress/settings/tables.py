"""What a pipeline file says, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from compress.contracts import Exporter, Pass, Settings, Target
from compress.data.settings import DataSettings, Role
from compress.facts import Task
from compress.settings.places import Places

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
DEVICE = r"^(cpu|cuda(:\d+)?)$"
Name = Annotated[str, Field(pattern=NAME)]
ROLES: tuple[Role, ...] = ("calibration", "training", "evaluation")


class RunSettings(Settings):
    """`[run]`: where the run lives, and the seed of everything random."""

    folder: Path = Field(Path("runs"), description="the run folder; by default runs/<name of the pipeline file>")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")


class ComputeSettings(Settings):
    """`[compute]`: where the passes run."""

    device: str = Field("cpu", pattern=DEVICE, description="cpu, cuda or cuda:<number>")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of the passes")
    threads: int | None = Field(None, ge=1, description="CPU threads; all cores unless given")
    engine: Literal["local", "ray"] = Field(
        "local", description="where work that can be divided goes: processes of this machine, or a Ray cluster"
    )
    workers: int | None = Field(
        None, ge=1, description="processes side by side for such work; one a core (or a node's core) unless given"
    )
    weights: Literal["memory", "disk"] = Field(
        "memory", description="where weights stay; with 'disk' one block at a time is read, whatever the model's size"
    )


class ModelSettings(Settings):
    """`[model]`: the transformer to start from."""

    source: str = Field(min_length=1, description="a folder, a hub id (owner/name) or 'demo'")
    task: Task = Field("causal-lm", description="what the model is for")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    trust_remote_code: bool = Field(False, description="whether Python files beside the weights may run")
    labels: int | None = Field(None, ge=2, description="classes, when a classification head is to be made anew")

    @field_validator("labels")
    @classmethod
    def _only_of_classes(cls, labels: int | None, info: ValidationInfo) -> int | None:
        if labels is not None and info.data.get("task") != "classification":
            raise ValueError("only task = 'classification' has labels; leave it out")
        return labels


class PassTable(Settings):
    """What every `[[pass]]` takes beside the settings of its plug-in."""

    use: str = Field(description="the pass")
    name: Name | None = Field(None, description="the step's name; by default the pass's, numbered when it repeats")


class ExportTable(Settings):
    """What every `[[export]]` takes beside the settings of its plug-in."""

    use: str = Field(description="the exporter")
    name: Name | None = Field(
        None, description="the export's name; by default the exporter's, numbered when it repeats"
    )
    targets: tuple[str, ...] | None = Field(
        None, description="names of targets; by default all whose runtime opens what the exporter writes"
    )


@dataclass(frozen=True)
class Entry:
    """One `[[pass]]` or `[[export]]`.

    Attributes:
        index: its place in the file among its kind, from 1.
        use: the plug-in's name.
        name: the step's name, unique among its kind.
        plugin: the plug-in with its settings.
        line: where its table begins.
        targets: of an export, the targets it serves; empty where it needs none.
    """

    index: int
    use: str
    name: str
    plugin: Pass | Exporter
    line: int
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline file without faults of its own.

    Attributes:
        path: the file.
        data: by role: `calibration`, `training`, `evaluation`; always all three.
        targets: what the engines are for; empty only when no exporter writes engines.
        passes: in the order in which they run.
        exports: what leaves at the end.
        places: the line of every table and key.
    """

    path: Path
    run: RunSettings
    compute: ComputeSettings
    model: ModelSettings
    data: Mapping[str, DataSettings]
    targets: tuple[Target, ...]
    passes: tuple[Entry, ...]
    exports: tuple[Entry, ...]
    places: Places = field(repr=False, compare=False)


TABLES: dict[str, Any] = {"run": RunSettings, "compute": ComputeSettings, "model": ModelSettings}
LISTS = ("target", "pass", "export")
