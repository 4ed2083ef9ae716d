"""Read the tables that may repeat: `[[pass]]`, `[[export]]` and `[[target]]`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from compress import registry
from compress.contracts import Exporter, Pass, Settings, Target
from compress.settings.faults import Faults, got
from compress.settings.places import Places
from compress.settings.tables import Entry, ExportTable, PassTable

Kind = Literal["pass", "export"]
ROOMS: Mapping[str, str] = {"pass": "passes", "export": "exporters"}
COMMON: Mapping[str, type[Settings]] = {"pass": PassTable, "export": ExportTable}
CONTRACTS: Mapping[str, type[Pass | Exporter]] = {"pass": Pass, "export": Exporter}


def read(kind: Kind, tables: Sequence[Mapping[str, Any]], faults: Faults, places: Places) -> tuple[Entry, ...]:
    """Return the plug-ins of a file with their settings; the faulty ones are left out after adding their faults."""
    found: list[Entry] = []
    uses: Counter[Any] = Counter()
    for index, table in enumerate(tables):
        use = str(table.get("use"))
        uses[use] += 1
        default_name = use if uses[use] == 1 else f"{use}-{uses[use]}"
        entry = _entry(kind, index, table, default_name, faults, places)
        if entry:
            if entry.name in {e.name for e in found}:
                faults.add((kind, index, "name"), f"must differ from the names before it{got(entry.name)}", use)
            found.append(entry)
    return tuple(found)


def needs_target(exports: Sequence[Entry]) -> bool:
    """Tell whether any of the exports writes engines."""
    return any(_runtimes(e) for e in exports)


def read_targets(tables: Sequence[Mapping[str, Any]], faults: Faults, *, generates: bool) -> tuple[Target, ...]:
    """Return the targets of a file; the faulty ones are left out after adding their faults.

    Args:
        tables: as `tomllib` read them.
        faults: where faults go.
        generates: whether the model's task is to generate text; else `generate` is 0 unless written.
    """
    found: list[Target] = []
    for index, table in enumerate(tables):
        target = faults.validated(Target, table if generates else {"generate": 0, **table}, ("target", index))
        if target is None:
            continue
        if target.name in {t.name for t in found}:
            faults.add(("target", index, "name"), f"must differ from the names before it{got(target.name)}")
        if target.name.endswith("-dense"):
            faults.add(
                ("target", index, "name"), f"must not end in '-dense' as the parent's engine does{got(target.name)}"
            )
        if target.generate and not generates:
            faults.add(
                ("target", index, "generate"), f"must be 0, since only causal-lm generates{got(target.generate)}"
            )
        found.append(target)
    return tuple(found)


def served(exports: Sequence[Entry], targets: Sequence[Target], faults: Faults) -> tuple[Entry, ...]:
    """Return the exports with the targets that each serves; unknown and unserved targets are faults."""
    found = tuple(dataclasses.replace(e, targets=_targets_of(e, targets, faults)) for e in exports)
    for index, target in enumerate(targets):
        if not any(target.name in e.targets for e in found):
            known = {n: registry.load("exporters", n, Exporter).runtimes for n in registry.names("exporters")}
            able = [f"use = {n!r}" for n, runtimes in known.items() if target.runtime in runtimes]
            mend = f"add an [[export]] with {' or '.join(able)}" if able else (
                f"known runtimes: {', '.join(sorted({r for rs in known.values() for r in rs})) or 'none'}"
            )  # fmt: skip
            faults.add(
                ("target", index, "runtime"), f"no [[export]] writes for this target{got(target.runtime)}; {mend}"
            )
    return found


def _entry(
    kind: Kind, index: int, table: Mapping[str, Any], default_name: str, faults: Faults, places: Places
) -> Entry | None:
    path, room, common = (kind, index), ROOMS[kind], COMMON[kind]
    use = table.get("use")
    if not isinstance(use, str) or use not in registry.names(room):
        said = got(use) if "use" in table else ""
        faults.add(
            (*path, "use"), f"must name one of the {room}{said}{registry.nearest(str(use or ''), registry.names(room))}"
        )
        return None
    head = faults.validated(common, {k: v for k, v in table.items() if k in common.model_fields}, path, use)
    found = registry.load(room, use, CONTRACTS[kind])
    rest = {k: v for k, v in table.items() if k not in common.model_fields}
    settings = faults.validated(found.Settings, rest, path, use, known=tuple(common.model_fields))
    plugin = faults.attempt(path, use, lambda: found(settings)) if settings is not None else None
    if head is None or plugin is None:
        return None
    own = {n: getattr(head, n) for n in ("targets", "expect", "on_no_gain", "dense") if n in common.model_fields}
    return Entry(index + 1, use, getattr(head, "name", None) or default_name, plugin, places.line(path), **own)


def _targets_of(entry: Entry, targets: Sequence[Target], faults: Faults) -> tuple[str, ...]:
    runtimes = _runtimes(entry)
    if entry.targets is None:
        return tuple(t.name for t in targets if t.runtime in runtimes)
    path = ("export", entry.index - 1, "targets")
    if not runtimes:
        faults.add(path, "needs no target; leave it out", entry.use)
        return ()
    by_name = {t.name: t for t in targets}
    for name in entry.targets:
        if name not in by_name:
            faults.add(path, f"no such target{got(name)}{registry.nearest(name, by_name)}", entry.use)
        elif by_name[name].runtime not in runtimes:
            faults.add(path, f"writes for {' or '.join(runtimes)}, and target {name!r} has {by_name[name].runtime!r}")
    return tuple(n for n in entry.targets if n in by_name)


def _runtimes(entry: Entry) -> tuple[str, ...]:
    return entry.plugin.runtimes if isinstance(entry.plugin, Exporter) else ()
