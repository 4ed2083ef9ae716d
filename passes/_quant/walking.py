"""What quantizers share that walk the blocks with calibration windows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse
from compress.facts import GridFact
from compress.grid import Grid
from passes._layerwise import Journal, Layer, LayerwiseSettings, walk_
from passes._quant.base import Quantizer


class Walking(Quantizer):
    """Turn weights into codes block by block; what was found of finished blocks is kept for whoever resumes."""

    uses = frozenset[DataUse]({"calibration"})
    streams = True

    @abstractmethod
    def change_(
        self, layers: Sequence[Layer], planned: Mapping[str, GridFact], artifact: Artifact, journal: Journal
    ) -> dict[str, Grid]:
        """Give layers, as the walk hands them over, the weights that their codes stand for, and return the codes.

        Args:
            layers: one or more, with the products of their inputs.
            planned: the grid of every linear.
            artifact: whose model it is.
            journal: of what was tried.
        """

    def walked(self, artifact: Artifact, settings: LayerwiseSettings, context: Context) -> Artifact:
        """Return the artifact quantized."""
        planned = self.resolved(artifact, context)
        if not planned:
            self.tell(artifact, context, planned)
            return artifact
        journal = Journal(context.folder / "journal.json")

        def change_(layers: Sequence[Layer]) -> dict[str, Grid]:
            made = self.change_(layers, planned, artifact, journal)
            journal.save()
            return made

        grids = walk_(artifact, list(planned), settings, context, change_, gram=True).grids
        self.tell(artifact, context, planned)
        journal.tell(list(planned), context.report)
        return artifact.after(grids=grids)
