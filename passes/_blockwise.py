"""Block by block on calibration windows, against the dense parent's output on the same input.

A part of the windows is held out, and the state that is best there stays, so that no window of a block gets worse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress import files, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BrokenPromise
from passes._layerwise import Chunk, Stream, first, pass_, run, windows
from passes._train import Group, TrainSettings, autocast, draw, train_

_VALIDATIONS = 10  # of a window's training

Output = Callable[[nn.Module, int], Tensor]  # what a window of a block gives for a chunk, by its number


class Trainee(Protocol):
    """What is trained in the blocks of a model."""

    def linears(self, block: str) -> list[str]:
        """Return the linears of a block that are trained."""

    def groups(self, block: str, linears: list[str]) -> list[Group]:
        """Return what is trained of some of a block's linears, and of all else in it, set up; none, if nothing is."""

    def merge_(self, block: nn.Module) -> None:
        """Leave in a block what stays there once one of its windows is trained."""

    def kept(self, block: str) -> list[str]:
        """Return the parameters of a block that change, by name in order: what its checkpoint holds."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the blocks are gone through.

    Attributes:
        settings: how each window is trained, and how many calibration windows go through at once.
        window: attention and MLP each by itself, or whole blocks.
        dense: whether blocks read what the blocks before gave in the parent, or what they give now.
        what: who asks, for messages.
    """

    settings: TrainSettings
    window: Literal["module", "block"]
    dense: bool
    what: str


def reconstruct_(artifact: Artifact, parent: PreTrainedModel, trainee: Trainee, way: Way, context: Context) -> None:
    """Train one block after the other; the first finished ones are read from their checkpoints.

    Args:
        artifact: its model, frozen.
        parent: the dense parent's model on the context's device, frozen.
        trainee: what is trained.
        way: how.
        context: calibration data, and where checkpoints and figures go.

    Raises:
        BrokenPromise: the parent has more blocks or fewer.
    """
    students, teachers = tree.blocks(artifact.model), tree.blocks(parent)
    if len(students) != len(teachers):
        raise BrokenPromise(f"the model has {len(students)} blocks and its parent {len(teachers)}")
    stream = Stream(context.folder / "hidden", context.device)
    with autocast(way.settings, context.device):
        chunks = windows(artifact, way.settings.batch, context, way.what, stream)
    with context.report.bar("blocks", len(students)) as bar:
        for index, (name, teacher) in enumerate(zip(students, teachers.values(), strict=True)):
            block = _Block(artifact, trainee, way, context, chunks, stream, name, index, students[name], teacher)
            block.reconstruct_()
            if index + 1 < len(students):
                with autocast(way.settings, context.device):
                    pass_(block.reads, index, chunks, stream)
            bar.advance()


