"""What a profile says, as lines to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.measure import digits
from profiles._costs import Phase
from profiles._file import Profile, Timing
from profiles._parts import Base


def lines(profile: Profile) -> list[str]:
    """Return a profile's machine, its parts with a column for each phase, batch and length, and its trust in sums."""
    parts, keys = profile.document.parts, _keys(profile)
    rows = [["", *(f"{phase} {batch} x {length}" for phase, batch, length in keys)]]
    for part in sorted(parts, key=lambda p: isinstance(p.part, Base)):
        times = {t.key: t for t in part.times}
        rows.append([str(part.choice), *(_cell(times.get(key)) for key in keys)])
    first, *rest = _about(profile)
    told = [
        f"{profile.name}: {first}",
        *(f"  {line}" for line in rest),
        *_table(rows),
        *_line_lines(profile, keys),
    ]
    doubtful = [f"  caution: {p.choice}, {t.phase}: {f}" for p in parts for t in p.times for f in t.flags]
    return [*told, *doubtful]


def figures(profile: Profile) -> dict[str, Any]:
    """Return what a page shows: about the profile, and for each request what parts cost."""
    parts = sorted(profile.document.parts, key=lambda p: (isinstance(p.part, Base), p.part.part, -p.part.parameters))
    found = []
    for batch, length in dict.fromkeys(key[1:] for key in _keys(profile)):
        shown = []
        for part in parts:
            times = {
                t.phase: [t.ms, t.ms * t.spread, float(bool(t.flags))]
                for t in part.times
                if t.key[1:] == (batch, length)
            }
            kind = part.precision if part.pattern == "dense" else f"{part.precision}, {part.pattern}"
            if times:
                shown.append({"shape": str(part.part), "precision": kind, "times": times})
        found.append({"batch": batch, "length": length, "parts": shown})
    lines = [line.strip() for line in _line_lines(profile, _keys(profile))]
    return {"name": Path(profile.name).name, "about": [*_about(profile), *lines], "costs": found}


def _about(profile: Profile) -> list[str]:
    machine, taken = profile.machine, profile.document.taken
    return [
        f"latency profile of {machine.device}, {machine.model}, {machine.cores} cores",
        f"{machine.runtime} {machine.version}, {machine.threads} threads, {machine.precision}, taken {taken.date}, "
        f"load {' to '.join(f'{load:.1f}' for load in taken.load) if taken.load else 'unknown'}",
        f"{taken.clock or 'no clock'}, slopes between {', '.join(map(str, taken.copies))} copies, "
        f"{taken.processes} processes, for models that {'' if taken.cached else 'do not '}fit into the cache; "
        "ms with half the 95 % interval",
    ]


def _keys(profile: Profile) -> list[tuple[Phase, int, int]]:
    """Return phase, batch and length of all that was timed, prefill before decode."""
    every = {t.key for p in profile.document.parts for t in p.times}
    return sorted(every, key=lambda k: (k[1], k[2], k[0] != "prefill"))


def _line_lines(profile: Profile, keys: Sequence[tuple[Phase, int, int]]) -> list[str]:
    found = []
    for phase, batch, length in keys:
        line = profile.line(phase, batch, length)
        if line.residual is not None:
            memory = f" and {line.per_mib:.3g} ms for each MiB" if line.per_mib else ""
            found.append(
                f"  whole models, {phase} {batch} x {length}: {line.intercept:+.3g} ms, {line.slope:.3g} times the sum "
                f"of their parts{memory}, {line.residual:.1%} off ({line.count} models)"
                f"{f', at another time up to {line.drift:.1%} together' if line.drift else ''}"
            )
    return found or ["  whole models: too few measured to tell what sums of parts miss"]


def _cell(time: Timing | None) -> str:
    return "-" if time is None else f"{digits(time.ms)} +- {time.spread:.0%}{' !' if time.flags else ''}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]
