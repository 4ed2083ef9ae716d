"""What a part costs in the solver's terms, whoever knows the times: a measured profile, or a datasheet's arithmetic.

A part costs `prefill_ms` of the prompt, `decode_ms` of one token a sequence after it, `request_ms` = prefill +
generated * decode (as the clock of `compress compare` counts a request), `weights_mib` and `bytes` of its tensors,
`kv_mib` of the keys and values of the whole request, and `parameters`.  Encoders have neither decode nor keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from compress.contracts import Target
from compress.errors import UserFault
from compress.facts import BlockConfig
from compress.families import family_of
from profiles import _precision
from profiles._fit import Line
from profiles._geometry import parts_of
from profiles._parts import Attention, Base, Choice

Phase = Literal["prefill", "decode"]


class NotMeasured(UserFault):
    """A shape, precision, batch or length that a profile does not hold."""


@dataclass(frozen=True)
class Time:
    """What one part takes in one phase: ms, and the half width of its 95 % interval in ms."""

    ms: float
    spread: float


@dataclass(frozen=True)
class Prediction:
    """A figure of a whole model.

    Attributes:
        ms: the figure.
        low: where its 95 % interval begins.
        high: where it ends.
        fitted: whether the interval comes from whole models, and not from the spread of parts alone.
        estimated: whether nothing of it was measured.
    """

    ms: float
    low: float
    high: float
    fitted: bool
    estimated: bool

    def __str__(self) -> str:
        how = " (estimated)" if self.estimated else "" if self.fitted else " (no whole model measured)"
        return f"{self.ms:.3g} ms, {self.low:.3g} to {self.high:.3g}{how}"


class Costs(ABC):
    """Times of parts, and what follows from them.

    Attributes:
        name: the file, or the table.
        estimated: whether times are arithmetic and not measurements; to be printed wherever they are.
    """

    name: str
    estimated: bool

    @abstractmethod
    def time(self, choice: Choice, phase: Phase, batch: int, length: int) -> Time:
        """Return what a part takes.

        Args:
            choice: its shape, precision and pattern.
            phase: `prefill` reads a prompt of `length` tokens, `decode` one token after so many.
            batch: sequences at once.
            length: tokens.

        Raises:
            NotMeasured: that is not known.
        """

    def line(self, phase: Phase, batch: int, length: int) -> Line:
        """Return the line from summed parts to whole models."""
        return Line()

    def costs(self, choice: Choice, target: Target) -> dict[str, float]:
        """Return a part's costs for the request of a target; of the base, those of all that is not chosen.

        Times are corrected by what whole models were measured to take, so that sums over parts and base predict them.
        """
        return self._costs(choice, target, {p: self.line(p, target.batch, target.prompt) for p in _phases(choice)})

    def _costs(self, choice: Choice, target: Target, lines: dict[Phase, Line]) -> dict[str, float]:
        part, floats = choice.part, _precision.BYTES[target.precision]
        size = choice.bytes_with(floats)
        mib, found = size / 2**20, dict[str, float]()
        for phase, line in lines.items():
            time = self.time(choice, phase, target.batch, target.prompt).ms
            found[f"{phase}_ms"] = (line.at if isinstance(part, Base) else line.of)(time, mib)
        found["request_ms"] = found["prefill_ms"] + target.generate * found.get("decode_ms", 0.0)
        found["weights_mib"] = mib
        if "decode_ms" in found:
            tokens = target.batch * (target.prompt + target.generate)
            found["kv_mib"] = keys_of(choice) * tokens * floats / 2**20
        return {**found, "parameters": float(part.parameters), "bytes": float(size)}

    def predict(self, picks: Iterable[Choice], base: Choice, target: Target) -> dict[str, Prediction]:
        """Return what a whole model will take: `prefill_ms`, `decode_ms` of decoders, and `request_ms`.

        Args:
            picks: its parts, in any order.
            base: what stands outside its blocks.
            target: the request.
        """
        every = [base, *picks]
        mib = mib_of(every, target.precision)
        found: dict[str, Prediction] = {}
        total = margin = 0.0
        fitted = True
        for phase in _phases(base):
            times = [self.time(c, phase, target.batch, target.prompt) for c in every]
            line = self.line(phase, target.batch, target.prompt)
            summed = sum(t.ms for t in times)
            # What is measured errs either way; arithmetic errs the same way throughout.
            alike = 1.0 if self.estimated else 2.0
            spread = sum(t.spread**alike for t in times) ** (1 / alike)
            ms, half = line.at(summed, mib), line.margin(summed, spread, mib)
            found[f"{phase}_ms"] = self._prediction(ms, half, line.residual is not None)
            share = 1 if phase == "prefill" else target.generate
            total, margin, fitted = total + share * ms, margin + share * half, fitted and line.residual is not None
        found["request_ms"] = self._prediction(total, margin, fitted)
        return found

    def _prediction(self, ms: float, margin: float, fitted: bool) -> Prediction:
        return Prediction(ms, max(ms - margin, 0.0), ms + margin, fitted, self.estimated)


def mib_of(choices: Iterable[Choice], precision: str) -> float:
    """Return the MiB of the weights of parts, in an engine of some floats."""
    return sum(choice.bytes_with(_precision.BYTES[precision]) for choice in choices) / 2**20


def keys_of(choice: Choice) -> int:
    """Return how many elements of keys and values a part keeps of each token."""
    return 2 * choice.part.kv_heads * choice.part.head_dim if isinstance(choice.part, Attention) else 0


def layout_choices(
    layout: Sequence[BlockConfig], family: str, hidden: int, precision: str = "fp32", pattern: str = "dense"
) -> list[Choice]:
    """Return the parts of a whole model whose linears are all alike; parts that are absent have none."""
    return [
        Choice(part=part, precision=precision, pattern=pattern)
        for block in layout
        for part in parts_of(block, family, hidden)
    ]


def _phases(choice: Choice) -> tuple[Phase, ...]:
    return ("prefill", "decode") if family_of(choice.part.family).decoder else ("prefill",)
