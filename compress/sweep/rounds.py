"""What the closed loop finds out: plans, the figures of every round, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compress.budgets import TIMES, amount
from compress.measure import Measurement
from compress.profiling import Build

Costs = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A plan that keeps limits as far as its costs are told.

    Attributes:
        build: what is to be timed.
        predicted: costs of the whole model, the offsets given included: all times and what is limited, by cost.
        score: its damage; lower is better.
    """

    build: Build
    predicted: Costs
    score: float


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One limited cost of one round, in its own unit.

    Attributes:
        limit: shares are taken of the dense engine as timed in the first round.
        predicted: before the plan was timed.
        measured: on the clock: the ratio to the dense engine beside it, times that engine's time in the first round;
            the predicted value again where arithmetic is exact (sizes and counts).
        low: where the 95 % interval begins.
        high: where it ends.
        offset: what the next prediction adds to the sum of the parts.
        resolved: whether the interval is within 1 % on either side.
    """

    limit: float
    predicted: float
    measured: float
    low: float
    high: float
    offset: float = 0.0
    resolved: bool = True

    @property
    def excess(self) -> float:
        """How far over the limit, relative: the interval's upper end, or its middle where the machine is too noisy."""
        return (self.high if self.resolved else self.measured) / self.limit - 1

    def told(self, cost: str) -> str:
        """Return the figure in words."""
        limit, predicted = amount(cost, self.limit), amount(cost, self.predicted)
        if cost not in TIMES:
            return f"{predicted}, limit {limit}"
        over = f"{abs(self.excess):.1%} {'over' if self.excess > 0 else 'under'} the limit of {limit}"
        doubt = "" if self.resolved else "; not resolvable on this machine"
        between = f"{amount(cost, self.measured)} measured ({self.low:.4g} to {self.high:.4g})"
        return f"{predicted} predicted, {between}, {over}{doubt}; sums corrected by {self.offset:+.3g} ms"


@dataclass(frozen=True, kw_only=True)
class Round:
    """One plan, timed: its figures by cost."""

    proposal: Proposal
    figures: Mapping[str, Figure]
    measurement: Measurement | None
    met: bool

    @property
    def excess(self) -> float:
        """How far over its budget the worst cost is, relative."""
        return max((f.excess for f in self.figures.values()), default=0.0)

    @property
    def resolved(self) -> bool:
        """Whether every limited cost is known within 1 %."""
        return all(f.resolved for f in self.figures.values())


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What the clock said of plans, whatever they were chosen by; a later loop under the same limits begins with it.

    Attributes:
        dense: costs of the dense model, times as they were in the first round.
        timings: ms and sums of the plans' parts, by cost.
        offsets: what sums near the limits miss, in ms.
    """

    dense: Costs
    timings: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    offsets: Costs = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Closed:
    """How the loop ended.

    Attributes:
        rounds: every plan that was timed, in order.
        best: of the plans that met the budget the one with the lowest score; none met: the nearest.
        learnt: of the clock.
    """

    rounds: tuple[Round, ...]
    best: Round
    learnt: Learnt

    @property
    def proposal(self) -> Proposal:
        """The plan to realise."""
        return self.best.proposal

    @property
    def met(self) -> bool:
        """Whether it met the budget."""
        return self.best.met
