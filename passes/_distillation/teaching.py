"""Blocks trained one by one on what the parent's blocks read and give; no gradient goes from one to another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import Bar, Context
from compress.errors import BadData
from passes._distillation import hollow, packing, pool
from passes._distillation.doors import Doors
from passes._distillation.job import CHUNKS, DOORS, JOBS, MODEL, Job
from passes._distillation.settings import DistilSettings
from passes._layerwise import Stream, lead
from passes._train import autocast, draw

Made = tuple[nn.Module, Sequence[str], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Student:
    """A block that is to learn what one of the parent's gives.

    Attributes:
        key: a name of its own, good for files.
        told: what it is, in words.
        index: the number of the parent's block.
        make: asked while that block is open; returns the block to train, the parameters that are trained by their names
            within it, and of those that have one the mask, bool of their shape, True = kept.
        keep: gets what was trained by the same names, and what is known of it: the held-out errors `before` and
            `after`, the `best` of the `steps`.
    """

    key: str
    told: str
    index: int
    make: Callable[[], Made]
    keep: Callable[[Mapping[str, Tensor], Mapping[str, Any]], None]


def teach(
    artifact: Artifact,
    students: Sequence[Student],
    settings: DistilSettings,
    context: Context,
    *,
    name: str = "distillation",
    done: int = 0,
) -> None:
    """Train blocks, each by itself, as many side by side as there are workers.

    One block of the parent is open at a time, and of its hidden states those are kept on disk that somebody reads yet.
    A killed run goes on where each training was; what comes out is the same, whoever works.

    Args:
        artifact: the parent, on the context's device; stays as it is.
        students: what to train, without those that an earlier run has kept.
        settings: how.
        context: training data to learn from, calibration data to judge by, workers, device, seed, report.
        name: of the bar, and of the folder of the context's in which all this is; unique within a pass.
        done: how many more an earlier run has kept, for the bar.

    Raises:
        BadData: no rows to train on, or to judge by.
        UserFault: a worker died again and again.
        Unavailable: a Ray cluster is asked for and Ray is not here.
    """
    if students:
        _Teaching(artifact, students, settings, context, name).run(done)


class _Teaching:
    def __init__(
        self, artifact: Artifact, students: Sequence[Student], settings: DistilSettings, context: Context, name: str
    ) -> None:
        self.artifact, self.settings, self.context, self.name = artifact, settings, context, name
        self.students = sorted(students, key=lambda s: s.index)
        self.left = Counter(s.index for s in students)
        self.folder = context.folder / name
        hollow.keep(artifact, self.folder / MODEL)
        artifact.model.train(False)
        stream = Stream(self.folder / "hidden", context.device)
        with autocast(settings, context.device):
            chunks = lead(artifact, *self._rows(), settings.batch, context.device, stream)
        (self.folder / CHUNKS).mkdir(exist_ok=True)
        packing.pack(self.folder / CHUNKS, chunks)
        self.doors = Doors(self.folder / DOORS, stream, chunks)

    def run(self, done: int) -> None:
        """Train all, and keep each as it is done."""
        by_folder = {self._folder(s): s for s in self.students}
        threads, count = self.settings.threads, len(self.students)
        with ExitStack() as stack:
            bar: Bar = stack.enter_context(self.context.report.bar(self.name, done + count, done))
            submit, ahead = stack.enter_context(pool.hands(self.context, self.folder, threads, count))

            def died(text: str) -> None:
                bar.show(text)
                self.context.report.record("deaths", text)

            for job in pool.done(self._jobs(), submit, ahead, died):
                student, (trained, record) = by_folder[job.folder], job.result()
                student.keep(trained, record)
                job.forget()
                self._forget(student.index)
                bar.advance()
                bar.show(f"{student.told}: {record['before']:.3g} -> {record['after']:.3g}")

    def _jobs(self) -> Iterator[Job]:
        """Yield jobs block after block, the parent's hidden states led on as they are asked for."""
        last = self.students[-1].index
        for index, name in enumerate(list(tree.blocks(self.artifact.model))[: last + 1]):
            here = [s for s in self.students if s.index == index]
            with self.artifact.opened(name) as block:
                with autocast(self.settings, self.context.device):
                    self.doors.lead_(index, block, wanted=bool(here))
                for student in here:
                    yield self._job(student)

    def _job(self, student: Student) -> Job:
        block, trained, masks = student.make()
        job = Job(
            folder=self._folder(student),
            told=student.told,
            index=student.index,
            config=tree.shape(block, tree.family(self.artifact.model)),
            trained=tuple(trained),
            settings=self.settings,
            seed=self.context.seed,
            device=str(self.context.device),
        )
        job.write(block.state_dict(), masks)
        return job

    def _folder(self, student: Student) -> Path:
        return self.folder / JOBS / student.key

    def _forget(self, index: int) -> None:
        """Give back the doors that nobody reads any more, once a student of this block is done."""
        self.left[index] -= 1
        for door in (index, index + 1):
            if not self.left[door] and not self.left[door - 1]:
                self.doors.forget(door)

    def _rows(self) -> tuple[list[Any], list[Any]]:
        """Return the rows that are trained on, no more than the steps take, and those that judge."""
        given, found = self.settings, []
        needed = max(given.steps * given.accumulation * given.batch, 1)
        for role, count in (("training", needed), ("calibration", given.held_out)):
            examples = self.context.data[role].examples(self.artifact.tokenizer)
            if not len(examples):
                raise BadData(f"{role}: has no rows to train blocks on, or to judge them by; give some")
            found.append([(examples, draw(0, len(examples), count, self.context.seed))])
        return found[0], found[1]