class _Block:
    """One block of the model beside the parent's."""

    def __init__(
        self,
        artifact: Artifact,
        trainee: Trainee,
        way: Way,
        context: Context,
        chunks: Sequence[Chunk],
        stream: Stream,
        name: str,
        index: int,
        student: nn.Module,
        teacher: nn.Module,
    ) -> None:
        self.artifact, self.trainee, self.way, self.context, self.index = artifact, trainee, way, context, index
        self.name, self.student, self.teacher = name, student, teacher
        self.chunks, self.stream, self.attended = chunks, stream, dict[int, Any]()
        self.reads = teacher if way.dense else student
        self.attention = tree.family(artifact.model).attention
        self.path = context.folder / f"block-{index:03d}.safetensors"

    def reconstruct_(self) -> None:
        """Train each window and merge it, or read what an earlier run left."""
        every = dict(self.artifact.model.named_parameters())
        names = self.trainee.kept(self.name)
        if self.path.exists():
            with safe_open(self.path, framework="pt", device=str(self.context.device)) as file:
                done = json.loads(file.metadata()["windows"])
                for name in names:
                    every[name].data = file.get_tensor(name)
        else:
            found = [self._train_(*window) for window in self._windows()]
            done = [record for record in found if record]
            merged = {n: every[n].detach().contiguous() for n in names}
            files.write_atomic(self.path, save(merged, metadata={"windows": json.dumps(done)}))
            for window, *_ in done:
                (self.context.folder / f"{window}.safetensors").unlink()
        for window, before, after, step in done:
            self.context.report.record("reconstruction", [window, before, after, step])
            if after > before:
                self.context.report.note(
                    f"{window}: the merge raised the held-out error from {before:.4g} to {after:.4g}"
                )

    def whole(self, block: nn.Module, number: int) -> Tensor:
        """Return the block's output."""
        return run(block, self.stream.get(number), self.chunks[number].calls[self.index])

    def attend(self, block: nn.Module, number: int) -> Any:
        """Return what the block's attention returns; the block stops there."""

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            raise _Reached(output)

        hook = block.get_submodule(self.attention).register_forward_hook(stop)
        try:
            self.whole(block, number)
        except _Reached as reached:
            return reached.output
        finally:
            hook.remove()
        raise BrokenPromise(f"{self.name}: its forward does not reach {self.attention!r}")

    def rest(self, block: nn.Module, number: int) -> Tensor:
        """Return the block's output where its attention returned what was noted."""
        with _answering(block.get_submodule(self.attention), self.attended[number]):
            return self.whole(block, number)

    def _windows(self) -> Iterator[tuple[str, list[str], Output]]:
        linears = self.trainee.linears(self.name)
        if self.way.window == "block":
            yield f"{self.name}", linears, self.whole
            return
        inside = f"{self.name}.{self.attention}."
        early = [n for n in linears if n.startswith(inside)]
        yield f"{self.name}.attention", early, lambda block, number: first(self.attend(block, number))
        yield f"{self.name}.mlp", [n for n in linears if n not in early], self.rest

    def _train_(self, window: str, linears: list[str], output: Output) -> list[Any] | None:
        """Train one window, merge it, and return its name, its held-out error before and after, and the best step."""
        settings, device = self.way.settings, self.context.device
        groups = self.trainee.groups(self.name, linears)
        if not groups:
            return None
        training = [n for n, chunk in enumerate(self.chunks) if not chunk.held_out]
        held_out = [n for n, chunk in enumerate(self.chunks) if chunk.held_out]
        with torch.no_grad(), autocast(settings, device):
            if output == self.rest:
                self.attended = {n: self.attend(self.reads, n) for n in (*training, *held_out)}
            targets = {n: output(self.teacher, n) for n in (*training, *held_out)}
        whole = float(sum(self._energy(targets[n], n) for n in training) / len(training))

        def error(number: int) -> Tensor:
            return self._energy(output(self.student, number) - targets[number], number) / whole

        def held_out_error() -> float:
            with torch.no_grad(), autocast(settings, device):
                return sum(float(error(n)) for n in held_out) / len(held_out)

        with autocast(settings, device):
            reached = error(training[0]).requires_grad  # no, when nothing that is trained lies in this window
        done = None
        if reached:
            done = train_(
                groups,
                lambda number: error(training[draw(number, len(training), 1, self.context.seed)[0]]),
                settings,
                self.context,
                name=window,
                curve=None,
                validate=held_out_error,
                every=max(settings.steps // _VALIDATIONS, 1),
            )
        if linears:
            self.trainee.merge_(self.student)
        return [window, done.validations[0][1], held_out_error(), done.best] if done else None

    def _energy(self, values: Tensor, number: int) -> Tensor:
        """Return the mean square over the tokens that are no padding."""
        real = self.chunks[number].real
        return (values.float().square() * real.unsqueeze(-1)).sum() / (real.sum() * values.shape[-1])


class _Reached(Exception):
    """Attention answered."""

    def __init__(self, output: Any) -> None:
        self.output = output


@contextmanager
def _answering(module: nn.Module, output: Any) -> Iterator[None]:
    """Let a module return this, whatever it is asked."""
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward
