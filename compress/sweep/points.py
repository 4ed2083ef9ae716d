"""The points of a sweep: for each target and budget, and for each way to choose, a pipeline of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress import budgets
from compress.budgets import Limit
from compress.contracts import Exporter, Target
from compress.errors import BadPipeline
from compress.settings import Pipeline
from compress.settings.sweeping import BUDGET, choosing, varied

CHOSEN = "chosen"  # the way of the file's own settings


@dataclass(frozen=True, kw_only=True)
class Point:
    """One engine to be.

    Attributes:
        target: what it is for.
        budget: what it may cost, as written.
        way: how it is chosen: `chosen`, or a baseline's name.
        estimated: whether only a datasheet tells of the target, so that there is no engine.
        pipeline: what makes it.
    """

    target: Target
    budget: Mapping[str, str | float]
    way: str
    estimated: bool
    pipeline: Pipeline

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The budget, read."""
        return budgets.parse(self.budget)

    @property
    def name(self) -> str:
        """What its folder is called."""
        parts = [self.target.name, budgets.slug(self.limits), *([self.way] if self.way != CHOSEN else [])]
        return "-".join(parts)

    @property
    def told(self) -> str:
        """What it is, in words."""
        return f"{self.target.name}, {budgets.told(self.limits)}" + (f", {self.way}" if self.way != CHOSEN else "")

    @property
    def costs(self) -> tuple[str, ...]:
        """The times that its budget limits."""
        return tuple(limit.cost for limit in self.limits if limit.timed)


def points(pipeline: Pipeline) -> tuple[Point, ...]:
    """Return every point of a pipeline's sweep, the chosen ones before the baselines.

    Raises:
        BadPipeline: the file has no `[sweep]`.
    """
    sweep = pipeline.sweep
    if sweep is None:
        raise BadPipeline(
            [f"{pipeline.path}: has no [sweep] table; one with budgets = [{{ decode = '0.8x' }}, ...] would do"]
        )
    targets = [t for t in pipeline.targets if sweep.targets is None or t.name in sweep.targets]
    ways = [CHOSEN, *dict.fromkeys(b for b in sweep.baselines if b != "dense")]
    return tuple(_point(pipeline, t, b, way) for way in ways for t in targets for b in sweep.budgets)


def _point(pipeline: Pipeline, target: Target, budget: Mapping[str, str | float], way: str) -> Point:
    """Return a point: the file with one target, the choosing pass varied, and without passes that are not to heal."""
    sweep = pipeline.sweep
    assert sweep is not None
    (chooser,) = choosing(pipeline.passes)
    changes: dict[str, Any] = {BUDGET: dict(budget)}
    if "target" in type(chooser.plugin.settings).model_fields:
        changes["target"] = target.name
    if profile := sweep.profiles.get(target.name):
        changes["profile"] = profile
    if way != CHOSEN:
        changes["solver"] = way
    kept = [e for e in pipeline.passes if e.index <= chooser.index or sweep.heal is None or e.name in sweep.heal]
    passes = (varied(e, changes) if e is chooser else e for e in kept)
    exports = (
        dataclasses.replace(e, targets=(target.name,))
        for e in pipeline.exports
        if isinstance(e.plugin, Exporter) and e.plugin.runtimes and target.name in e.targets
    )
    numbered = (dataclasses.replace(entry, index=index) for index, entry in enumerate(passes, start=1))
    own = dataclasses.replace(pipeline, targets=(target,), passes=tuple(numbered), exports=tuple(exports))
    estimated = target.name in pipeline.estimated
    return Point(target=target, budget=budget, way=way, estimated=estimated, pipeline=own)
