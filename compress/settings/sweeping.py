"""Judge the `[sweep]` table by the rest of the file, and find the pass that it varies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from compress.contracts import Pass
from compress.errors import BadSettings, UserFault
from compress.registry import nearest
from compress.settings.faults import Faults, checked, got
from compress.settings.tables import Entry, Pipeline

BUDGET = "budget"  # the setting by which a pass that chooses is known


def choosing(passes: Iterable[Entry]) -> list[Entry]:
    """Return the passes that choose within a budget: those whose settings have one."""
    return [e for e in passes if BUDGET in type(e.plugin.settings).model_fields]


def varied(entry: Entry, changes: Mapping[str, Any]) -> Entry:
    """Return a pass with some of its settings replaced.

    Raises:
        BadSettings: it has no such setting, or does not take the value.
    """
    plugin = entry.plugin
    assert isinstance(plugin, Pass)
    fields = type(plugin.settings).model_fields
    for key, value in changes.items():
        if key not in fields:
            raise BadSettings(f"{entry.use} has no setting {key!r} that could become {value!r}")
    given = plugin.settings.model_dump(mode="json", exclude_unset=True)
    settings = checked(type(plugin).Settings, {**given, **changes}, entry.use)
    return dataclasses.replace(entry, plugin=type(plugin)(settings))


def without_estimated(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline that exports nothing for targets which only a datasheet tells of."""
    gone = pipeline.estimated
    kept = (dataclasses.replace(e, targets=tuple(n for n in e.targets if n not in gone)) for e in pipeline.exports)
    return dataclasses.replace(pipeline, exports=tuple(kept))


def judge_sweep(pipeline: Pipeline, faults: Faults) -> None:
    """Add what is wrong with the sweep, given the passes and targets of the file."""
    sweep, names = pipeline.sweep, [t.name for t in pipeline.targets]
    assert sweep is not None
    if not names:
        faults.add(("sweep",), "needs a [[target]] to choose for")
    for key in ("targets", "profiles"):
        for name in getattr(sweep, key) or ():
            if name not in names:
                faults.add(("sweep", key), f"no such target{got(name)}{nearest(name, names)}")
    found = choosing(pipeline.passes)
    if len(found) != 1:
        there = " and ".join(e.name for e in found) or "none"
        faults.add(("sweep",), f"needs one [[pass]] that chooses within a `budget`, as puzzle does, got {there}")
        return
    chooser = found[0]
    after = [e.name for e in pipeline.passes if e.index > chooser.index]
    for name in sweep.heal or ():
        if name not in after:
            faults.add(("sweep", "heal"), f"no such pass after {chooser.name!r}{got(name)}{nearest(name, after)}")
    tries: list[tuple[str, dict[str, Any]]] = [("baselines", {"solver": b}) for b in sweep.baselines if b != "dense"]
    tries += [("profiles", {"profile": p}) for p in sweep.profiles.values()]
    tries += [("budgets", {BUDGET: dict(b)}) for b in sweep.budgets]
    for key, changes in tries:
        try:
            varied(chooser, changes)
        except UserFault as error:
            faults.add_error(("sweep", key), BadSettings(str(error)))
    _judge_datasheets(pipeline, faults)


def _judge_datasheets(pipeline: Pipeline, faults: Faults) -> None:
    """Refuse profiles that are neither a file nor a datasheet."""
    if not (pipeline.sweep and pipeline.estimated):
        return
    from compress.profiling import profiler  # imports torch, which a file without profiles need not wait for

    for target, source in pipeline.sweep.profiles.items():
        if not profiler().known(source):
            faults.add(("sweep", "profiles"), f"{target}: neither a profile file nor a datasheet{got(source)}")
