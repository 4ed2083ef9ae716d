"""Estimates for hardware that is not here: arithmetic from datasheets, always marked as estimated.

A part takes the longer of two times: its operations at the peak of their precision, and the bytes it must move at the
memory's bandwidth (the roofline model).  Operations are two per weight and token, and in attention four per query,
key and head dimension, of all pairs, since graphs compute the masked ones too.  Bytes are the weights once, the
activations, and of attention the keys and values that the past holds and that are added.  Real kernels reach neither
roof; the shares assumed below are printed with every table, and measured points replace them.

    profiles/tables/*.toml   what datasheets say, and where each figure was found
    calibrated(profile)      the shares of the roofs that a measured profile of any shapes reached
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from compress.contracts import Target
from compress.errors import BadSettings
from compress.families import family_of
from compress.registry import nearest
from profiles import _precision
from profiles._costs import Costs, Phase, Time
from profiles._file import Profile
from profiles._machine import ForeignProfile
from profiles._parts import Attention, Base, Choice

TABLES = Path(__file__).with_name("tables")
SHARE: Mapping[Phase, float] = {
    "prefill": 0.5,
    "decode": 0.7,
}  # of the roof that a phase is assumed to reach, until measured points tell
CERTAIN = 2.0  # an estimate is taken to be right within this factor, until measured points tell


@dataclass(frozen=True)
class Source:
    """Where figures were found.

    Attributes:
        title: of the document.
        url: of it.
        gives: figures: keys of `peak_tflops`, or names of attributes of `Sheet`; of derived ones, what they come from.
        note: how it prints them, where that is not how they stand here.
        through: public page or code that quotes the document, where that alone was read.
    """

    title: str
    url: str
    gives: tuple[str, ...]
    note: str = ""
    through: str = ""

    def lines(self) -> list[str]:
        """Return what it gives, and where to look."""
        told = f"{self.title}: {', '.join(self.gives)}{'; ' if self.note else ''}{self.note}"
        quoted = [f"as quoted in {self.through}"] if self.through else []
        return [told, *(f"  {line}" for line in (self.url, *quoted))]


@dataclass(frozen=True)
class Sheet:
    """What datasheets say of hardware.

    Attributes:
        name: of the table.
        title: of the hardware.
        device: cpu or cuda.
        bandwidth_gb_s: of the memory.
        peak_tflops: dense, by the type that is multiplied: fp32 always, fp16 and int8 where the sheet has them.
        cores: of a processor; its peak is that of all of them.
        memory_gib: where the sheet tells.
        sparse: the pattern of zeros that doubles the peak, if there is one.
        sources: of the figures.
        derived: by figure, how it was reckoned, where no document prints it.
        unsourced: by figure, what of it was found nowhere.
    """

    name: str
    title: str
    device: str
    bandwidth_gb_s: float
    peak_tflops: Mapping[str, float]
    cores: int | None = None
    memory_gib: float | None = None
    sparse: str | None = None
    sources: tuple[Source, ...] = ()
    derived: Mapping[str, str] = field(default_factory=dict)
    unsourced: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return where every figure comes from."""
        return [
            "where these figures come from",
            *(f"  {line}" for source in self.sources for line in source.lines()),
            *(f"  {name} is reckoned: {how}" for name, how in self.derived.items()),
            *(f"  {name} has no source for {what}" for name, what in self.unsourced.items()),
        ]


@dataclass(frozen=True)
class Roofline(Costs):
    """Times by arithmetic.

    Attributes:
        sheet: the hardware.
        threads: of a processor; a thread has the peak of one core, and all bandwidth.
        floats: type of the graph.
        shares: of the roofs, by phase.
        margin: half of the factor's logarithm within which it is taken to be right.
    """

    sheet: Sheet
    threads: int = 1
    floats: str = "fp32"
    shares: Mapping[Phase, float] | None = None
    factor: float = CERTAIN
    estimated = True

    @property
    def name(self) -> str:  # type: ignore[override]
        """The table."""
        return self.sheet.name

    def time(self, choice: Choice, phase: Phase, batch: int, length: int) -> Time:
        """Return the longer of operations and bytes, at the share of the roof that is reached."""
        new, past = (length, 0) if phase == "prefill" else (1, length)
        work = operations(choice, batch, new, past) / (self._peak(choice) * 1e12)
        moved = traffic(choice, batch, new, past, _precision.BYTES[self.floats]) / (self.sheet.bandwidth_gb_s * 1e9)
        ms = 1e3 * max(work, moved) / (self.shares or SHARE)[phase]
        return Time(ms, (self.factor - 1) * ms)

    def calibrated(self, profile: Profile) -> Roofline:
        """Return the estimates with the shares that measured points reached, of whatever shapes there are."""
        bare = replace(self, shares={"prefill": 1.0, "decode": 1.0})
        reached: dict[Phase, list[float]] = {"prefill": [], "decode": []}
        for part in profile.document.parts:
            for t in part.times:
                reached[t.phase].append(bare.time(part.choice, t.phase, t.batch, t.length).ms / t.ms)
        shares = {p: median(r) if r else SHARE[p] for p, r in reached.items()}
        off = [max(r / shares[p], shares[p] / r) for p, every in reached.items() for r in every]
        return replace(self, shares=shares, factor=median(off) if off else CERTAIN)

    def _peak(self, choice: Choice) -> float:
        """Return the peak of what is multiplied: of codes alone, the floats that they become; else 8 bits."""
        precision, peaks = _precision.parse(choice.precision), self.sheet.peak_tflops
        dynamic = precision.grid is not None and precision.grid.activation == "dynamic"
        floats = precision.grid is not None or isinstance(choice.part, Base)
        wanted = "int8" if dynamic else self.floats if floats else choice.precision
        # Sheets that know fp16 multiply bf16 as fast.
        peak = peaks.get("fp16" if wanted == "bf16" else wanted, peaks["fp32"])
        if self.sheet.cores:
            peak *= min(self.threads, self.sheet.cores) / self.sheet.cores
        return 2 * peak if choice.pattern == self.sheet.sparse else peak

    def lines(self) -> list[str]:
        """Return what it stands on."""
        shares = ", ".join(f"{v:.0%} of the roof in {p}" for p, v in (self.shares or SHARE).items())
        peaks = ", ".join(f"{name} {value:g}" for name, value in self.sheet.peak_tflops.items())
        return [
            f"{self.name}: {self.sheet.title}, estimated by arithmetic, not measured",
            f"  {self.sheet.bandwidth_gb_s:g} GB/s; peak TFLOP/s {peaks}; {shares}"
            f"{'' if self.shares else ', assumed'}; right within a factor of {self.factor:.2g}",
            f"  sources: {'; '.join(source.title for source in self.sheet.sources)}",
        ]


def operations(choice: Choice, batch: int, new: int, past: int) -> float:
    """Return multiplications and additions: two per weight and token, four per query, key and head dimension."""
    part, tokens = choice.part, batch * new
    count = 2.0 * sum(rows * inputs for rows, inputs in part.linears) * tokens
    if isinstance(part, Attention):
        count += 4.0 * tokens * (past + new) * part.heads * part.head_dim
    return count


def traffic(choice: Choice, batch: int, new: int, past: int, floats: int) -> float:
    """Return the bytes that must be moved: weights once, what the linears read and write, keys and values."""
    part, tokens = choice.part, batch * new
    weights = float(choice.bytes_with(floats))
    if isinstance(part, Base):  # of the embedding, the rows that are looked up
        head = part.vocabulary * part.hidden if family_of(part.family).head else 0
        weights = floats * (head + tokens * part.hidden)
    elif choice.pattern != "dense" and ":" in choice.pattern:
        few, many = map(int, choice.pattern.split(":"))
        weights *= few / many  # kernels of such patterns leave the zeros out; their places are some percent more
    moved = weights + floats * tokens * sum(rows + inputs for rows, inputs in part.linears)
    if isinstance(part, Attention):
        moved += floats * 2 * batch * (past + new) * part.kv_heads * part.head_dim
    return moved


def names() -> list[str]:
    """Return the names of all tables."""
    return sorted(p.stem for p in TABLES.glob("*.toml"))


def sheet(name: str) -> Sheet:
    """Return a table.

    Raises:
        BadSettings: there is none of that name.
    """
    if name not in names():
        raise BadSettings(f"unknown hardware {name!r}{nearest(name, names())}", key="profile")
    content: dict[str, Any] = tomllib.loads((TABLES / f"{name}.toml").read_text(encoding="utf-8"))
    sources = tuple(Source(**{**s, "gives": tuple(s["gives"])}) for s in content.pop("sources"))
    return Sheet(name=name, sources=sources, **content)


def estimate(name: str, target: Target) -> Roofline:
    """Return the estimates of a table for a target.

    Raises:
        BadSettings: there is none of that name.
        ForeignProfile: it is of another device than the target's.
    """
    found = sheet(name)
    if found.device != target.device:
        raise ForeignProfile(f"{name}: is of device {found.device!r}, and the target's is {target.device!r}")
    return Roofline(sheet=found, threads=target.threads, floats=target.precision)
