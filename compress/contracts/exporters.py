"""One way from an artifact to a folder that something else opens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compress.contracts.engines import Engine
from compress.contracts.settings import DataUse, Settings, Target
from compress.facts import Facts

if TYPE_CHECKING:
    from compress.artifact import Artifact
    from compress.context import Context


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an exporter wrote.

    Attributes:
        files: their names.
        facts: what `engine.json` carries of them.
        variants: faster ways to write the same engine, which lose some precision; what was written is exact.
        tolerance: what a variant may lose to be used, as `compress.engines.choice` measures it; None = anything.
    """

    files: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    tolerance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Another way to write an engine: its name, and what writes it into an existing, empty folder."""

    name: str
    write: Callable[[Path], Export]


class Exporter(ABC):
    """One way from an artifact to a folder that something else opens."""

    Settings: ClassVar[type[Settings]] = Settings
    runtimes: ClassVar[tuple[str, ...]] = ()  # of `Target.runtime`, those that open what this writes
    uses: ClassVar[frozenset[DataUse]] = frozenset()
    streams: ClassVar[bool] = False  # whether it works on weights left on disk
    patterns: ClassVar[tuple[str, ...]] = ()  # of zeros, as `N:M`, those that its runtimes have kernels for
    ahead: ClassVar[bool] = False  # whether it writes engines for devices that are not here, and `absent` tells

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def data_uses(self, facts: Facts) -> frozenset[DataUse]:
        """Return which data it reads to export such a model; a subset of `uses`."""
        return self.uses

    def available(self) -> str | None:
        """Return why this exporter cannot work here, or None."""
        return None

    def plan(self, facts: Facts, target: Target | None) -> None:
        """Raise `BadSettings` when such a model cannot be exported for the target."""

    @abstractmethod
    def export(self, artifact: Artifact, folder: Path, context: Context, target: Target | None) -> Export:
        """Write the artifact into the (existing, empty) folder."""

    def open(self, folder: Path, target: Target) -> Engine:
        """Open what `export` wrote; only for exporters with runtimes."""
        raise TypeError(f"{type(self).__name__} writes no engine")

    def used(self, folder: Path) -> list[str]:
        """Return in words how many layers of what `export` wrote have kernels that use their zeros and codes.

        Only of runtimes that choose kernels by themselves, where it is a question; one that does not tell is `unknown`.
        """
        return []

    def absent(self, folder: Path) -> str | None:
        """Return what this machine lacks to open what `export` wrote, and what would do; None where nothing is."""
        return None
