"""What a profile says, as lines to read."""

from __future__ import annotations

from collections.abc import Sequence

from compress.measure import digits
from profiles._file import Profile, Timing
from profiles._parts import Base


def lines(profile: Profile) -> list[str]:
    """Return a profile's machine, its parts with a column for each phase, batch and length, and its trust in sums."""
    machine, taken, parts = profile.machine, profile.document.taken, profile.document.parts
    keys = sorted({t.key for p in parts for t in p.times}, key=lambda k: (k[1], k[2], k[0] != "prefill"))
    rows = [["", *(f"{phase} {batch} x {length}" for phase, batch, length in keys)]]
    for part in sorted(parts, key=lambda p: isinstance(p.part, Base)):
        times = {t.key: t for t in part.times}
        rows.append([str(part.choice), *(_cell(times.get(key)) for key in keys)])
    told = [
        f"{profile.name}: latency profile of {machine.device}, {machine.model}, {machine.cores} cores",
        f"  {machine.runtime} {machine.version}, {machine.threads} threads, {machine.precision}, taken {taken.date}, "
        f"load {taken.load[0]:.1f} to {taken.load[1]:.1f}",
        f"  {taken.clock or 'no clock'}, slopes between {', '.join(map(str, taken.copies))} copies, "
        f"{taken.processes} processes; ms with half the 95 % interval",
        *_table(rows),
        *_line_lines(profile, keys),
    ]
    doubtful = [f"  caution: {p.choice}, {t.phase}: {f}" for p in parts for t in p.times for f in t.flags]
    return [*told, *doubtful]


def _line_lines(profile: Profile, keys: Sequence[tuple[str, int, int]]) -> list[str]:
    found = []
    for phase, batch, length in keys:
        line = profile.line(phase, batch, length)  # type: ignore[arg-type]
        if line.residual is not None:
            found.append(
                f"  whole models, {phase} {batch} x {length}: {line.intercept:+.3g} ms, {line.slope:.3g} times the sum "
                f"of their parts, {line.residual:.1%} off ({line.count} models)"
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
