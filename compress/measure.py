"""Engines side by side on the clock: `compress.bench` run in fresh processes, its figures read and told."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from compress import files, hosts
from compress.bench import REQUEST
from compress.context import QuietReport, Report
from compress.contracts import Target
from compress.errors import BadModel, BadSettings, CompressError, UserFault
from compress.following import follow
from compress.hosts import Host

_BENCH = Path(__file__).with_name("bench.py")
_MANIFEST = "engine.json"
_DENSE = "-dense"  # ends the name of the parent's engine in a run folder


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Time(_Record):
    """A time in ms, and its ratio to the first engine's with the 95 % interval (0.5 = half the time)."""

    ms: float
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def speed(self) -> str:
        """How many times as fast as the first engine, with the interval."""
        return f"{1 / self.ratio:.2f}x as fast ({1 / self.ratio_high:.2f} to {1 / self.ratio_low:.2f})"


class Phase(Time):
    """One phase: `ms` on the clock that counts, both clocks' medians, the blocks' spread (0.9 to 0.1 quantile)."""

    cpu_ms: float
    wall_ms: float
    wall_p10_ms: float
    spread: float
    runs: int
    flags: tuple[str, ...]


class Figures(_Record):
    """One engine: prefill of the prompt, decode per token (None for encoders), the whole request, and its weight."""

    folder: str
    prefill: Phase
    decode: Phase | None
    request: Time
    tokens_per_second: float
    load_seconds: float
    memory_mib: float | None
    file_mib: float


class Measurement(_Record):
    """What the clock found: engines in the order given, the first being the reference of all ratios."""

    format: int
    request: dict[str, int | str]
    clock: str
    cache: str
    processes: int
    load_average: float
    machine: dict[str, int | str]
    versions: dict[str, str]
    engines: tuple[Figures, ...]
    flags: tuple[str, ...]


def measure(
    folders: Sequence[Path],
    target: Target,
    report: Report | None = None,
    *,
    processes: int = 6,
    seconds: float = 1.0,
    host: Host | None = None,
) -> Measurement:
    """Time engine folders on the request of a target, interleaved; see `compress.bench` for the protocol.

    Args:
        folders: engine folders; the first is the reference.
        target: device, threads and request.
        report: shows a bar.
        processes: fresh processes to time in.
        seconds: what to aim at per phase and process.
        host: where the clock runs, in place of this machine.

    Raises:
        UserFault: an engine cannot be loaded, or cannot run such a request there.
        CompressError: the clock itself failed.
    """
    request = {k: v for k, v in target.model_dump().items() if k in REQUEST}
    request["huge_pages"] = int(target.huge_pages)
    options = {**request, "processes": processes, "seconds": seconds}
    with (
        tempfile.TemporaryDirectory() as scratch,
        (report or QuietReport()).bar("measuring", processes + len(folders)) as bar,
    ):
        result = Path(scratch) / "figures.json"
        there = [host.put(f) for f in folders] if host else list(map(str, folders))
        written = f"{host.folder}/{result.name}" if host else str(result)
        arguments = [*there, *(f"--{k}={v}" for k, v in options.items()), f"--json={written}"]
        if host:
            for file in sorted(_BENCH.parent.glob("bench_*.py")):
                host.put(file)
            _run(host.command(_BENCH, *arguments), bar, host)
            host.get(written, result)
        else:
            _run([sys.executable, str(_BENCH), *arguments], bar)
        found = Measurement.model_validate_json(result.read_text(encoding="utf-8"))
    engines = [e.model_copy(update={"folder": str(f)}) for e, f in zip(found.engines, folders, strict=True)]
    return found.model_copy(update={"engines": tuple(engines)})


def compare(a: Path, b: Path, target: Target | None = None, report: Report | None = None) -> Measurement:
    """Time two engines, or the engines of two runs, interleaved on this machine; `a` is the reference.

    Args:
        a: an engine folder, or a run folder with one engine (beside its dense parent's).
        b: likewise.
        target: the request, and the name of the engine in a run folder of several; by default what `a` was made for.
        report: shows a bar.

    Raises:
        BadModel: a folder holds no engine.
        BadSettings: a run folder holds several engines and no target says which.
    """
    first, second = (_engine_of(Path(p), target) for p in (a, b))
    return measure([first, second], target or made_for(first), report)


