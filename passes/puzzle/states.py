"""Where the tensors of variants come from: the library that came with the model, or how they begin without training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import PassSettings
from compress.errors import BadModel
from passes import _library
from passes._library import Library, SpaceSettings, State, Variant
from passes._sensitivity import Swap
from passes.puzzle.pieces import Pieces
from passes.puzzle.settings import PuzzleSettings

_SHOWN = 4  # of what a library lacks


class Begun(Mapping[str, State]):
    """Training-free states by the variants' keys, each made when it is asked for, from the parent's blocks as they are.

    Args:
        artifact: the parent.
        variants: all that may be asked for.
        settings: of the space.
        context: calibration data, and the folder where what was gathered of them is kept.
    """

    def __init__(
        self, artifact: Artifact, variants: Sequence[Variant], settings: SpaceSettings, context: Context
    ) -> None:
        self._artifact, self._variants = artifact, {v.key: v for v in variants}
        self._statistics = _library.statistics(artifact, variants, settings, context)
        shutil.rmtree(context.folder / "worth" / "hidden", ignore_errors=True)  # the folder outlives the step

    def __getitem__(self, key: str) -> State:
        variant = self._variants[key]
        return _library.initial(self._artifact, variant, self._statistics[variant.block])

    def __iter__(self) -> Iterator[str]:
        return iter(self._variants)

    def __len__(self) -> int:
        return len(self._variants)


def opened(settings: PuzzleSettings, artifact: Artifact) -> PuzzleSettings:
    """Return settings whose space, as far as they leave it open, is that of the library that came with the model."""
    if artifact.library is None:
        return settings
    told = Library(artifact.library).card["space"]
    space = SpaceSettings.model_fields.keys() - PassSettings.model_fields.keys()
    unsaid = (space - settings.model_fields_set) & told.keys()
    return settings.model_copy(update={k: tuple(v) if isinstance(v := told[k], list) else v for k in unsaid})


def states_of(
    artifact: Artifact, parent: str, pieces: Pieces, settings: SpaceSettings, context: Context
) -> Library | Begun:
    """Return the states of all variants but the parent's own: those of the library that came with the model, if any.

    Args:
        artifact: the parent.
        parent: digest of its tensors.
        pieces: the options.
        settings: of the space.
        context: data, report, and the folder where what is gathered of the data is kept.

    Raises:
        BadModel: the library was made for another model or with other data, or lacks some.
    """
    made = list(dict.fromkeys(p.variant for row in pieces.values() for p in row if not p.variant.parent))
    if artifact.library is None:
        if made:
            context.report.note("no library came with the model: blocks are as they begin, without training")
        return Begun(artifact, made, settings, context)
    library = Library(artifact.library)
    library.check(parent, {role: source.digest for role, source in context.data.items()})
    if missing := [v.key for v in made if not library.has(v)]:
        told = ", ".join(missing[:_SHOWN]) + (f", {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        raise BadModel(f"the library that came with the model has no {told}; make them too, or leave them out here")
    return library


def swap(artifact: Artifact, states: Library | Begun, picks: Sequence[Variant], key: str) -> Swap:
    """Return the change of a block to one variant, or to two, made as they would be realised.

    Args:
        artifact: the parent.
        states: of these variants.
        picks: of one block; what is not named stays the parent's.
        key: its name among all changes.
    """

    def made() -> nn.Module:
        return _library.assembled(artifact, picks, states).to(artifact.model.device)

    return Swap(key=key, block=_library.name_of(artifact.model, picks[0].block), made=made)
