"""What a pass may reach beside its artifact: device, seed, data, its own folder, the report and the engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

if TYPE_CHECKING:
    from compress.artifact import Artifact
    from compress.contracts import Target
    from compress.data import Source
    from compress.engines import Engines
    from compress.facts import Facts


class Bar(Protocol):
    """A running inner bar."""

    def advance(self, amount: int = 1) -> None:
        """Move the bar."""

    def show(self, text: str) -> None:
        """Show a short text beside the bar, such as the last loss."""


class Report(Protocol):
    """Where a step tells what it does; measured values never enter a digest."""

    def bar(self, what: str, total: int, done: int = 0) -> Any:
        """Return a context manager that yields a `Bar`."""

    def note(self, text: str) -> None:
        """Print a line that also stays in the lineage of the step: a fallback, a choice, a surprise."""

    def tell(self, text: str) -> None:
        """Print a line that is not kept: of what was measured, which differs from run to run."""

    def record(self, name: str, value: Any) -> None:
        """Keep a measured figure, or append to a curve, under `name` in the step's `measured.json`."""


@dataclass(kw_only=True)
class QuietReport:
    """A report that only remembers: for the Python face and for tests."""

    notes: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    measured: dict[str, list[Any]] = field(default_factory=dict)

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Yield a bar that shows nothing."""
        yield _Silent()

    def note(self, text: str) -> None:
        """Remember the note."""
        self.notes.append(text)

    def tell(self, text: str) -> None:
        """Remember the line."""
        self.told.append(text)

    def record(self, name: str, value: Any) -> None:
        """Remember the figure."""
        self.measured.setdefault(name, []).append(value)


class _Silent:
    def advance(self, amount: int = 1) -> None:
        """Do nothing."""

    def show(self, text: str) -> None:
        """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """One step's surroundings.

    Attributes:
        device: where tensors live while the pass works.
        dtype: the precision in which it computes.
        seed: of everything random in the step.
        turn: how many steps before it trained on text, so that it reads this in another order than they did.
        folder: the step's own folder for checkpoints; survives a kill, vanishes when the step is finished.
        data: the sources by role (`calibration`, `training`); only those that the pass declares.
        report: where progress, notes and figures go.
        engines: the one way to an engine.
        parent: opens the dense parent, a fresh copy each time.
        facts: what was planned of the artifact that the step is given, patterns of masks among it; None without a plan.
        targets: what the engines are for, of those that the pass asked for, by name.
        model: where the architecture's configuration comes from: a folder, a hub id or `demo`.
        workers: how many processes may work side by side on what can be divided.
        cluster: whether those are processes of this machine or a Ray cluster's.
        cache: a folder that outlives the step, for what any run may use again, such as latency profiles.
    """

    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    seed: int = 0
    turn: int = 0
    data: dict[str, Source] = field(default_factory=dict)
    report: Report = field(default_factory=QuietReport)
    engines: Engines | None = None
    parent: Callable[[], Artifact] | None = None
    facts: Facts | None = None
    targets: Mapping[str, Target] = field(default_factory=dict)
    model: str = ""
    workers: int = 1
    cluster: Literal["local", "ray"] = "local"
    cache: Path | None = None
