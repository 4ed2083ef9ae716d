"""Block by block on calibration windows, against the dense parent's output on the same input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compress.artifact import Artifact
from compress.context import Context
from passes import _adapter, _blockwise
from passes._blockwise import Way
from passes._train import Group, frozen, parent_of
from passes.perp.settings import PerpSettings
from passes.perp.subsets import Chosen, attach_


def run_(artifact: Artifact, chosen: Chosen, settings: PerpSettings, context: Context) -> None:
    """Train and merge one block after the other."""
    what = "'reconstruct'"
    way = Way(settings=settings, window=settings.window, dense=settings.inputs == "dense", what=what)
    trainee = _Perp(artifact, chosen, settings, context.seed)
    with (
        parent_of(settings, context, what, key="mode") as parent,
        frozen(artifact.model, settings, context.device),
    ):
        _blockwise.reconstruct_(artifact, parent, trainee, way, context)


@dataclass(frozen=True)
class _Perp:
    """What PERP trains, a block at a time."""

    artifact: Artifact
    chosen: Chosen
    settings: PerpSettings
    seed: int

    def linears(self, block: str) -> list[str]:
        """Return the linears of a block that get an adapter."""
        return list(self._inside(block).linears)

    def groups(self, block: str, linears: list[str]) -> list[Group]:
        """Put adapters into these linears, and return what is trained of them and of norms and biases."""
        return attach_(self.artifact, self._inside(block), self.settings, self.seed, linears)

    def merge_(self, block: nn.Module) -> None:
        """Merge the adapters."""
        _adapter.merge_(block)

    def kept(self, block: str) -> list[str]:
        """Return the parameters of a block that change."""
        return sorted(self._inside(block).changes(self.artifact.model))

    def _inside(self, block: str) -> Chosen:
        small, linears = (
            tuple(n for n in names if n.startswith(f"{block}.")) for names in (self.chosen.small, self.chosen.linears)
        )
        return Chosen(small=small, linears=linears, form=self.chosen.form)
