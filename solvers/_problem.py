"""The block choice as data: options of every slot, what they cost, and what the choice must keep."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from solvers import _check
from solvers._costs import COSTS, SUMS
from solvers._faults import BadProblem

Picks = Mapping[str, str]  # slot -> option, by name


@dataclass(frozen=True, kw_only=True)
class Option:
    """One block that a slot may hold.

    Attributes:
        name: unique within its slot.
        score: damage to the model where this block alone replaces the parent's; finite, lower is better.
        costs: of `COSTS`, each finite and >= 0; all options of a problem have the same ones (0 where there is none).
        block: what the caller realises; nothing here looks at it.
    """

    name: str
    score: float
    costs: Mapping[str, float]
    block: Any = None


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place that takes exactly one option: a layer, or a sub-block of one.

    Attributes:
        name: unique within the problem.
        options: at least one.
        layer: the layer it belongs to; empty = a layer of its own.  Differences are counted in layers.
        parent: name of the option that is the parent's own block; needed by `Problem.min_changed` alone.
    """

    name: str
    options: tuple[Option, ...]
    layer: str = ""
    parent: str | None = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An upper limit on one cost of the whole model, its base included.

    Attributes:
        cost: of `COSTS`, or `memory_mib`, which is weights_mib + kv_mib.
        limit: finite, >= 0, in the unit of the cost.
        name: what messages and `Solution.slack` call it; empty = the cost's name.  Unique within the problem.
    """

    cost: str
    limit: float
    name: str = ""

    @property
    def title(self) -> str:
        """Return the name, or the cost's."""
        return self.name or self.cost

    @property
    def terms(self) -> tuple[str, ...]:
        """Return the costs whose sum is limited."""
        return SUMS.get(self.cost, (self.cost,))

    @classmethod
    def throughput(cls, tokens_per_second: float, *, generated: int, batch: int) -> Budget:
        """Return the limit on request_ms that keeps a throughput.

        A batch of requests makes `batch * generated` tokens in request_ms, base included, so
        `batch * generated / (request_ms / 1000) >= tokens_per_second` is `request_ms <= 1000 batch generated / t`,
        which is linear in the choice (Puzzle, arXiv 2411.19146, section 4).  The costs must be those of this batch.
        """
        if not (tokens_per_second > 0 and generated > 0 and batch > 0):
            raise BadProblem(
                [
                    "throughput: tokens a second, generated tokens and batch must be > 0, "
                    f"got {tokens_per_second}, {generated}, {batch}"
                ]
            )
        return cls(cost="request_ms", limit=1000 * batch * generated / tokens_per_second, name="throughput")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Minimise the sum of scores, one option per slot, within all budgets.

    Attributes:
        slots: in the model's order.
        base: costs of what is not chosen (embedding, head, sampling, intercept): every cost that options have; finite.
        budgets: one per title.
        forced: slot -> the option it takes.
        forbidden: slot -> options it does not take.
        tied: groups of slots that take the option of the same name; their scores and costs add up, so what they
            share (weights stored once) is to be counted in one of them.
        min_changed: at least so many layers have another option than the parent in some slot.
        unlike: earlier solutions' picks; of the layers, at most the share `alpha` may equal each of them in all slots.
        alpha: that share.

    Raises:
        BadProblem: all faults at once, a line each.
    """

    slots: tuple[Slot, ...]
    base: Mapping[str, float]
    budgets: tuple[Budget, ...] = ()
    forced: Mapping[str, str] = field(default_factory=dict)
    forbidden: Mapping[str, Collection[str]] = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()
    min_changed: int = 0
    unlike: tuple[Picks, ...] = ()
    alpha: float = 0.8

    def __post_init__(self) -> None:
        if found := _check.faults(self):
            raise BadProblem(found)

    @property
    def costs(self) -> tuple[str, ...]:
        """Return the costs that all options have, in the order of `COSTS`."""
        return tuple(c for c in COSTS if c in self.base)

    def layers(self) -> dict[str, tuple[Slot, ...]]:
        """Return the slots by layer, in order."""
        found: dict[str, tuple[Slot, ...]] = {}
        for slot in self.slots:
            layer = slot.layer or slot.name
            found[layer] = (*found.get(layer, ()), slot)
        return found

    def references(self) -> tuple[tuple[Picks, int], ...]:
        """Return the picks that the choice must differ from, each with how many layers may be equal to it."""
        count = len(self.layers())
        most = int(self.alpha * count + 1e-9)  # 0.8 of 10 layers is 8, though 0.8 is less in binary
        unlike = tuple((picks, most) for picks in self.unlike)
        if not self.min_changed:
            return unlike
        return ({s.name: s.parent for s in self.slots if s.parent is not None}, count - self.min_changed), *unlike

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Return every slot in exactly one group: the tied ones together, all others alone; in the slots' order."""
        group = {name: names for names in self.tied for name in names}
        return tuple(dict.fromkeys(group.get(s.name, (s.name,)) for s in self.slots))

    def allowed(self) -> dict[str, tuple[str, ...]]:
        """Return, per slot, the options that forced, forbidden and tied slots leave, in the slot's order."""
        left = {s.name: {o.name for o in s.options} - set(self.forbidden.get(s.name, ())) for s in self.slots}
        for name, option in self.forced.items():
            left[name] &= {option}
        for group in self.tied:
            common = set.intersection(*(left[name] for name in group))
            left |= dict.fromkeys(group, common)
        return {s.name: tuple(o.name for o in s.options if o.name in left[s.name]) for s in self.slots}
