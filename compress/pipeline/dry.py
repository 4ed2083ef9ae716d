"""Whether a plan can reach its latency, before any of it is trained for: the clock on engines of random weights.

The dense model's blocks and those of the facts after the last pass are built with random weights, exported by the
pipeline's own exports, and timed in turns.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress import loading, measure, profiling
from compress.context import QuietReport, Report
from compress.contracts import Exporter, Target
from compress.errors import UserFault
from compress.facts import Facts, Planned
from compress.measure import Measurement, Time, digits
from compress.profiling import Build
from compress.settings import Pipeline

_PATTERN = re.compile(r"\d+:\d+")


@dataclass(frozen=True, kw_only=True)
class Dry:
    """What a dry run tells of one target.

    Attributes:
        name: of the engine.
        measurement: of the dense build and, where passes follow, of the planned one; None where nothing can be timed.
        missing: why it cannot.
        bound: whether a pass yet chooses, so that the engine may become smaller than what was timed.
    """

    name: str
    measurement: Measurement | None = None
    missing: str = ""
    bound: bool = False

    def lines(self) -> list[str]:
        """Return it to be read."""
        if self.measurement is None:
            return [f"{self.name}: not timed: {self.missing}"]
        request, engines = self.measurement.request, self.measurement.engines
        told = [f"{self.name}: engines of random weights, prompt {request['prompt']}, batch {request['batch']}"]
        for what in ("prefill", "decode", "request"):
            times: list[Time | None] = [getattr(e, what) for e in engines]
            if dense := times[0]:
                planned = times[-1] if len(times) > 1 else None
                after = f", planned {digits(planned.ms)} ms, {planned.speed}" if planned else ""
                told.append(f"  {what}: dense {digits(dense.ms)} ms{after}")
        if self.bound:
            told.append("  planned is an upper bound: a pass chooses when it runs, and may leave less")
        return [*told, *(f"  caution: {flag}" for flag in measure.cautions(self.measurement))]


def tried(pipeline: Pipeline, facts: Sequence[Facts], report: Report | None = None) -> list[Dry]:
    """Time what a judged pipeline plans, a target after the other.

    Args:
        pipeline: its exports and targets.
        facts: of the dense model, and after each pass.
        report: shows bars.

    Returns:
        What was found for every engine that the pipeline exports; none where it exports none.
    """
    targets = {t.name: t for t in pipeline.targets}
    entries = [e for e in pipeline.exports if isinstance(e.plugin, Exporter) and e.plugin.runtimes]
    found = []
    for entry in entries:
        assert isinstance(entry.plugin, Exporter)
        for target in (targets[n] for n in entry.targets):
            name = target.name if len(entries) == 1 else f"{target.name}-{entry.name}"
            found.append(_timed(pipeline, facts, entry.plugin, target, name, report or QuietReport()))
    return found


def build_of(facts: Facts) -> Build:
    """Return what is to be built for some facts: codes as they may first turn out, and zeros in N:M patterns.

    Zeros without a pattern have no kernel in any runtime here, so that they take the time of weights.
    """
    patterns = {n: m.pattern for n, m in facts.masks.items() if _PATTERN.fullmatch(m.pattern)}
    grids = {n: g.possible[0] for n, g in facts.grids.items()}
    plan = {n: Planned(grid=grids.get(n), pattern=patterns.get(n)) for n in facts.shapes if n in {*grids, *patterns}}
    return Build(layout=facts.layout, plan=plan, branches=dict(facts.branches))


def _timed(
    pipeline: Pipeline, facts: Sequence[Facts], exporter: Exporter, target: Target, name: str, report: Report
) -> Dry:
    bound = any(f.open for f in facts)
    builds = [build_of(f) for f in (facts[0], *facts[1:][-1:])]
    try:
        model = str(loading.locate(pipeline.model.source, pipeline.model.revision))
        with tempfile.TemporaryDirectory() as scratch:
            folders = [Path(scratch) / which for which in ("dense", "planned")[: len(builds)]]
            for build, folder in zip(builds, folders, strict=True):
                profiling.profiler().engine(model, pipeline.model.task, build, target, folder, exporter=exporter)
            measured = measure.measure(folders, target, report)
    except UserFault as error:
        return Dry(name=name, missing=str(error))
    return Dry(name=name, measurement=measured, bound=bound)
