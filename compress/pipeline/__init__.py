"""Run a pipeline file from the first command to the last figure; resume by digest.

A run folder holds `steps/` (one artifact folder each), `engines/` (one engine folder a target, and its dense parent's
beside it), `exports/` (what needs no runtime), `quality/` and `latency/` (measured figures), `report.html`,
`report.json` and `run.log`.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import artifact as artifacts
from compress import files, settings, tree
from compress.artifact import Artifact
from compress.context import Report
from compress.contracts import Engine, Estimate, Exporter, Pass
from compress.data.settings import DataSettings
from compress.errors import BadModel, Interrupted, NoSpace
from compress.facts import Facts
from compress.pipeline import summary
from compress.pipeline.console import Console
from compress.pipeline.dry import Dry, tried
from compress.pipeline.gains import Gains, Job
from compress.pipeline.lock import locked
from compress.pipeline.runner import Done, Runner
from compress.settings import Pipeline


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run folder.
        steps: every step in order, the model as it came first.
        engines: engine folders by name (the target's; `<target>-dense` for the parent's).
        report: the content of `report.json`.
        stored: whether weights stay on disk.
    """

    folder: Path
    steps: tuple[Done, ...]
    engines: Mapping[str, Path]
    report: Mapping[str, Any]
    stored: bool = False

    @property
    def artifact(self) -> Artifact:
        """The last pass's artifact."""
        return Artifact.load(self.steps[-1].folder, stored=self.stored)

    def engine(self, name: str | None = None) -> Engine:
        """Open an engine, the first target's unless named."""
        from compress.engines import Engines

        return Engines().open(self.engines[name or next(iter(self.engines))])


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One step before anything ran."""

    index: int
    name: str
    use: str
    cached: bool
    estimate: Estimate


def run(
    pipeline: Path | str | Pipeline, *, folder: Path | str | None = None, quiet: bool = False,
    home: Path | None = None, costs: Sequence[str] = (),
) -> Run:  # fmt: skip
    """Check a pipeline, run what is not cached, and write the report.

    Args:
        pipeline: a pipeline file, or one already read.
        folder: overrides the file's run folder.
        quiet: print nothing (the log is always written).
        home: a run folder, which the caller has locked, to share steps, caches and dense engines with.
        costs: times, such as `decode_ms`, to measure until their ratios to the dense engine's are known within 1 %.

    Raises:
        UserFault: something the user can mend; finished steps are kept.
        BrokenPromise: a pass or an engine did not hold what it declares.
    """
    opened = _opened(pipeline)
    facts = settings.check(opened)
    where = Path(folder) if folder else opened.run.folder
    with files.disk_errors(where), locked(where), _stoppable():
        console = Console(where / "run.log", quiet=quiet)
        console.write(f"run of {opened.path} in {where}")
        try:
            return _run(facts, Runner(opened, where, console, home, costs))
        except KeyboardInterrupt:
            console.write("stopped")
            raise Interrupted("stopped; everything finished is kept, run the same command again to go on") from None
        except Exception as error:
            console.write(traceback.format_exc())
            if "No space left on device" in str(error) and not isinstance(error, OSError | NoSpace):
                raise NoSpace(
                    f"{where}: no space left on the disk; free some and run the same command again"
                ) from error
            raise


def plan(pipeline: Path | str | Pipeline, *, folder: Path | str | None = None) -> list[PlannedStep]:
    """Return the steps of a run with what they will cost and which are already done; runs nothing."""
    opened = _opened(pipeline)
    facts = settings.check(opened)
    where = Path(folder) if folder else opened.run.folder
    runner = Runner(opened, where, Console(Path(os.devnull), quiet=True))
    reached = runner.step_folder(1, runner.first, runner.keys.model())
    size = 4 * facts[0].parameters / 2**20
    known = (reached / artifacts.CARD).exists()
    dense = Estimate(peak_mib=4 * tree.held(facts[0]) / 2**20, disk_mib=size, seconds=size / 500)
    steps = [PlannedStep(index=1, name=runner.first, use="model", cached=known, estimate=dense)]
    for index, (entry, before) in enumerate(zip(opened.passes, facts, strict=False), start=2):
        assert isinstance(entry.plugin, Pass)
        if known:
            reached = runner.step_folder(index, entry.name, runner.keys.pass_(entry, artifacts.digest(reached)))
            known = (reached / artifacts.CARD).exists()
        estimate = entry.plugin.estimate(_met(before, entry.plugin, opened.data))
        steps.append(PlannedStep(index=index, name=entry.name, use=entry.use, cached=known, estimate=estimate))
    return steps


def _met(facts: Facts, plugin: Pass, data: Mapping[str, DataSettings]) -> Facts:
    """Return the facts as an estimate counts with them: with as many positions as the pass's longest data have."""
    lengths = [data[role].length for role in plugin.data_uses()]
    return facts.after(positions=max(lengths)) if lengths else facts


