"""What the command line asks of latency profiles; `profiles/measure.py` answers, found by name like any plug-in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress import registry
from compress.context import Report
from compress.contracts import Exporter, Target
from compress.errors import BadSettings
from compress.facts import BlockConfig, GridFact, Planned, Task


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be measured.

    Attributes:
        model: a model folder, a hub id or `demo`, whose architecture and sizes outside the blocks are meant.
        task: what the model is for.
        target: runtime, device, threads, and the request.
        requests: more batches and prompts than the target's, as `(batch, prompt)`.
        shapes: more parts, as `attention:HIDDEN,HEADS,KV_HEADS,HEAD_DIM`, `ffn:HIDDEN,NEURONS` or `linear:ffn,HIDDEN`.
        kv_heads: fewer key heads, of which the model's attention is measured too.
        neurons: fewer neurons, of which the model's FFN is measured too.
        layouts: blocks of which every part is measured, beside the model's own.
        precisions: of all parts, by name.
        grids: codes that all parts are measured with too.
        patterns: of the zeros of all parts.
        copies: depths, ascending; a part's time is the slope between them.
        models: how many whole models of random parts tell what sums of parts miss.
        processes: fresh processes per measurement.
        seconds: to aim at, per phase and process.
        seed: of weights and of the whole models.
        host: where engines are timed, as ssh takes it; empty = on this machine.  They are built here all the same.
        python: what runs Python there.
    """

    model: str
    task: Task = "causal-lm"
    target: Target
    requests: tuple[tuple[int, int], ...] = ()
    shapes: tuple[str, ...] = ()
    kv_heads: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    layouts: tuple[tuple[BlockConfig, ...], ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    grids: tuple[GridFact, ...] = ()
    patterns: tuple[str, ...] = ("dense",)
    copies: tuple[int, ...] = (4, 8)
    models: int = 8
    processes: int = 8
    seconds: float = 0.5
    seed: int = 0
    host: str = ""
    python: str = "python3"


@dataclass(frozen=True, kw_only=True)
class Build:
    """A model to be timed before it is made, by its shapes alone.

    Attributes:
        layout: its blocks.
        plan: codes and zeros of the blocks' linears, by name; one that is not named is dense, in floats.
        branches: ranks of the low-rank paths beside the blocks' linears, by name.
    """

    layout: tuple[BlockConfig, ...]
    plan: Mapping[str, Planned] = field(default_factory=dict)
    branches: Mapping[str, int] = field(default_factory=dict)


class Profiler(ABC):
    """Takes profiles, checks them, tells what they say, and makes engines to be timed before any model is trained."""

    @abstractmethod
    def engine(
        self, model: str, task: Task, build: Build, target: Target, folder: Path, *, exporter: Exporter | None = None
    ) -> Path:
        """Write an engine of random weights that takes the time of a build, into a new folder, and return it.

        It goes through the target's own exporter, with the kernels that a finished engine may use; its values mean
        nothing.

        Args:
            model: a folder, a hub id or `demo`, whose architecture and sizes outside the blocks are meant.
            task: what the model is for.
            build: the blocks.
            target: what for.
            folder: to make.
            exporter: what writes it; unless given, whichever writes for the target's runtime, as it is by default.

        Raises:
            UserFault: such an engine cannot be made for this target.
        """

    @abstractmethod
    def take(self, wanted: Wanted, path: Path, report: Report) -> list[str]:
        """Measure what the file at `path` does not hold yet, write it part by part, and return lines about it."""

    @abstractmethod
    def check(self, wanted: Wanted, path: Path, report: Report, *, allow_foreign: bool = False) -> list[str]:
        """Measure a random tenth of a profile again and return lines about how far it has drifted."""

    @abstractmethod
    def lines(self, path: Path | str) -> list[str]:
        """Return what a profile file, or a table of a datasheet, says, as lines."""

    @abstractmethod
    def document(self, path: Path | str) -> dict[str, Any]:
        """Return what a profile file, or a table of a datasheet, says, as plain values."""

    @abstractmethod
    def figures(self, path: Path | str) -> dict[str, Any]:
        """Return what a page shows of a profile file, or of a datasheet: a `compress.report.Profile`."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of profile files."""

    @abstractmethod
    def known(self, path: Path | str) -> bool:
        """Tell whether that is a file, or the name of a table, that `lines` can tell of."""


def profiler() -> Profiler:
    """Return whoever takes profiles."""
    return registry.load("profiles", "measure", Profiler)()


def of_pipeline(file: Path | str, target: str | None = None) -> dict[str, Any]:
    """Return what a pipeline tells of a profile for it: model, task, target, and what its passes make.

    Args:
        file: a pipeline file; judged as a whole.
        target: a target's name; the first unless given.

    Raises:
        BadPipeline: the file has faults.
        BadSettings: it has no such target.
    """
    from compress import loading, settings

    opened = settings.read(file)
    facts = settings.check(opened)
    names = [t.name for t in opened.targets]
    if not names or (target and target not in names):
        there = f"there are {', '.join(names)}" if names else "add a [[target]]"
        raise BadSettings(f"{file}: has no target {target!r}; {there}", key="target")
    chosen = opened.targets[names.index(target) if target else 0]
    layouts = tuple(dict.fromkeys(f.layout for f in facts))
    grids = tuple(dict.fromkeys(g for f in facts for fact in f.grids.values() for g in fact.possible))
    source = opened.model.source
    if opened.model.revision:
        source = str(loading.locate(source, opened.model.revision))
    about = {"model": source, "task": opened.model.task, "target": chosen}
    return {**about, "layouts": layouts, "grids": grids}
