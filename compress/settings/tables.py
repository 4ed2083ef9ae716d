"""What a pipeline file says, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from compress import budgets
from compress.contracts import Exporter, Pass, Settings, Target
from compress.data.settings import DataSettings, Role
from compress.errors import BadSettings
from compress.facts import Task
from compress.settings.expecting import Expect, OnNoGain, named
from compress.settings.places import Places

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
DEVICE = r"^(cpu|cuda(:\d+)?)$"
Name = Annotated[str, Field(pattern=NAME)]
ROLES: tuple[Role, ...] = ("calibration", "training", "evaluation")


class RunSettings(Settings):
    """`[run]`: where the run lives, and the seed of everything random."""

    folder: Path = Field(Path("runs"), description="the run folder; by default runs/<name of the pipeline file>")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    gain: bool = Field(
        False, description="measure what every pass is worth on its engine; else only those that `expect` something"
    )


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

    source: str = Field(
        min_length=1,
        description="a folder, a hub id (owner/name), 'demo', or 'package:name/folder' of an installed Python package",
    )
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


class SweepSettings(Settings):
    """`[sweep]`: an engine for each budget and target, all chosen out of the same blocks, by `compress sweep`."""

    budgets: tuple[Mapping[str, str | float], ...] = Field(
        min_length=1,
        description="limits as in the `budget` of the [[pass]] that chooses, one after the other in its place; such as "
        "[{ decode = '0.8x' }, { decode = '0.6x' }]",
    )
    targets: tuple[str, ...] | None = Field(None, description="names of targets; all unless given")
    heal: tuple[str, ...] | None = Field(
        None, description="names of the passes after the one that chooses that are to run; all unless given"
    )
    baselines: tuple[Literal["dense", "uniform", "greedy", "random"], ...] = Field(
        ("dense", "uniform", "greedy", "random"),
        description="what to show beside: the dense engine, and each budget met by the best choice that is the same in "
        "all layers, by a greedy choice and by chance",
    )
    profiles: Mapping[str, str] = Field(
        {},
        description="latency profiles by target, in place of the pass's own; of a target with a datasheet, times are "
        "estimated and no engine is made",
    )

    @field_validator("budgets")
    @classmethod
    def _read_all(cls, given: tuple[Mapping[str, str | float], ...]) -> tuple[Mapping[str, str | float], ...]:
        faults: list[str] = []
        seen: dict[str, int] = {}
        for index, budget in enumerate(given, start=1):
            try:
                name = budgets.slug(budgets.parse(budget))
            except BadSettings as error:
                faults += [f"item {index}: {line}" for line in str(error).splitlines()]
                continue
            if name in seen:
                faults.append(f"item {index}: is item {seen[name]} again, got {name}")
            seen[name] = index
        if faults:
            raise ValueError("; ".join(faults))
        return given


class PassTable(Settings):
    """What every `[[pass]]` takes beside the settings of its plug-in."""

    use: str = Field(description="the pass")
    name: Name | None = Field(None, description="the step's name; by default the pass's, numbered when it repeats")
    expect: Expect | None = Field(
        None, description="what it is to gain on the engine of the first target, such as { decode_speedup = 1.2 }"
    )
    on_no_gain: OnNoGain = Field(
        "keep", description="when it does not gain that, or without `expect` does not pay: go on, without it, or stop"
    )
    dense: bool = Field(
        False,
        description="whether what it leaves is the dense model that all else is measured beside, as after fine-tuning "
        "to a task; else that is the model as it came",
    )

    _named = field_validator("expect", mode="before")(named)


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
        expect: of a pass, what it is to gain.
        on_no_gain: of a pass, what happens when it does not.
        dense: of a pass, whether it leaves the dense model that all else is measured beside.
    """

    index: int
    use: str
    name: str
    plugin: Pass | Exporter
    line: int
    targets: tuple[str, ...] = ()
    expect: Expect | None = None
    on_no_gain: OnNoGain = "keep"
    dense: bool = False

    @property
    def bound(self) -> bool:
        """Whether it is held to what it gains."""
        return self.expect is not None or self.on_no_gain != "keep"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline file without faults of its own.

    Attributes:
        path: the file.
        data: by role: `calibration`, `training`, `evaluation`; always all three.
        targets: what the engines are for; empty only when no exporter writes engines.
        passes: in the order in which they run.
        exports: what leaves at the end.
        sweep: what `compress sweep` varies.
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
    sweep: SweepSettings | None = None

    @property
    def dense(self) -> int:
        """How many passes lead to the dense model that all is measured beside; 0 = it is the model as it came."""
        return next((number for number, entry in enumerate(self.passes, start=1) if entry.dense), 0)

    @property
    def estimated(self) -> frozenset[str]:
        """Names of targets that only a datasheet tells of: no engine is made for them."""
        return (
            frozenset(n for n, source in self.sweep.profiles.items() if not Path(source).is_file())
            if (self.sweep)
            else frozenset()
        )


TABLES: dict[str, Any] = {
    "run": RunSettings, "compute": ComputeSettings, "model": ModelSettings, "sweep": SweepSettings,
}  # fmt: skip
LISTS = ("target", "pass", "export")