def dry_run(pipeline: Path | str | Pipeline, *, report: Report | None = None) -> list[Dry]:
    """Time engines of random weights in the shapes that a pipeline starts from and ends with, for each target."""
    opened = _opened(pipeline)
    return tried(opened, settings.check(opened), report)


def report(folder: Path | str) -> Path:
    """Write `report.html` of a run folder anew from its `report.json`, and return its path.

    Raises:
        BadModel: the folder holds no finished run.
    """
    where = Path(folder)
    if not (where / "report.json").is_file():
        raise BadModel(f"{where}: no report.json in it; `compress run` writes it when a run has finished")
    from compress import report as pages

    pages.write(where, files.read_json(where / "report.json"))
    return where / "report.html"


def _run(facts: list[Facts], runner: Runner) -> Run:
    started = time.monotonic()
    folder, console = runner.folder, runner.console
    runner.count = 2 + len(runner.pipeline.passes) + len(_exports(runner.pipeline)) + len(runner.pipeline.targets)
    runner.model()
    facts, worth = _passes(facts, runner)
    dense, last, jobs = runner.dense, runner.done[-1], _exports(runner.pipeline)
    exported: list[Done] = []
    for index, (entry, target, name, parent) in enumerate(jobs, start=len(runner.done) + 1):
        source, known = (dense, facts[runner.pipeline.dense]) if parent else (last, facts[-1])
        exported.append(runner.export(entry, source, known, target, name, (index, runner.count)))
    engines = {d.name: d.folder for d in exported if d.folder.parent.name == "engines"}
    content = summary.write(runner, facts, dense, last, exported, engines, worth)
    if runner.home == folder:  # else others' checkpoints may lie there
        shutil.rmtree(folder / "partial", ignore_errors=True)
    console.say(f"finished in {time.monotonic() - started:.0f} s; report: {folder / 'report.html'}")
    for line in summary.headline(content):
        console.say(f"  {line}")
    return Run(folder=folder, steps=tuple(runner.done), engines=engines, report=content, stored=runner.stored)


def _passes(facts: list[Facts], runner: Runner) -> tuple[list[Facts], list[dict[str, Any]]]:
    """Run the passes, again without one that gains too little; return the facts of what is left, and their worth."""
    job = next((Job(*job[:3]) for job in _exports(runner.pipeline) if job[1] is not None), None)
    gains = Gains(runner, job)
    while True:
        for number, entry in enumerate(runner.pipeline.passes[len(runner.done) - 1 :], start=len(runner.done)):
            last = runner.run_pass(entry, runner.done[-1], facts[number - 1], facts[number])
            if facts[number].open:
                facts[number:] = settings.check_rest(runner.pipeline, number, runner.known(last, facts[number]))
        found = gains.judge(facts)
        number_gone = gains.settle(found)
        if number_gone is None:
            gains.clean()
            return facts, gains.rows(found)
        facts = gains.leave_out(number_gone, facts)


def _exports(pipeline: Pipeline) -> list[tuple[Any, Any, str, bool]]:
    """Return (entry, target, folder name, whether of the dense parent) of all that is to be exported."""
    found: list[tuple[Any, Any, str, bool]] = []
    targets = {t.name: t for t in pipeline.targets}
    engine_entries = [e for e in pipeline.exports if isinstance(e.plugin, Exporter) and e.plugin.runtimes]
    for entry in pipeline.exports:
        if entry not in engine_entries:
            found.append((entry, None, entry.name, False))
            continue
        for target in (targets[n] for n in entry.targets):
            name = target.name if len(engine_entries) == 1 else f"{target.name}-{entry.name}"
            found.append((entry, target, name, False))
            if len(pipeline.passes) > pipeline.dense:
                found.append((entry, target, f"{name}-dense", True))
    return found


def _opened(pipeline: Path | str | Pipeline) -> Pipeline:
    return pipeline if isinstance(pipeline, Pipeline) else settings.read(Path(pipeline))


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let a polite kill (SIGTERM) end the run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
