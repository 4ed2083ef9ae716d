"""One process of a team: `accelerate launch -m passes._train.worker FOLDER` starts it, `launch_` asks for it."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save

from compress import files, registry
from compress.artifact import Artifact
from compress.context import Context, QuietReport, Report
from compress.contracts import Pass
from compress.data import DataSettings, Source
from compress.errors import CompressError
from compress.settings.faults import checked
from passes._train.launch import JOB, LOG, MARK, TRAINED, died
from passes._train.team import Team, whole


class Trains(Protocol):
    """A pass that can train as one of several processes."""

    def train_(self, artifact: Artifact, context: Context, team: Team) -> None:
        """Train the artifact's model in place, as one of a team."""


class Line:
    """A report, and a bar, that says on our output what is told to it."""

    def note(self, text: str) -> None:
        """Say a note."""
        _say("note", text)

    def tell(self, text: str) -> None:
        """Say a line of measured values."""
        _say("tell", text)

    def record(self, name: str, value: Any) -> None:
        """Say a figure."""
        _say("record", name, value)

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Line]:
        """Say that a bar begins, and yield it."""
        _say("bar", what, total, done)
        yield self

    def advance(self, amount: int = 1) -> None:
        """Say that the bar moves."""
        _say("advance", amount)

    def show(self, text: str) -> None:
        """Say what stands beside the bar."""
        _say("show", text)


def main(folder: Path) -> int:
    """Do this process's part of the job in a folder; return the exit status."""
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    job = files.read_json(folder / JOB)
    try:
        _train(folder, job)
    except CompressError as error:
        _say("fault", type(error).__name__, str(error))
        return 1
    except Exception as error:  # ours: the log, which is our stderr, has the whole of it
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        _say("fault", "CompressError", died(job["use"], why, folder / LOG))
        return 1
    return 0


def _train(folder: Path, job: Any) -> None:
    team = Team.join(torch.device(job["device"]))
    torch.manual_seed(job["seed"])
    report: Report = Line() if team.rank == 0 else QuietReport()
    plugin = registry.load("passes", job["use"], Pass)
    trainer: Any = plugin(checked(plugin.Settings, job["settings"], job["use"]))
    artifact = Artifact.load(folder / "given")
    artifact.to_(team.device)
    data = {
        role: Source(
            DataSettings(**given["settings"]),
            role,
            given["task"],
            given["seed"],
            Path(given["cache"]) if given["cache"] else None,
        )
        for role, given in job["data"].items()
    }
    context = Context(
        folder=folder,
        device=team.device,
        seed=job["seed"],
        turn=job["turn"],
        data=data,
        report=report,
        parent=lambda: Artifact.load(folder / "parent"),
    )
    trainer.train_(artifact, context, team)
    trained = {n: whole(p.detach()).contiguous() for n, p in artifact.model.named_parameters()}
    if team.rank == 0:
        files.write_atomic(folder / TRAINED, save(trained))


def _say(*what: Any) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(what)}\n")
    sys.stdout.flush()


def _end_with_the_starter() -> None:
    """End this process at once when the one that started it is gone: its end of our input is closed then."""
    while os.read(0, 1024):
        continue
    os._exit(1)


if __name__ == "__main__":
    os._exit(main(Path(sys.argv[1])))  # at once: libraries' threads now and then abort a process that is ending
