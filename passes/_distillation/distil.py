"""Variants of a search space distilled into a library: part by part beside the parent's other, or both together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from compress.artifact import Artifact
from compress.context import Context
from passes._distillation.settings import DistilSettings
from passes._distillation.teaching import Made, Student, teach
from passes._library import MASK, Library, SpaceSettings, Statistics, Variant, initial, masks_of, module, statistics

Pick = tuple[Variant, ...]  # one part of a block, or both


def distil(
    artifact: Artifact,
    picks: Sequence[Pick],
    library: Library,
    space: SpaceSettings,
    settings: DistilSettings,
    context: Context,
    *,
    name: str = "distillation",
) -> None:
    """Train what is picked and keep it in the library; what that has stays as it is.

    Of a pick of one variant, or of two of which one is the parent's, the part is trained beside the parent's other,
    which is frozen; of any other two both are trained, together, from where each was after it was trained alone, if the
    library has that.

    Args:
        artifact: the parent, on the context's device; stays as it is.
        picks: of one block each.
        library: where what is trained goes, each as soon as it is done.
        space: how variants begin.
        settings: how they are trained.
        context: calibration and training data, workers, device, seed, report; a killed run resumes from its folder.
        name: of the bar and the folder; unique within a pass.

    Raises:
        BadData: too few data.
        UserFault: a worker died again and again.
        Unavailable: a Ray cluster is asked for and Ray is not here.
    """
    every = list(dict.fromkeys(made for pick in picks if (made := tuple(v for v in pick if not v.parent))))
    wanted = [pick for pick in every if not all(library.has(v, beside=_other(v, pick)) for v in pick)]
    fresh = [v for pick in wanted for v in pick if not library.has(v)]
    found = statistics(artifact, fresh, space, context, settings.batch) if fresh else {}
    students = [_Lesson(artifact, library, found, pick).student() for pick in wanted]
    teach(artifact, students, settings, context, name=name, done=len(every) - len(wanted))


class _Lesson:
    """One pick on its way from the search space into the library."""

    def __init__(self, artifact: Artifact, library: Library, found: Mapping[int, Statistics], pick: Pick) -> None:
        self.artifact, self.library, self.found, self.pick = artifact, library, found, pick
        self.names, self.masks = dict[str, list[str]](), dict[str, Tensor]()

    def student(self) -> Student:
        """Return what is to be trained."""
        first, *rest = self.pick
        return Student(
            key="+".join((first.key, *(v.key.partition("-")[2] for v in rest))),
            told=f"block {first.block}, {' and '.join(f'{v.part} {v.name}' for v in self.pick)}",
            index=first.block,
            make=self.make,
            keep=self.keep,
        )

    def make(self) -> Made:
        """Return the block as it begins, with all of the picked parts to be trained."""
        states = {v.key: self._begun(v) for v in self.pick}
        state = {n: t for each in states.values() for n, t in each.items()}
        self.names, self.masks = {key: list(each) for key, each in states.items()}, masks_of(state)
        masks = {f"{n}.weight": mask for n, mask in self.masks.items()}
        return module(self.artifact, self.pick, state), [n for n in state if not n.endswith(MASK)], masks

    def keep(self, trained: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Put the parts into the library."""
        state = {**trained, **{f"{n}{MASK}": mask for n, mask in self.masks.items()}}
        for variant in self.pick:
            own = {n: state[n] for n in self.names[variant.key]}
            self.library.add(variant, own, record, beside=_other(variant, self.pick))
        self.masks = {}

    def _begun(self, variant: Variant) -> Mapping[str, Tensor]:
        kept = self.library.state(variant)
        return initial(self.artifact, variant, self.found[variant.block]) if kept is None else kept


def _other(variant: Variant, pick: Pick) -> Variant | None:
    return next((v for v in pick if v != variant), None)
