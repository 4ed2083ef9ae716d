"""Run the steps of one pipeline: find each in the cache by its digest, or make it, check it and keep it whole."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress import artifact as artifacts
from compress import files, grids, loading, store
from compress.artifact import Artifact, Step
from compress.context import Context
from compress.contracts import Exporter, Pass, Target
from compress.data import Source
from compress.engines import NOT_RUN, Engines
from compress.errors import BrokenPromise
from compress.facts import Facts
from compress.known import known
from compress.pipeline.console import Console
from compress.pipeline.keys import Keys
from compress.settings import Entry, Pipeline

MEASURED = "measured.json"
_KEY = "step.json"


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished step: where it is, whether it came from the cache, and what it measured."""

    index: int
    use: str
    name: str
    folder: Path
    cached: bool
    measured: Mapping[str, Any] = field(default_factory=dict)


class Runner:
    """The state of one run: its folder, its console, what is done.

    Args:
        pipeline: the checked pipeline.
        folder: the run folder, locked by the caller.
        console: where progress goes.
        home: a run folder, locked too, whose steps, caches and dense engines are shared; the folder unless given.
        costs: times whose ratios to the dense engine's are measured until they are known within 1 %.
    """

    def __init__(
        self, pipeline: Pipeline, folder: Path, console: Console, home: Path | None = None, costs: Sequence[str] = ()
    ) -> None:
        self.pipeline, self.folder, self.console = pipeline, folder, console
        self.home, self.costs = home or folder, tuple(costs)
        self.keys = Keys(pipeline, self.home / "cache" / "data")
        self.done: list[Done] = []
        self.count = 1 + len(pipeline.passes)
        self.first = "model" if pipeline.dense else "dense"
        self.engines = Engines()
        self.stored = pipeline.compute.weights == "disk"
        if self.stored:
            store.give_back_()

    def step_folder(self, index: int, name: str, key: str) -> Path:
        """Return where the step of this key is, or will be."""
        return self.home / "steps" / f"{index:02d}-{name}-{key[:12]}"

    @property
    def dense(self) -> Done:
        """The dense model, which all is measured beside: the model as it came, until a pass is to leave it and has."""
        index = self.pipeline.dense
        return self.done[index if index < len(self.done) else 0]

    def open(self, folder: Path, changes: Path | None = None) -> Artifact:
        """Open an artifact; its blocks stay on disk where the pipeline wants them there, and go to `changes`."""
        trust = self.pipeline.model.trust_remote_code
        return Artifact.load(folder, stored=self.stored, changes=changes, trust_remote_code=trust)

    # -- artifacts ----------------------------------------------------------------------------------------------

    def model(self) -> Done:
        """Open the source and keep it as an artifact, which all that follows starts from."""
        model, key = self.pipeline.model, self.keys.model()

        def make(context: Context) -> Artifact:
            folder, trust = loading.locate(model.source, model.revision), model.trust_remote_code
            opening: dict[str, Any] = {"trust_remote_code": trust, "dtype": context.dtype, "labels": model.labels}
            return Artifact.of(folder, model.task, stored=self.stored, **opening)

        settings = {**model.model_dump(mode="json"), "digest": key}
        return self._artifact("model", self.first, key, settings, make, lambda _: None)

    def run_pass(self, entry: Entry, before: Done, planned: Facts, facts: Facts) -> Done:
        """Run one pass on the artifact of the step before it, and hold it to its promises.

        Args:
            entry: the pass.
            before: the step before it.
            planned: what was planned of that step's artifact.
            facts: what was planned of this one's.
        """
        plugin = entry.plugin
        assert isinstance(plugin, Pass)

        def make(context: Context) -> Artifact:
            given = self.open(before.folder, changes=context.folder / "blocks")
            given.to_(context.device)
            about: dict[str, Any] = {
                "facts": planned,
                "turn": self.keys.turn(entry),
                "targets": self.keys.targets(plugin),
                "model": str(self.done[0].folder),
            }
            made = plugin.run(given, dataclasses.replace(context, **about))
            return made if plugin.library else made.after(library=None)

        def ensures(folder: Path) -> None:
            was, now = self.open(before.folder), self.open(folder)
            if facts.open:  # it has chosen what could not be told
                return plugin.ensures(was, now)
            if set(now.masks) != set(facts.masks):
                raise BrokenPromise(f"{entry.name}: declared {len(facts.masks)} masks and left {len(now.masks)}")
            if not facts.admits(grids.facts(now.grids)):
                raise BrokenPromise(f"{entry.name}: left other codes than the {len(facts.grids)} grids it declared")
            if now.plan != facts.plan:
                raise BrokenPromise(f"{entry.name}: left another plan than it declared")
            plugin.ensures(was, now)

        key = self.keys.pass_(entry, artifacts.digest(before.folder))
        settings = plugin.settings.model_dump(mode="json")
        uses = plugin.data_uses()
        return self._artifact(
            entry.use, entry.name, key, settings, make, ensures, {r: self.keys.sources[r] for r in uses}
        )

    def known(self, done: Done, planned: Facts) -> Facts:
        """Return what is known of a step's artifact, now that what was open when it was planned is chosen."""
        return known(self.open(done.folder), planned)

    def _artifact(
        self,
        use: str,
        name: str,
        key: str,
        settings: Mapping[str, Any],
        make: Callable[[Context], Artifact],
        ensures: Callable[[Path], None],
        data: Mapping[str, Source] | None = None,
    ) -> Done:
        index = len(self.done) + 1
        folder = self.step_folder(index, name, key)
        cached = (folder / artifacts.CARD).exists()
        self.console.begin(index, self.count, name, cached)
        if cached:
            artifacts.check(folder)
        else:
            started = time.monotonic()
            context = self.context(folder.name, data or {})
            made = make(context)
            step = Step(use=use, settings=settings, notes=tuple(self.console.notes))
            with files.atomic_folder(folder) as new:
                made.after(step).save(new)
                del made
                ensures(new)
                seconds = time.monotonic() - started
                files.write_json(new / MEASURED, {"seconds": round(seconds, 3), **self.console.measured})
            shutil.rmtree(context.folder, ignore_errors=True)
            self.console.end(seconds)
        done = Done(
            index=index, use=use, name=name, folder=folder, cached=cached, measured=files.read_json(folder / MEASURED)
        )
        self.done.append(done)
        return done

    def context(self, name: str, data: Mapping[str, Source]) -> Context:
        """Return a step's surroundings, with everything random seeded anew."""
        seed = self.pipeline.run.seed
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(self.keys.threads)
        folder = self.home / "partial" / name
        folder.mkdir(parents=True, exist_ok=True)
        return Context(
            folder=folder,
            device=torch.device(self.pipeline.compute.device),
            dtype=getattr(torch, self.pipeline.compute.dtype),
            seed=seed,
            data=dict(data),
            report=self.console,
            engines=self.engines,
            parent=self._parent if self.done else None,
            workers=self.pipeline.compute.workers or os.cpu_count() or 1,
            cluster=self.pipeline.compute.engine,
            cache=self.home / "cache",
        )

    def _parent(self) -> Artifact:
        return self.open(self.dense.folder)

    # -- what leaves the house ----------------------------------------------------------------------------------

    def export(
        self, entry: Entry, source: Done, facts: Facts, target: Target | None, name: str, position: Sequence[int],
        room: str | None = None,
    ) -> Done:  # fmt: skip
        """Export an artifact for a target; an engine is reopened and compared before its folder gets its name."""
        exporter = entry.plugin
        assert isinstance(exporter, Exporter)
        uses = exporter.data_uses(facts)
        key = self.keys.export(entry, artifacts.digest(source.folder), target, uses)
        place = Path(room or ("engines" if exporter.runtimes else "exports")) / name
        folder = (self.home if source is self.dense else self.folder) / place
        cached = (folder / _KEY).exists() and files.read_json(folder / _KEY)["key"] == key
        cached = cached and not self._can_run_now(folder)
        self.console.begin(position[0], position[1], f"{entry.name} -> {place}", cached)
        if cached:
            self.engines.check(folder) if exporter.runtimes else artifacts.check(folder)
        else:
            started = time.monotonic()
            context = self.context(f"{name}-{key[:12]}", {r: self.keys.sources[r] for r in uses})
            given = self.open(source.folder)
            with files.atomic_folder(folder) as new:
                if target is not None and exporter.runtimes:
                    self.engines.build(given, exporter, target, new, context)
                else:
                    exporter.export(given, new, context, target)
                files.write_json(new / _KEY, {"key": key, "source": source.name})
                seconds = time.monotonic() - started
                files.write_json(new / MEASURED, {"seconds": round(seconds, 3), **self.console.measured})
            shutil.rmtree(context.folder, ignore_errors=True)
            self.console.end(seconds)
        measured = files.read_json(folder / MEASURED)
        return Done(index=position[0], use=entry.use, name=name, folder=folder, cached=cached, measured=measured)

    def _can_run_now(self, folder: Path) -> bool:
        """Tell whether an engine was never opened, for want of its device, and now can be."""
        return NOT_RUN in files.read_json(folder / MEASURED) and self.engines.absent(folder) is None
