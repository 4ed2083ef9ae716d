"""The profile file: JSON that people read, read strictly; every fault is one line with its place."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compress import files
from compress.errors import UserFault
from profiles._costs import Costs, NotMeasured, Phase, Time, mib_of
from profiles._fit import Line, between, drifting, fit
from profiles._machine import Machine
from profiles._parts import Base, Choice

FORMAT: Literal[1] = 1
KIND: Literal["latency profile"] = "latency profile"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Z = 1.96


class BadProfile(UserFault):
    """A profile file that cannot be read as one."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Timing(_Record):
    """One measured time."""

    phase: Phase
    batch: int = Field(ge=1)
    length: int = Field(ge=0, description="prompt tokens of prefill, cached ones of decode")
    ms: Positive = Field(description="median; of a part, what one more copy of it adds")
    spread: float = Field(ge=0, allow_inf_nan=False, description="half width of the 95 % interval of ms, as a share")
    runs: int = Field(ge=1, description="timed runs behind it")
    flags: tuple[str, ...] = Field((), description="what makes it doubtful")

    @property
    def key(self) -> tuple[Phase, int, int]:
        """What it is about."""
        return self.phase, self.batch, self.length


class Measured(Choice):
    """A part and its times."""

    memory_mib: float | None = Field(None, allow_inf_nan=False, description="host memory that one more copy takes")
    times: tuple[Timing, ...] = ()

    @property
    def choice(self) -> Choice:
        """What was measured."""
        return Choice(part=self.part, precision=self.precision, pattern=self.pattern)


class Whole(_Record):
    """A whole model, measured to tell what sums of parts miss."""

    parts: tuple[int, ...] = Field(min_length=1, description="places in `parts`, from 0, base included")
    times: tuple[Timing, ...]


class Taken(_Record):
    """How and when."""

    date: str
    load: tuple[float, float] | None = Field(None, description="least and largest load average seen")
    clock_mhz: float | None = Field(None, description="mean clock of the cores, where the system tells")
    clock: str = Field("", description="what the clock counts")
    cache: str = Field("", description="what the cache holds when a run begins")
    cached: bool = Field(True, description="whether the models that it is for fit into the cache")
    copies: tuple[int, ...] = Field((), description="depths between which a part's time is the slope")
    processes: int = Field(1, ge=1, description="fresh processes per measurement")
    seconds: float = Field(1.0, gt=0, description="aimed at, per phase and process")
    reference: dict[str, Positive] = Field({}, description="ms of the reference engine, by phase, request and engine")


