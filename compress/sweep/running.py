"""Run every point of a sweep in one run folder; what one point makes that another needs is made once.

`<run folder>/sweep/` holds `sweep.json`, `sweep.html` and a folder a point, as runs have it: `engines/`, `report.html`
and `run.log`.  Steps, caches and dense engines are those of the run folder itself.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import files, pipeline, settings
from compress.errors import BadPipeline, Busy, CompressError, Interrupted, NoSpace, UserFault
from compress.pipeline.console import Console
from compress.pipeline.lock import locked
from compress.settings import Pipeline
from compress.sweep import page, results
from compress.sweep.points import Point, points
from compress.sweep.results import Result

FORMAT = 1


class PointsFailed(CompressError):
    """Some points of a sweep failed; the others are whole.

    Args:
        message: a line for each.
        exit_status: 2 where all of them are the user's to mend.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(frozen=True, kw_only=True)
class Swept:
    """A finished sweep.

    Attributes:
        folder: with `sweep.json`, `sweep.html` and a folder a point.
        content: of `sweep.json`.
    """

    folder: Path
    content: Mapping[str, Any]


def sweep(file: Path | str | Pipeline, *, folder: Path | str | None = None, quiet: bool = False) -> Swept:
    """Make an engine for every budget and target of a pipeline's `[sweep]`, and compare them.

    Args:
        file: a pipeline file, or one already read.
        folder: overrides the file's run folder.
        quiet: print nothing.

    Raises:
        BadPipeline: every fault of the file and of its points, before any work.
        PointsFailed: some points failed; the others are done, and the page tells of all.
        UserFault: the sweep cannot go on; what is finished is kept.
    """
    opened = file if isinstance(file, Pipeline) else settings.read(Path(file))
    every = points(opened)
    _check(opened, every)
    home = Path(folder) if folder else opened.run.folder
    with files.disk_errors(home), locked(home):
        where = home / "sweep"
        where.mkdir(exist_ok=True)
        console = Console(where / "sweep.log", quiet=quiet)
        content, status = _run(opened, every, home, console, quiet)
        shutil.rmtree(home / "partial", ignore_errors=True)
        console.say(f"sweep of {len(every)} points: {where / 'sweep.html'}")
        for line in page.lines(content):
            console.say(f"  {line}")
    if lost := [f"{r['told']}: {r['error']}" for r in content["points"] if r["state"] == "failed"]:
        raise PointsFailed("\n".join([f"{len(lost)} of {len(every)} points failed:", *lost]), status)
    return Swept(folder=where, content=content)


def _check(opened: Pipeline, every: Sequence[Point]) -> None:
    """Judge the file, then every point that differs in a way that matters before any work."""
    settings.check(opened)
    faults: dict[str, None] = {}
    for point in every:
        try:
            settings.check(point.pipeline)
        except BadPipeline as error:
            faults |= dict.fromkeys(f"{fault} (for {point.told})" for fault in error.faults)
    if faults:
        raise BadPipeline(list(faults))


def _run(
    opened: Pipeline, every: Sequence[Point], home: Path, console: Console, quiet: bool
) -> tuple[dict[str, Any], int]:
    """Return the content of the sweep, written anew after every point, and the exit status of those that failed."""
    content: dict[str, Any] = {
        "format": FORMAT, "name": opened.path.stem, "created": time.strftime("%Y-%m-%d %H:%M"),
        "baselines": list(opened.sweep.baselines) if opened.sweep else [],
        "points": [results.begun(point) for point in every],
    }  # fmt: skip
    status = 2
    for index, point in enumerate(every):
        console.say(f"point {index + 1} of {len(every)}: {point.told}")
        folder = home / "sweep" / point.name
        try:
            run = pipeline.run(point.pipeline, folder=folder, quiet=quiet, home=home, costs=point.costs)
        except (Interrupted, NoSpace, Busy):
            raise
        except Exception as error:
            status = status if isinstance(error, UserFault) else 1
            found: Result = results.failed(point, _line(error, folder))
            console.say(f"  failed: {found['error']}")
        else:
            found = results.of(point, run.report)
            content |= {k: run.report[k] for k in ("model", "versions", "machine") if k in run.report}
        content["points"][index] = found
        files.write_json(home / "sweep" / "sweep.json", content)
        files.write_atomic(home / "sweep" / "sweep.html", page.page(content))
    return content, status


def _line(error: Exception, folder: Path) -> str:
    """Return an error as one line; of what we did not foresee, with the log that has more."""
    text = " ".join(str(error).split())
    return text if isinstance(error, CompressError) else f"{type(error).__name__}: {text}; see {folder / 'run.log'}"
