"""What each pass of a run is worth on the engine, and the pipeline without those that do not gain what they should."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compress import artifact as artifacts
from compress import gain, settings
from compress.contracts import Exporter, Target
from compress.errors import BadPipeline, NoGain
from compress.facts import Facts
from compress.gain import Gain
from compress.pipeline import figures
from compress.pipeline.runner import Runner
from compress.settings import Entry, Pipeline

ROOM = "gain"  # engines of models between two passes; gone when the run has ended


@dataclass(frozen=True)
class Job:
    """The engine that gains are measured on: its exporter, its target, and its name in the run folder."""

    entry: Entry
    target: Target
    name: str


class Gains:
    """The worth of the passes of one run.

    Args:
        runner: of the run.
        job: which engine; None where none is made.
    """

    def __init__(self, runner: Runner, job: Job | None) -> None:
        self.runner, self.job = runner, job
        self.told: list[dict[str, Any]] = []  # of passes that were left out

    def judge(self, facts: Sequence[Facts]) -> list[Gain | None]:
        """Return what each pass that ran is worth; None of those that nobody asks about.

        Args:
            facts: before the first pass, and after each.
        """
        entries = self.runner.pipeline.passes
        asked = [self.runner.pipeline.run.gain or entry.bound for entry in entries]
        if self.job is None or not any(asked):
            return [None] * len(entries)
        steps = _Steps(self.runner, self.job, facts)
        return [steps.gain(index) if wanted else None for index, wanted in enumerate(asked, start=1)]

    def settle(self, found: Sequence[Gain | None]) -> int | None:
        """Return which pass, counted from 1, is to be left out: the first that gains too little and asks for it.

        Raises:
            NoGain: a pass gains too little, and the run is to stop then.
        """
        pipeline = self.runner.pipeline
        too_little = [
            (number, entry, worth, missed)
            for number, (entry, worth) in enumerate(zip(pipeline.passes, found, strict=True), start=1)
            if worth and entry.bound and (missed := worth.missed(entry.expect))
        ]
        for _, entry, _, missed in too_little:
            if entry.on_no_gain == "fail":
                key = "expect" if entry.expect else "on_no_gain"
                line = pipeline.places.line(("pass", entry.index - 1, key))
                what = f"{pipeline.path}:{line}: pass[{entry.index}].{key} ({entry.use}): {'; '.join(missed)}"
                raise NoGain(f"{what}; lower it, or on_no_gain = 'keep' or 'drop' would do")
        for number, entry, worth, missed in too_little:
            if entry.on_no_gain == "drop":
                self.runner.console.say(f"{entry.name} is left out: {'; '.join(missed)}")
                self.told.append(_row(entry, worth, kept=False))
                return number
        return None

    def leave_out(self, number: int, facts: Sequence[Facts]) -> list[Facts]:
        """Take a pass out of the run, with all that came after it; return the facts of what is left.

        Raises:
            BadPipeline: a later pass or an export cannot do without it.
        """
        runner, gone = self.runner, self.runner.pipeline.passes[number - 1]
        runner.pipeline = without(runner.pipeline, number)
        del runner.done[number:]
        try:
            return [*facts[: number - 1], *settings.check_rest(runner.pipeline, number - 1, facts[number - 1])]
        except BadPipeline as error:
            why = f"{gone.name} gains too little and is left out, and without it"
            raise BadPipeline([f"{fault} ({why} this cannot be)" for fault in error.faults]) from None

    def rows(self, found: Sequence[Gain | None]) -> list[dict[str, Any]]:
        """Return all that is to be told of the passes, those left out among them; empty where nobody asked."""
        kept = [_row(e, g, kept=True) for e, g in zip(self.runner.pipeline.passes, found, strict=True)]
        rows = sorted([*kept, *self.told], key=lambda row: row["index"])
        return rows if any(row["gain"] for row in rows) else []

    def clean(self) -> None:
        """Remove the engines of models between two passes."""
        shutil.rmtree(self.runner.folder / ROOM, ignore_errors=True)


class _Steps:
    """The models of one run, from the dense one on, and their engines."""

    def __init__(self, runner: Runner, job: Job, facts: Sequence[Facts]) -> None:
        self.runner, self.job, self.facts = runner, job, facts
        exporter = job.entry.plugin
        assert isinstance(exporter, Exporter)
        self.exporter = exporter

    @cached_property
    def graphs(self) -> list[str]:
        """What decides the graph of each model's engine."""
        patterns = self.exporter.patterns
        known = zip(self.runner.done, self.facts, strict=True)
        return [gain.graph_of(done.folder, facts, patterns) for done, facts in known]

    def gain(self, index: int) -> Gain:
        """Return what the pass of that number is worth."""
        target = self.job.target
        if self.graphs[index - 1] == self.graphs[index]:
            before, after = self.facts[index - 1 : index + 1]
            return gain.of_one_graph(before, after, self.exporter.patterns, target.runtime)
        name = self.runner.pipeline.passes[index - 1].name
        pair = [self._alike(index - 1), self._alike(index)]
        keys = [self._key(i) for i in pair]
        found = figures.gained(
            self.runner, target, name, keys, lambda: [self._engine(i) for i in pair], self.exporter.used
        )
        return gain.of_measurement(*found)

    def _alike(self, index: int) -> int:
        """Return the model whose engine stands for that of another of the same graph: one that is made anyway."""
        first = last = index
        while first > 0 and self.graphs[first - 1] == self.graphs[index]:
            first -= 1
        while last + 1 < len(self.graphs) and self.graphs[last + 1] == self.graphs[index]:
            last += 1
        dense = self.runner.pipeline.dense
        return dense if first <= dense <= last else last if last + 1 == len(self.graphs) else first

    def _key(self, index: int) -> str:
        digest, uses = artifacts.digest(self.runner.done[index].folder), self.exporter.data_uses(self.facts[index])
        return self.runner.keys.export(self.job.entry, digest, self.job.target, uses)

    def _engine(self, index: int) -> Path:
        """Return the folder of a model's engine, which is made unless it is there."""
        job, source, at = self.job, self.runner.done[index], (len(self.runner.done), self.runner.count)
        shipped = {self.runner.pipeline.dense: f"{job.name}-dense", len(self.runner.done) - 1: job.name}
        room, name = ("engines", shipped[index]) if index in shipped else (ROOM, f"{job.name}-{source.name}")
        return self.runner.export(job.entry, source, self.facts[index], job.target, name, at, room).folder


def without(pipeline: Pipeline, number: int) -> Pipeline:
    """Return the pipeline without the pass of that number, counted from 1."""
    passes = pipeline.passes
    return dataclasses.replace(pipeline, passes=(*passes[: number - 1], *passes[number:]))


def _row(entry: Entry, worth: Gain | None, *, kept: bool) -> dict[str, Any]:
    return {
        "index": entry.index,
        "name": entry.name,
        "use": entry.use,
        "gain": {**worth.to_dict(), "told": worth.told} if worth else None,
        "expected": dict(entry.expect.wanted) if entry.expect else None,
        "missed": worth.missed(entry.expect) if worth and entry.bound else [],
        "kept": kept,
    }
