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
from passes._quant import inputs
from passes._quant.base import Quantizer
from passes._quant.settings import StaticSettings


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

    def walked(
        self, artifact: Artifact, settings: LayerwiseSettings, context: Context, *, gram: bool = True
    ) -> Artifact:
        """Return the artifact quantized; `gram` as in `walk_`."""
        planned = self.resolved(artifact, context)
        if not planned:
            self.tell(artifact, context, planned)
            return artifact
        journal = Journal(context.folder / "journal.json")

        weights, own = inputs.weights(planned), self.settings
        range_ = own.input_range if isinstance(own, StaticSettings) else "mse"

        def change_(layers: Sequence[Layer]) -> dict[str, Grid]:
            made = self.change_(layers, weights, artifact, journal)
            journal.save()
            return inputs.with_steps(made, layers, planned, range_)

        static = weights != planned
        grids = walk_(artifact, list(planned), settings, context, change_, gram=gram, sizes=static).grids
        self.tell(artifact, context, planned)
        journal.tell(list(planned), context.report)
        return artifact.after(grids=grids)
