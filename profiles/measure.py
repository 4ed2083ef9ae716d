"""Takes profiles: real engines in context, a part's time being what one more copy of it adds to an engine.

Every shape is exported once, by the exporter of the target's runtime, with random weights; engines of N and 2N copies
are stacked of it and timed in fresh processes, in turns with a reference engine (`compress.bench`), so that a busy
machine bends nothing.  The slope between the depths is the part's time; what is left of the whole model without blocks
is the base; and whole models of random parts, timed at several times, tell what sums of parts miss, and how far the
same machine strays from itself.  A time that is negative, or not sure, is measured again in other processes, and all
that was found counts: what stays doubtful is flagged, and what takes no time at all fails.

The file is written after every run of the clock; taken again, a profile is gone on with where it stopped, and what it
holds is not measured twice.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import hosts
from compress.context import Report
from compress.contracts import Exporter, Target
from compress.errors import BadSettings
from compress.facts import Task
from compress.hosts import Host
from compress.profiling import Build, Profiler, Wanted
from profiles import _file, roofline
from profiles._file import Document, Profile
from profiles._machine import here, trust
from profiles._parts import Choice
from profiles._slopes import Unmeasurable
from profiles._telling import figures, lines

if TYPE_CHECKING:
    from profiles._taking import Session

TAKES = 3  # of whole models, as far apart as the run is long
DRIFT = 0.10  # of a time: what two takes may differ by, beside their own intervals
Request = tuple[int, int]


class Measure(Profiler):
    """Measures on this machine."""

    def engine(
        self, model: str, task: Task, build: Build, target: Target, folder: Path, *, exporter: Exporter | None = None
    ) -> Path:
        """Write an engine of random weights that takes the time of a build, into a new folder, and return it.

        Raises:
            UserFault: the model cannot be opened, the runtime is not here, or it cannot have such blocks or codes.
        """
        from profiles import _whole  # seconds of torch, which looking at a profile need not wait for

        return _whole.engine(model, task, build, target, folder, exporter)

    def take(self, wanted: Wanted, path: Path, report: Report) -> list[str]:
        """Measure what the file at `path` does not hold yet, write it part by part, and return lines about it.

        Raises:
            ForeignProfile: the file was taken on something else, and must not be mixed with this machine.
            UserFault: the model cannot be opened, a wish cannot be, or the runtime is not here.
            Unmeasurable: a part took no time.
        """
        from profiles import _planning, _taking  # seconds of torch, which looking at a profile need not wait for

        plan = _planning.plan(wanted)
        with _reached(wanted) as host:
            self._take(wanted, plan, _taking.new_document(wanted, plan, host), path, host, report)
        return self.lines(path)

    def _take(
        self, wanted: Wanted, plan: Any, document: Document, path: Path, host: Host | None, report: Report
    ) -> None:
        from profiles import _planning

        if path.exists():
            old = _file.read(path)
            trust(old.name, old.machine, document.machine, allow_foreign=False)
            _check_cached(old, document)
            copies = tuple(sorted({*old.document.taken.copies, *wanted.copies}))
            taken = old.document.taken.model_copy(update={"copies": copies})
            document = old.document.model_copy(update={"taken": taken})
        models = _planning.wholes(plan, wanted.models, wanted.seed)
        jobs = _jobs(document, plan.requests, (*plan.choices, *plan.block), plan.base, models)
        if jobs:
            _with_session(wanted, plan, document, path, host, lambda session: _work(session, jobs, report))

    def check(self, wanted: Wanted, path: Path, report: Report, *, allow_foreign: bool = False) -> list[str]:
        """Measure a random tenth of a profile again and return lines about how far it has drifted."""
        from profiles import _planning

        profile = _file.read(path)
        plan = _planning.plan(wanted)
        held = [c for c in plan.choices if c in profile.choices]
        if not held:
            raise BadSettings(f"{path}: holds no part of {wanted.model}; nothing can be measured again", key="check")
        chosen = random.Random(wanted.seed).sample(held, -(-len(held) // 10))
        found: list[str] = []
        with _reached(wanted) as host, report.bar("measuring again", len(chosen)) as bar:
            if told := trust(profile.name, profile.machine, here(wanted.target, host), allow_foreign=allow_foreign):
                found.append(told)

            def again(session: Session) -> None:
                for choice in chosen:
                    for request in plan.requests:
                        found.extend(_drift(profile, choice, request, session))
                    bar.advance()

            _with_session(wanted, plan, profile.document, None, host, again)
        return found

    def lines(self, path: Path | str) -> list[str]:
        """Return what a profile file, or a table of a datasheet, says, as lines."""
        if str(path) in roofline.names() and not Path(path).is_file():
            sheet = roofline.sheet(str(path))
            return [*roofline.Roofline(sheet=sheet).lines(), *sheet.lines()]
        return lines(_file.read(path))

    def document(self, path: Path | str) -> dict[str, Any]:
        """Return what a profile file, or a table of a datasheet, says, as plain values."""
        if str(path) in roofline.names() and not Path(path).is_file():
            return {"estimated": True, **asdict(roofline.sheet(str(path)))}
        return _file.read(path).document.model_dump(mode="json")

    def figures(self, path: Path | str) -> dict[str, Any]:
        """Return what a page shows of a profile file, or of a datasheet: a `compress.report.Profile`."""
        if str(path) in roofline.names() and not Path(path).is_file():
            return {"name": str(path), "about": self.lines(path), "costs": []}
        return figures(_file.read(path))

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of profile files."""
        return Document.model_json_schema()

    def known(self, path: Path | str) -> bool:
        """Tell whether that is a file, or the name of a table."""
        return Path(path).is_file() or str(path) in roofline.names()


