"""Block by block on calibration windows, against the dense parent's output on the same input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from compress import files, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BadSettings, BrokenPromise
from passes import _adapter
from passes._layerwise import Chunk, Stream, first, pass_, run, windows
from passes._train import autocast, draw, frozen, train_
from passes.perp.settings import PerpSettings
from passes.perp.subsets import Chosen, attach_

_VALIDATIONS = 10  # of a window's training

Output = Callable[[nn.Module, int], Tensor]  # what a window of a block gives for a chunk, by its number


def run_(artifact: Artifact, chosen: Chosen, settings: PerpSettings, context: Context) -> None:
    """Train and merge one block after the other; the first finished ones are read from their checkpoints."""
    if context.parent is None:
        raise BadSettings("'reconstruct' needs the dense parent, which only a pipeline hands over", key="mode")
    parent = context.parent().model.to(context.device)  # type: ignore[arg-type]
    model, device = artifact.model, context.device
    students, teachers = tree.blocks(model), tree.blocks(parent)
    if len(students) != len(teachers):
        raise BrokenPromise(f"the model has {len(students)} blocks and its parent {len(teachers)}")
    with frozen(parent, settings, device), frozen(model, settings, device):
        stream = Stream(context.folder / "hidden", device)
        with autocast(settings, device):
            chunks = windows(artifact, settings.batch, context, "'reconstruct'", stream)
        with context.report.bar("blocks", len(students)) as bar:
            for index, (name, student) in enumerate(students.items()):
                teacher = list(teachers.values())[index]
                block = _Block(artifact, chosen, settings, context, chunks, stream, name, index, student, teacher)
                block.reconstruct_()
                if index + 1 < len(students):
                    with autocast(settings, device):
                        pass_(block.reads, index, chunks, stream)
                bar.advance()


class _Block:
    """One block of the model beside the parent's."""

    def __init__(
        self,
        artifact: Artifact,
        chosen: Chosen,
        settings: PerpSettings,
        context: Context,
        chunks: Sequence[Chunk],
        stream: Stream,
        name: str,
        index: int,
        student: nn.Module,
        teacher: nn.Module,
    ) -> None:
        self.artifact, self.settings, self.context, self.index = artifact, settings, context, index
        self.name, self.student, self.teacher = name, student, teacher
        self.chunks, self.stream, self.attended = chunks, stream, dict[int, Any]()
        self.reads = student if settings.inputs == "sparse" else teacher
        self.attention = tree.family(artifact.model).attention
        inside = f"{name}."
        self.chosen = Chosen(
            small=tuple(n for n in chosen.small if n.startswith(inside)),
            linears=tuple(n for n in chosen.linears if n.startswith(inside)),
            form=chosen.form,
        )
        self.path = context.folder / f"block-{index:03d}.safetensors"

    def reconstruct_(self) -> None:
        """Train each window and merge it, or read what an earlier run left."""
        every = dict(self.artifact.model.named_parameters())
        names = sorted(self.chosen.changes(self.artifact.model))
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
        if self.settings.window == "block":
            yield f"{self.name}", list(self.chosen.linears), self.whole
            return
        inside = f"{self.name}.{self.attention}."
        early = [n for n in self.chosen.linears if n.startswith(inside)]
        yield f"{self.name}.attention", early, lambda block, number: first(self.attend(block, number))
        yield f"{self.name}.mlp", [n for n in self.chosen.linears if n not in early], self.rest

    def _train_(self, window: str, linears: list[str], output: Output) -> list[Any] | None:
        """Train one window, merge it, and return its name, its held-out error before and after, and the best step."""
        settings, device = self.settings, self.context.device
        groups = attach_(self.artifact, self.chosen, settings, self.context.seed, linears)
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
            _adapter.merge_(self.student)
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
