"""One session of measuring: what a profile lacks is built, timed beside the reference engine, and written at once."""

from __future__ import annotations

import datetime
import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress import measure
from compress.contracts import Target
from compress.hosts import Host
from compress.measure import Figures, Measurement
from compress.measure import Phase as Clocked
from compress.profiling import Wanted
from profiles._build import Workshop
from profiles._costs import Phase
from profiles._file import Document, Measured, Taken, Timing, Whole, write
from profiles._machine import cached, here
from profiles._parts import Choice
from profiles._planning import Plan
from profiles._probe import clock_mhz
from profiles._slopes import Found, Unmeasurable, plain, pooled, through
from profiles._whole import Wholesale

AT_ONCE = 3  # parts that are timed in one run of the clock
HEAD = 2**20  # weights behind parts: enough to take the caches of a core from them, as any head does in a whole model
ATTEMPTS = 3  # each in other processes, for engines differ from process to process; what was found before counts too
_STACKED = ("onnxruntime",)  # runtimes that open graphs, of which any block can be stacked on any
_BASE_DEPTHS = (1, 2)  # the fewer blocks, the better what is left without any is known


class Session:
    """What is measured into one file.

    Args:
        wanted: the wishes.
        plan: the parts.
        document: the profile so far.
        path: where it is written after every run of the clock; None = nowhere.
        scratch: for engines; vanishes with the session.
        host: where they are timed; None = here.
    """

    def __init__(
        self, wanted: Wanted, plan: Plan, document: Document, path: Path | None, scratch: Path, host: Host | None = None
    ) -> None:
        self.wanted, self.plan, self.document, self.path, self._host = wanted, plan, document, path, host
        self._scratch, self._numbers = scratch, itertools.count()
        self._built: dict[tuple[tuple[Choice, ...], int], Path] = {}
        self._memory: dict[Choice, float | None] = {}
        every = (*plan.block, *plan.choices)
        made = Workshop if wanted.target.runtime in _STACKED else Wholesale
        self._workshop = made(plan.config, wanted.task, every, wanted.target, scratch / "trace", wanted.seed)
        self._head = min(plan.vocabulary, HEAD // plan.base.part.hidden)
        self._reference = self.engine(plan.block * wanted.copies[0])

    def engine(self, order: Sequence[Choice], vocabulary: int | None = None) -> Path:
        """Return the engine of some parts, built once; with a small head unless a vocabulary is given."""
        key = (tuple(order), vocabulary or self._head)
        if key not in self._built:
            self._built[key] = self._workshop.build(order, self._scratch / f"e{next(self._numbers)}", key[1])
        return self._built[key]

    def run(self, request: tuple[int, int], folders: Sequence[Path]) -> Measurement:
        """Time engines beside the reference, on a request."""
        wanted, engines = self.wanted, [self._reference, *folders]
        found = measure.measure(
            engines, self.target(request), processes=wanted.processes, seconds=wanted.seconds, host=self._host
        )
        load, taken = found.load_average, self.document.taken
        seen = (load, *(taken.load or ()))
        span = (min(seen), max(seen))
        self._change_(taken=taken.model_copy(update={"load": span, "clock": found.clock, "cache": found.cache}))
        return found

    def target(self, request: tuple[int, int]) -> Target:
        """Return the target with another batch and prompt."""
        return self.wanted.target.model_copy(update={"batch": request[0], "prompt": request[1]})

    def measure_parts(self, request: tuple[int, int], choices: Sequence[Choice]) -> list[str]:
        """Measure parts until each is sound, and write them; what stays wide after the last attempt is flagged.

        Returns:
            A line for each part that took no time even then; it is not written.
        """
        left, found = list(choices), dict[Choice, dict[Phase, Found]]()
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            for choice, now in self.slopes(request, left).items():
                times = found[choice] = _pooled(found.get(choice, {}), now)
                sound = all(t.sound for t in times.values())
                if sound or (last and all(t.ms > 0 for t in times.values())):
                    self.keep(choice, request, times)
                    left.remove(choice)
            if not left:
                break
        told = {
            c: ", ".join(f"{p} {t.ms:.2g} ms, give or take {t.half:.2g}" for p, t in found[c].items()) for c in left
        }
        return [f"{c}: one more copy takes no time ({t}); give more --copies or --processes" for c, t in told.items()]

    def holds(self, request: tuple[int, int], picks: Sequence[Choice]) -> bool:
        """Tell whether all parts of a whole model are in the profile, for a request."""
        held = {p.choice for p in self.document.parts if request in {(t.batch, t.length) for t in p.times}}
        return {self.plan.base, *picks} <= held

    def slopes(
        self, request: tuple[int, int], choices: Sequence[Choice], *, anew: bool = False
    ) -> dict[Choice, dict[Phase, Found]]:
        """Return what one more copy of each part takes; `anew` forgets what the reference took before."""
        depths = self.wanted.copies
        folders = [self.engine((c,) * depth) for c in choices for depth in depths]
        run = self.run(request, folders)
        found: dict[Choice, dict[Phase, Found]] = {}
        for k, choice in enumerate(choices):
            engines = run.engines[1 + k * len(depths) :][: len(depths)]
            found[choice] = {
                phase: through(depths, clocked, self.scale(request, phase, run, anew=anew))[0]
                for phase, clocked in _phases(engines).items()
            }
            self._memory[choice] = _memory(engines, depths)
        return found

    def measure_base(self, request: tuple[int, int]) -> None:
        """Measure what is left of the model when its blocks are thought away."""
        block, vocabulary = self.plan.block, self.plan.vocabulary
        folders = [self.engine(block * depth, vocabulary) for depth in _BASE_DEPTHS]
        times: dict[Phase, Found] = {}
        for _ in range(ATTEMPTS):
            run = self.run(request, folders)
            now = {
                phase: through(_BASE_DEPTHS, clocked, self.scale(request, phase, run))[1]
                for phase, clocked in _phases(run.engines[1:]).items()
            }
            times = _pooled(times, now)
            if all(t.sound for t in times.values()):
                break
        if not all(t.ms > 0 for t in times.values()):
            raise Unmeasurable(f"{self.plan.base}: takes no time beside its blocks; give more --processes")
        self.keep(self.plan.base, request, times)

    def measure_wholes(self, request: tuple[int, int], models: Sequence[tuple[Choice, ...]]) -> None:
        """Measure whole models of several parts."""
        run = self.run(request, [self.engine(m, self.plan.vocabulary) for m in models])
        places = {part.choice: i for i, part in enumerate(self.document.parts)}
        for picks, engine in zip(models, run.engines[1:], strict=True):
            parts = tuple(places[c] for c in (self.plan.base, *picks))
            times = {p: plain(c[0], self.scale(request, p, run)) for p, c in _phases([engine]).items()}
            timings = _timings(request, times)
            known = {w.parts: w for w in self.document.wholes}
            before = known[parts].times if parts in known else ()
            known[parts] = Whole(parts=parts, times=(*before, *timings))
            self._change_(wholes=tuple(known.values()))
        self.save()

    def scale(self, request: tuple[int, int], phase: Phase, run: Measurement, *, anew: bool = False) -> float:
        """Return what the reference takes: what it took when it was first timed, so that all runs share one scale."""
        made = " + ".join(map(str, self.plan.block))
        key = f"{phase} {request[0]} x {request[1]}, {self.wanted.copies[0]} copies of {made}, {self._head} tokens"
        now = _phases(run.engines[:1])[phase][0].ms
        if anew:
            return now
        if key not in self.document.taken.reference:
            reference = {**self.document.taken.reference, key: now}
            self._change_(taken=self.document.taken.model_copy(update={"reference": reference}))
        return self.document.taken.reference[key]

    def keep(self, choice: Choice, request: tuple[int, int], times: Mapping[Phase, Found]) -> None:
        """Add a part's times to the profile and write it."""
        parts = {p.choice: p for p in self.document.parts}
        old = parts.get(choice) or Measured(**choice.model_dump())
        memory = self._memory.get(choice, old.memory_mib)
        parts[choice] = old.model_copy(update={"times": (*old.times, *_timings(request, times)), "memory_mib": memory})
        self._change_(parts=tuple(parts.values()))
        self.save()

    def save(self) -> None:
        """Write the profile, if it has a file."""
        if self.path:
            write(self.document, self.path)

    def forget(self) -> None:
        """Delete the engines built so far; the reference stays."""
        gone = {key: folder for key, folder in self._built.items() if folder != self._reference}
        if self._host:
            self._host.forget(list(gone.values()))
        for key, folder in gone.items():
            shutil.rmtree(folder)
            del self._built[key]

    def _change_(self, **changes: Any) -> None:
        self.document = Document.model_validate({**dict(self.document), **changes})


def _pooled(before: Mapping[Phase, Found], now: Mapping[Phase, Found]) -> dict[Phase, Found]:
    """Return the times of all attempts so far."""
    return {phase: pooled(before[phase], found) if phase in before else found for phase, found in now.items()}


def _phases(engines: Sequence[Figures]) -> dict[Phase, list[Clocked]]:
    """Return what the clock found of engines, by phase; encoders do not decode."""
    found: dict[Phase, list[Clocked]] = {"prefill": [e.prefill for e in engines]}
    if decode := [e.decode for e in engines if e.decode]:
        found["decode"] = decode
    return found


def _memory(engines: Sequence[Figures], depths: Sequence[int]) -> float | None:
    """Return the MiB that one more copy takes, where the system tells."""
    first, last = engines[0].memory_mib, engines[-1].memory_mib
    return None if first is None or last is None else (last - first) / (depths[-1] - depths[0])


def _timings(request: tuple[int, int], times: Mapping[Phase, Found]) -> tuple[Timing, ...]:
    return tuple(
        Timing(
            phase=phase, batch=request[0], length=request[1], ms=t.ms, spread=t.half / t.ms, runs=t.runs,
            flags=(*t.flags, *([] if t.sound else [f"wide: give or take {t.half / t.ms:.0%}"])),
        )
        for phase, t in times.items()
    )  # fmt: skip


def new_document(wanted: Wanted, plan: Plan, host: Host | None = None) -> Document:
    """Return a profile of this machine, or of the one that is reached there, that holds nothing yet."""
    machine = here(wanted.target, host)
    taken = Taken(
        date=datetime.date.today().isoformat(), clock_mhz=None if host else clock_mhz(), copies=wanted.copies,
        processes=wanted.processes, seconds=wanted.seconds, cached=cached(plan.parameters, machine),
    )  # fmt: skip
    return Document(machine=machine, taken=taken)