Job = tuple[str, Request, tuple[Any, ...]]


def _jobs(
    document: Document, requests: Sequence[Request], choices: Sequence[Choice], base: Choice, models: Sequence[Any]
) -> list[Job]:
    """Return the runs of the clock that are left to do, of each request first parts, then the base, then wholes.

    Wholes are taken again when all else is done: a machine is never twice the same, and intervals have to say so.
    """
    from profiles._taking import AT_ONCE

    held = {p.choice: {(t.batch, t.length) for t in p.times} for p in document.parts}
    places = {p.choice: i for i, p in enumerate(document.parts)}
    taken = Counter((w.parts, (t.batch, t.length)) for w in document.wholes for t in w.times if t.phase == "prefill")

    def wholes(request: Request, take: int) -> list[Job]:
        keys = {m: tuple(places.get(c, -1) for c in (base, *m)) for m in models}
        left = [m for m, parts in keys.items() if taken[parts, request] <= take]
        return [("wholes", request, chunk) for chunk in _chunks(left, 2 * AT_ONCE)]

    found: list[Job] = []
    for request in requests:
        parts = [c for c in dict.fromkeys(choices) if request not in held.get(c, ())]
        found += [("parts", request, chunk) for chunk in _chunks(parts, AT_ONCE)]
        if request not in held.get(base, ()):
            found.append(("base", request, ()))
        found += wholes(request, 0)
    for take in range(1, TAKES):
        for request in requests:
            found += wholes(request, take)
    return found


def _work(session: Session, jobs: Sequence[Job], report: Report) -> None:
    failed: list[str] = []
    with report.bar("profiling", len(jobs)) as bar:
        for kind, request, what in jobs:
            bar.show(f"{kind}, batch {request[0]}, {request[1]} tokens")
            match kind:
                case "parts":
                    failed += session.measure_parts(request, what)
                case "base":
                    session.measure_base(request)
                case _:
                    session.measure_wholes(request, [m for m in what if session.holds(request, m)])
            session.forget()
            bar.advance()
    if failed:
        raise Unmeasurable("\n".join(failed))


def _check_cached(old: Profile, wanted: Document) -> None:
    """Raise BadSettings for a profile of models that fit into the cache where one does not, or the reverse."""
    if old.document.taken.cached != wanted.taken.cached:
        held, new = ("do" if d.taken.cached else "do not" for d in (old.document, wanted))
        raise BadSettings(
            f"{old.name}: holds times for models that {held} fit into the cache, and this is one of those that {new}; "
            "name another file",
            key="output",
        )


def _drift(profile: Profile, choice: Choice, request: Request, session: Session) -> list[str]:
    found = []
    for phase, now in session.slopes(request, [choice], anew=True)[choice].items():
        was = profile.time(choice, phase, *request)
        share = now.ms / was.ms - 1
        allowed = DRIFT + (now.half + was.spread) / was.ms
        verdict = "DRIFTED" if abs(share) > allowed else "holds"
        told = f"{was.ms:.3g} ms then, {now.ms:.3g} now ({share:+.0%}, allowed {allowed:.0%})"
        found.append(f"{verdict}: {choice}, {phase}, batch {request[0]}, {request[1]} tokens: {told}")
    return found


def _reached(wanted: Wanted) -> AbstractContextManager[Host | None]:
    """Return what yields the machine on which engines are timed; None for this one."""
    return hosts.reached(wanted.host, wanted.python) if wanted.host else nullcontext()


def _with_session(
    wanted: Wanted, plan: Any, document: Document, path: Path | None, host: Host | None, work: Callable[[Session], None]
) -> None:
    from profiles._taking import Session

    with tempfile.TemporaryDirectory() as scratch:
        work(Session(wanted, plan, document, path, Path(scratch), host))


def _chunks(items: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(itertools.islice(items, start, start + size)) for start in range(0, len(items), size)]