def made_for(engine: Path) -> Target:
    """Return the target in an engine's manifest, or the default one."""
    stated = files.read_json(engine / _MANIFEST).get("target") or {}
    return Target(**{k: v for k, v in stated.items() if k in Target.model_fields})


def lines(measurement: Measurement) -> list[str]:
    """Return the figures as a table of plain lines: a row per figure, a column per engine, ratios to the first."""
    m, engines, request = measurement, measurement.engines, measurement.request
    rows = [["", *labels([e.folder for e in engines])]]
    rows.append([f"prefill of {request['prompt']} tokens", *(_time(e.prefill, i) for i, e in enumerate(engines))])
    if all(e.decode for e in engines):
        rows.append(["decode per token", *(_time(e.decode, i) for i, e in enumerate(engines))])
        rows.append(
            [f"request, {request['generate']} new tokens", *(_time(e.request, i) for i, e in enumerate(engines))]
        )
    rows.append(["throughput", *(f"{e.tokens_per_second:,.0f} tokens/s" for e in engines)])
    rows.append(["peak memory", *("unknown" if e.memory_mib is None else f"{e.memory_mib:.1f} MiB" for e in engines)])
    rows.append(["files", *(f"{e.file_mib:.1f} MiB" for e in engines)])
    rows.append(["loading", *(f"{e.load_seconds:.2f} s" for e in engines)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    how = f"{m.clock}, {m.cache}, {m.processes} processes, {', '.join(f'{k} {v}' for k, v in request.items())}"
    machine = f"{m.machine['cpu']}, {m.machine['cores']} cores, load {m.load_average:.1f}"
    versions = ", ".join(f"{name} {version}" for name, version in m.versions.items())
    return [*table, how, f"{machine}, {versions}", *(f"caution: {flag}" for flag in cautions(m))]


def cautions(measurement: Measurement) -> list[str]:
    """Return every flag of the measurement, saying which engine and phase it is about."""
    found = list(measurement.flags)
    for label, engine in zip(labels([e.folder for e in measurement.engines]), measurement.engines, strict=True):
        for name, phase in (("prefill", engine.prefill), ("decode", engine.decode)):
            found += [f"{label}, {name}: {flag}" for flag in (phase.flags if phase else ())]
    return found


def labels(folders: Sequence[str]) -> list[str]:
    """Return the shortest names that tell folders apart: without the parts that all share in front and behind."""
    parts = [Path(f).parts for f in folders]
    if len(parts) == 1:
        return [parts[0][-1]]
    if len(set(parts)) < len(parts):
        return [f"{p[-1]} ({i})" for i, p in enumerate(parts, start=1)]
    for end, rest in ((0, slice(1, None)), (-1, slice(-1))):
        while len({p[end] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
            parts = [p[rest] for p in parts]
    return [str(Path(*p)) for p in parts]


def digits(value: float, count: int = 3) -> str:
    """Return a number with the digits that count, never in powers of ten."""
    if value == 0 or abs(value) >= 10 ** (count - 1):
        return f"{value:,.0f}"
    power = int(f"{value:.{count - 1}e}".partition("e")[2])
    return f"{value:.{count - 1 - power}f}"


def _time(time: Time | None, index: int) -> str:
    assert time is not None
    return f"{digits(time.ms)} ms" + (f", {time.speed}" if index else "")


def _engine_of(path: Path, target: Target | None) -> Path:
    if (path / _MANIFEST).is_file():
        return path
    found = sorted(p.parent for p in path.glob(f"engines/*/{_MANIFEST}") if not p.parent.name.endswith(_DENSE))
    if not found:
        raise BadModel(
            f"{path}: no engine in it; give an engine folder (with {_MANIFEST}) or a run folder with engines/"
        )
    named = [p for p in found if target and p.name == target.name] or found
    if len(named) > 1:
        raise BadSettings(f"{path}: holds several engines; name one: {', '.join(str(p) for p in found)}")
    return named[0]


def _run(command: list[str], bar: Any, host: Host | None = None) -> None:
    """Run the clock, moving the bar at every part it announces."""
    status, last = follow(command, bar)
    if host and status not in (0, 2):
        raise hosts.fault(host.name, status, last)
    if status:
        said = last.removeprefix("bench: ")
        kind = UserFault if status == 2 else CompressError
        raise kind(f"measuring: {host.told(said) if host else said}")
