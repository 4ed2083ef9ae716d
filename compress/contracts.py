"""What the ground calls: settings, passes, exporters and engines.

A plug-in is one file that holds one subclass of `Pass` or `Exporter`; its module docstring is its card.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from compress.facts import Facts

if TYPE_CHECKING:
    import numpy as np

    from compress.artifact import Artifact
    from compress.context import Context

DataUse = Literal["calibration", "training"]


class Settings(BaseModel):
    """A frozen table of the pipeline file; unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PassSettings(Settings):
    """What every pass takes: which linears of the blocks it works on."""

    include: tuple[str, ...] = Field(
        (), description="name patterns (fnmatch, or any part of the name) of the linears to work on; empty = all"
    )
    exclude: tuple[str, ...] = Field((), description="name patterns of the linears to leave alone")


class Target(Settings):
    """What the engine is for: a runtime on a device, and the request whose latency counts."""

    name: str = Field("cpu", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the engine folder")
    runtime: str = Field("onnxruntime", description="the runtime that loads the engine")
    device: str = Field("cpu", description="cpu or cuda")
    threads: int = Field(1, ge=1, description="threads of one operator")
    batch: int = Field(1, ge=1, description="sequences at once")
    prompt: int = Field(128, ge=1, description="prompt tokens")
    generate: int = Field(64, ge=0, description="generated tokens (0 for encoders)")
    precision: Literal["fp32", "fp16"] = Field("fp32", description="floating-point type of the graph")
    max_batch: int | None = Field(
        None, ge=1, description="most sequences at once that an engine of fixed ranges (TensorRT) takes; 4, or `batch`"
    )
    max_length: int | None = Field(
        None, ge=2, description="most tokens of a sequence that such an engine takes; 1024, or prompt + generate"
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a step will cost: trainable parameters, peak memory and disk in MiB, seconds."""

    trainable: int = 0
    peak_mib: float = 0.0
    disk_mib: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One choice that a pass has for a part of the model, judged with all else left as it is.

    Whoever chooses takes one candidate of every layer: scores and each cost are then summed over the layers.

    Attributes:
        layer: a linear; or a block, or its part `<block>:attention` or `<block>:ffn`, whose linears all get the same.
        choice: the settings that make it, such as `{"bits": 3}` or `{"pattern": "2:4"}`; empty = the layer as it is.
        score: how far the outputs of the model are then from the given one's; 0 as it is.  Nats a token of a causal
            language model, nats a row of a classifier, else the share of the outputs' energy.
        costs: what the layer takes, by name; `bytes` are those of its weights: floats, or packed codes with scales
            and zeros, or with zeros the weights that stay and a bit for each that tells which.
    """

    layer: str
    choice: Mapping[str, Any]
    score: float
    costs: Mapping[str, float]


class Pass(ABC):
    """One step from artifact to artifact.

    A subclass sets `Settings`, declares in `uses` which data it reads (so that the cache notices when they change)
    and implements `run`.
    """

    Settings: ClassVar[type[PassSettings]] = PassSettings
    uses: ClassVar[frozenset[DataUse]] = frozenset()
    streams: ClassVar[bool] = False  # whether it works on weights left on disk, through `Artifact.opened` alone
    quantized: ClassVar[bool] = False  # whether it works on a model of which some weights are codes already
    library: ClassVar[bool] = False  # whether it makes or reads a library of blocks; after any other pass there is none

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def data_uses(self) -> frozenset[DataUse]:
        """Return which data these settings read; a subset of `uses`."""
        return self.uses

    def targets(self, given: Mapping[str, Target]) -> Mapping[str, Target]:
        """Return those of the pipeline's targets that these settings are about, by name; none unless they are.

        Raises:
            BadSettings: a target that they name is not there.
        """
        return {}

    def files(self) -> Mapping[str, Path]:
        """Return the files that these settings name and the pass reads, by setting; their bytes decide what it gives.

        Raises:
            BadSettings: one is not there.
        """
        return {}

    def plan(self, facts: Facts) -> Facts:
        """Return the facts after this pass, or raise `BadSettings` when it cannot work on such a model."""
        return facts

    def estimate(self, facts: Facts) -> Estimate:
        """Return what the pass will cost on a model with these facts."""
        bytes_ = 4 * facts.parameters
        return Estimate(peak_mib=bytes_ / 2**20, disk_mib=bytes_ / 2**20, seconds=bytes_ / 1e9)

    @abstractmethod
    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Return the changed artifact; the given one's model may be changed in place and must not be used again."""

    def candidates(self, artifact: Artifact, context: Context) -> Sequence[Candidate]:
        """Return the choices for each layer, it as it is among them; none unless the pass judges layers one by one.

        The artifact is not changed; what was judged already is kept in `context.folder`.
        """
        return ()

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Raise `BrokenPromise` unless `after` is what this pass declares, `before` being its cached input."""


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

    def absent(self, folder: Path) -> str | None:
        """Return what this machine lacks to open what `export` wrote, and what would do; None where nothing is."""
        return None


Past = Sequence[tuple["np.ndarray", "np.ndarray"]]


class Engine(ABC):
    """A loaded engine: arrays in, arrays out, nothing of torch; `manifest` is the content of `engine.json`."""

    manifest: Mapping[str, Any]

    @abstractmethod
    def step(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, position_ids: np.ndarray, past: Past
    ) -> tuple[np.ndarray, Past]:
        """Run a decoder over new tokens.

        Args:
            input_ids: int64 [batch, new].
            attention_mask: int64 [batch, past + new], 0 = padding.
            position_ids: int64 [batch, new].
            past: one (key, value) pair of [batch, kv_heads, past, head_dim] per layer that has attention.

        Returns:
            logits float [batch, new, vocabulary] and the new past.
        """

    @abstractmethod
    def encode(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """Run an encoder: int64 [batch, tokens] each -> float [batch, labels or hidden]; types are 0 unless given."""

    def takes(self, batch: int, length: int) -> bool:
        """Tell whether it was made for so many sequences of so many tokens; else a step raises."""
        return True

    @abstractmethod
    def empty_past(self, batch: int) -> Past:
        """Return the past of length 0."""

    @abstractmethod
    def providers(self) -> tuple[str, ...]:
        """Return the execution providers really used."""

    def kernels(self) -> Mapping[str, str]:
        """Return the kernel chosen per layer where the runtime tells, else an empty table."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Free the engine's memory."""
