"""One step from artifact to artifact."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compress.contracts.settings import DataUse, PassSettings, Target
from compress.facts import Facts

if TYPE_CHECKING:
    from compress.artifact import Artifact
    from compress.context import Context


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
        """Return what the pass will cost on a model with these facts.

        Of a pass that reads data, `positions` are the tokens of its longest sequences, whatever the model could take.
        """
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