class Document(_Record):
    """The whole file."""

    kind: Literal["latency profile"] = KIND
    format: Literal[1] = FORMAT
    machine: Machine
    taken: Taken
    parts: tuple[Measured, ...] = ()
    wholes: tuple[Whole, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Document:
        seen: set[Choice] = set()
        for part in self.parts:
            if part.choice in seen:
                raise ValueError(f"{part.choice}: stands there twice")
            seen.add(part.choice)
            keys = [t.key for t in part.times]
            if len(set(keys)) < len(keys):
                raise ValueError(f"{part.choice}: has two times of one phase, batch and length")
        for number, whole in enumerate(self.wholes, start=1):
            if not all(0 <= i < len(self.parts) for i in whole.parts):
                raise ValueError(f"wholes[{number}]: names a part that is not there; there are {len(self.parts)}")
        return self


class Profile(Costs):
    """Measured times of parts, on one machine.

    Args:
        document: what the file says.
        name: the file's path, for messages.
    """

    estimated = False

    def __init__(self, document: Document, name: str = "profile") -> None:
        self.document, self.name = document, name

    @property
    def machine(self) -> Machine:
        """What it was taken on."""
        return self.document.machine

    @property
    def base(self) -> Choice:
        """What stands outside the blocks of the model that it was taken for.

        Raises:
            NotMeasured: it holds none.
        """
        found = [c for c in self.choices if isinstance(c.part, Base)]
        if not found:
            raise NotMeasured(f"{self.name}: holds no base; take it again with `compress profile`")
        return found[0]

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All that it holds."""
        return tuple(self._times)

    @cached_property
    def _times(self) -> dict[Choice, dict[tuple[Phase, int], dict[int, Timing]]]:
        found: dict[Choice, dict[tuple[Phase, int], dict[int, Timing]]] = {}
        for part in self.document.parts:
            table = found.setdefault(part.choice, defaultdict(dict))
            for t in part.times:
                table[t.phase, t.batch][t.length] = t
        return found

    @cached_property
    def _lines(self) -> dict[tuple[Phase, int], dict[int, Line]]:
        points: dict[tuple[Phase, int, int], list[tuple[float, float, int, float]]] = defaultdict(list)
        for whole in self.document.wholes:
            every, seen = [self.document.parts[i].choice for i in whole.parts], Counter[tuple[Phase, int, int]]()
            mib = mib_of(every, self.machine.precision)
            for t in whole.times:
                known = [self._times[c].get((t.phase, t.batch), {}).get(t.length) for c in every]
                if all(known):
                    points[t.key].append((sum(k.ms for k in known if k), t.ms, seen[t.key], mib))
                seen[t.key] += 1
        found: dict[tuple[Phase, int], dict[int, Line]] = defaultdict(dict)
        for phase in dict.fromkeys(key[0] for key in points):
            lines = {key: self._fitted(phase, some) for key, some in points.items() if key[0] == phase}
            for (_, batch, length), line in drifting(lines).items():
                found[phase, batch][length] = line
        return found

    def _fitted(self, phase: Phase, points: Sequence[tuple[float, float, int, float]]) -> Line:
        """Return the line through sums, times, takes and MiB of whole models."""
        sums, measured, takes, weights = zip(*points, strict=True)
        from_memory = phase == "decode" and not self.document.taken.cached  # a prompt's tokens share what is read
        return fit(sums, measured, takes, weights if from_memory else None)

    def time(self, choice: Choice, phase: Phase, batch: int, length: int) -> Time:
        """Return a part's time; between two measured lengths, the one on the line through them."""
        known = self._times.get(choice)
        if known is None:
            raise NotMeasured(f"{self.name}: holds no {choice}; measure it with `compress profile`")
        table = known.get((phase, batch), {})
        if length in table:
            return Time(table[length].ms, table[length].ms * table[length].spread)
        low, high = _around(sorted(table), length)
        if low is None or high is None:
            lengths = ", ".join(map(str, sorted(table))) or "nothing"
            what = f"{phase} of {length} tokens, batch {batch}"
            raise NotMeasured(f"{self.name}: {choice}: {what} was not measured, only {lengths}; measure it too")
        a, b, share = table[low], table[high], (length - low) / (high - low)
        spread = (1 - share) * a.ms * a.spread + share * b.ms * b.spread
        return Time((1 - share) * a.ms + share * b.ms, spread)

    def line(self, phase: Phase, batch: int, length: int) -> Line:
        """Return the line from summed parts to whole models, between two lengths the one between theirs."""
        table = self._lines.get((phase, batch), {})
        if length in table:
            return table[length]
        low, high = _around(sorted(table), length)
        if low is None or high is None:
            return Line()
        return between(table[low], table[high], (length - low) / (high - low))


def read(path: Path | str) -> Profile:
    """Return what a profile file says.

    Raises:
        BadProfile: every fault, a line each.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadProfile(f"{path}: no such file; `compress profile FILE -o {path}` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadProfile(f"{path}: cannot be read ({error})") from None
    except ValueError as error:
        raise BadProfile(f"{path}: is no JSON ({error})") from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise BadProfile(f"{path}: is no latency profile: its 'kind' is not {KIND!r}")
    if content.get("format") != FORMAT:
        raise BadProfile(f"{path}: has format {content.get('format')}, this version reads {FORMAT}; take it anew")
    try:
        return Profile(Document.model_validate_json(json.dumps(content)), str(path))
    except ValidationError as error:
        raise BadProfile("\n".join(f"{path}: {_told(fault)}" for fault in error.errors())) from None


def write(document: Document, path: Path) -> None:
    """Write a profile whole or not at all."""
    files.write_json(path, document.model_dump(mode="json"))


def _around(lengths: list[int], length: int) -> tuple[int | None, int | None]:
    return max((n for n in lengths if n < length), default=None), min((n for n in lengths if n > length), default=None)


def _told(fault: Any) -> str:
    place = "".join(f"[{p + 1}]" if isinstance(p, int) else f".{p}" for p in fault["loc"]).lstrip(".")
    what = str(fault["msg"]).removeprefix("Value error, ")
    given = "" if isinstance(fault["input"], dict | list) else f", got {fault['input']!r}"
    return f"{place}: {what}{given}" if place else what
