"""One training on disk: a block, what of it is trained, and how; done by whatever process is given the folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import errors, files, tensors
from compress.context import Context
from compress.errors import CompressError
from compress.facts import BlockConfig
from compress.tensors import Layout
from passes import _masks
from passes._distillation import doors, hollow
from passes._distillation.packing import Packed
from passes._distillation.settings import DistilSettings
from passes._layerwise import run
from passes._train import Group, Trained, autocast, draw, frozen, recomputed, thaw_, train_

MODEL, CHUNKS, DOORS, JOBS = "model", "chunks", "doors", "jobs"  # folders beside those of the jobs

Answer = dict[str, str] | None  # the kind and the text of a fault; none when all is well

_CARD, _RESULT = "job.json", "result.json"
_STUDENT, _MASKS, _TRAINED = "student.safetensors", "masks.safetensors", "trained.safetensors"
_VALIDATIONS = 10  # of a training


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training.

    Attributes:
        folder: its own, a folder of `JOBS`.
        told: what is trained, in words.
        index: the block's number.
        config: the block's shape.
        trained: the parameters that are trained, by their names within the block.
        settings: how.
        seed: of the order of the windows.
        device: where.
    """

    folder: Path
    told: str
    index: int
    config: BlockConfig
    trained: tuple[str, ...]
    settings: DistilSettings
    seed: int
    device: str

    def write(self, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Write what another process needs; what was trained of it before a kill stays.

        Args:
            state: all tensors of the block by their names within it.
            masks: of those parameters that have one, bool of their shape, True = kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / _STUDENT, state)
        _write(self.folder / _MASKS, masks)
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "folder"}
        settings = {**self.settings.model_dump(mode="json", include=set(DistilSettings.model_fields))}
        files.write_json(
            self.folder / _CARD, {**given, "config": dataclasses.asdict(self.config), "settings": settings}
        )

    @staticmethod
    def read(folder: Path) -> Job:
        """Return what was written."""
        card = files.read_json(folder / _CARD)
        made = {"config": BlockConfig(**card["config"]), "settings": DistilSettings(**card["settings"])}
        return Job(folder=folder, **{**card, **made, "trained": tuple(card["trained"])})

    def result(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what was trained, and the held-out errors before and after with the best step."""
        found = {n: place.read() for n, place in tensors.places(self.folder / _TRAINED).items()}
        return found, files.read_json(self.folder / _RESULT)

    def forget(self) -> None:
        """Give the room back."""
        shutil.rmtree(self.folder)


def answer(folder: Path) -> Answer:
    """Do the training in a folder, unless it is done, and return what went wrong."""
    if not (folder / _CARD).exists():
        what = f"{folder}: not seen by the process that was given it"
        return {"kind": "Unavailable", "text": f"{what}; the run folder must be one that all machines of a cluster see"}
    job = Job.read(folder)
    try:
        if not (folder / _RESULT).exists():
            with _threads(job.settings.threads):
                _Training(job).run()
    except CompressError as error:
        return {"kind": type(error).__name__, "text": f"{job.told}: {error}"}
    return None


def fault(given: dict[str, str]) -> CompressError:
    """Return the error that an answer tells of."""
    kind: Callable[[str], CompressError] = getattr(errors, given["kind"], CompressError)
    return kind(given["text"])


def error(given: Tensor, wanted: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared error and the energy of what it is measured by, both summed over all but padding.

    Their ratio is `MSE(o_p, o_c) / MSE(o_p, 0)`: 0 for the parent's block, 1 for one that gives nothing.

    Args:
        given: the block's output o_c, [batch, tokens, hidden].
        wanted: the parent's, o_p.
        real: bool [batch, tokens], False = padding.
    """
    kept, wanted = real.unsqueeze(-1), wanted.float()
    return ((given.float() - wanted).square() * kept).sum(), (wanted.square() * kept).sum()


class _Training:
    """One block on its way."""

    def __init__(self, job: Job) -> None:
        self.job, self.device, root = job, torch.device(job.device), job.folder.parents[1]
        self.doors, self.chunks = root / DOORS, Packed(root / CHUNKS, job.index, self.device)
        state = {n: place.read() for n, place in tensors.places(job.folder / _STUDENT).items()}
        self.block: nn.Module = hollow.block_of(root / MODEL, job.index, job.config, state).to(self.device)
        self.masks = {n: p.read().to(self.device) for n, p in tensors.places(job.folder / _MASKS).items()}

    def run(self) -> None:
        """Train, and write what is best on held-out windows."""
        job, settings = self.job, self.job.settings
        every = dict(self.block.named_parameters())
        trained = {n: every[n] for n in job.trained}
        first = {n: p.detach().clone() for n, p in trained.items()}
        record = self._trained_(trained) if trained and settings.steps else {"before": self.held_out(), "best": 0}
        if not record["best"]:
            for name, parameter in trained.items():
                parameter.data = first[name]
        _write(job.folder / _TRAINED, {n: p.detach() for n, p in trained.items()})
        files.write_json(job.folder / _RESULT, {"after": record["before"], **record, "steps": settings.steps})

    def _trained_(self, trained: Mapping[str, nn.Parameter]) -> dict[str, Any]:
        """Train and return the errors `before` and `after`, and the `best` step; 0 where nothing is better."""
        exact = all(p.dtype == torch.float32 for p in trained.values())
        before = None if exact else self.held_out()
        done = self.train_(trained)
        seen = dict(done.validations)
        if before is None:
            return {"before": seen[0], "after": seen[done.best], "best": done.best}
        after = self.held_out()  # what is trained is rounded to the weights' own precision now
        return (
            {"before": before, "after": after, "best": done.best} if after < before else {"before": before, "best": 0}
        )

    def train_(self, trained: Mapping[str, nn.Parameter]) -> Trained:
        """Train these parameters of the block; the best state stays."""
        job, settings = self.job, self.job.settings
        context = Context(folder=job.folder, device=self.device, seed=job.seed)
        chunks = self.chunks.training
        with frozen(self.block, settings, self.device), recomputed([self.block], settings.recompute):
            dtype = next(self.block.parameters()).dtype
            thaw_(trained.values())

            def loss_of(number: int) -> Tensor:
                apart, whole = self.error(chunks[draw(number, len(chunks), 1, job.seed)[0]], dtype)
                return apart / whole

            done = train_(
                [Group(trained, settings.lr, settings.weight_decay, masks=self.masks)],
                loss_of,
                settings,
                context,
                name="training",
                curve=None,
                validate=lambda: self.held_out(dtype),
                every=max(settings.steps // _VALIDATIONS, 1),
            )
        for name, mask in self.masks.items():
            _masks.apply_(trained[name], mask)
        return done

    @torch.no_grad()
    def held_out(self, dtype: torch.dtype | None = None) -> float:
        """Return the error on the windows that are held out, in the parent's precision unless in another."""
        with autocast(self.job.settings, self.device):
            sums = [self.error(number, dtype) for number in self.chunks.held_out]
        return float(sum(apart for apart, _ in sums)) / float(sum(whole for _, whole in sums))

    def error(self, number: int, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """Return the squared error and the parent's energy on a chunk, the block reading floats of a precision."""
        reads, gives = (doors.read(self.doors, self.job.index + end, number, self.device) for end in (0, 1))
        dtype = dtype or reads.dtype
        given = run(self.block, reads.to(dtype), self.chunks.call(number, dtype))
        return error(given, gives, self.chunks.real(number))


def _write(path: Path, state: Mapping[str, Tensor]) -> None:
    layouts = {n: Layout(t.dtype, tuple(t.shape)) for n, t in state.items()}
    tensors.write(path, layouts, lambda name: state[name])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute on so many threads, on which the last bits of sums depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
