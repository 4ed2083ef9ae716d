"""A problem as arrays: tied slots merged, costs shifted and scaled so that solvers' tolerances mean little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solvers._costs import EXACT, TOLERANCE
from solvers._problem import Budget, Picks, Problem

Reals = NDArray[np.float64]
Choice = NDArray[np.intp]  # [groups], the option of each
EPSILON = 1e-12  # of scaled costs and scores, whose largest single entries are 1: nothing to forgive but rounding

Literal = tuple[int, int]  # (group, option)


@dataclass(frozen=True)
class Alike:
    """At most `most` layers equal a reference; a layer equals it where all of its literals hold."""

    layers: tuple[tuple[Literal, ...], ...]
    most: int


@dataclass(frozen=True)
class Table:
    """Groups of tied slots [G], their options [J] (padded), budgets [B].

    Attributes:
        score: [G, J], least of each group 0, largest 1; inf where there is no option (any more).
        costs: [B, G, J], least of each group 0, largest of each budget 1 (0 where all are equal).
        room: [B], what is left of each limit above the cheapest options, in the same units.
        floor, unit: a real score is `floor + unit * scaled`.
        cost_units: [B], a real cost is that many times a scaled one.
        groups: the slots of each group.
        names: the options of each group.
        titles: of the budgets.
        alike: what must differ.
    """

    score: Reals
    costs: Reals
    room: Reals
    floor: float
    unit: float
    cost_units: Reals
    groups: tuple[tuple[str, ...], ...]
    names: tuple[tuple[str, ...], ...]
    titles: tuple[str, ...]
    alike: tuple[Alike, ...]

    def picks(self, choice: Choice) -> Picks:
        """Return the choice by names."""
        return {
            slot: names[j] for slots, names, j in zip(self.groups, self.names, choice, strict=True) for slot in slots
        }

    def choice(self, picks: Picks) -> Choice | None:
        """Return the choice with these names, or None where an option of it is not among those allowed."""
        found = [picks.get(slots[0], "") for slots in self.groups]
        if any(name not in names for name, names in zip(found, self.names, strict=True)):
            return None
        return np.array([names.index(name) for name, names in zip(found, self.names, strict=True)])

    def only(self, kept: NDArray[np.bool_]) -> Table:
        """Return the table without the options that are not kept; indices stay."""
        return replace(self, score=np.where(kept, self.score, np.inf))

    def scored(self, choice: Choice) -> float:
        """Return the scaled score of a choice."""
        return float(self.score[np.arange(len(choice)), choice].sum())

    def used(self, choice: Choice) -> Reals:
        """Return what a choice uses of each room, [B]."""
        used: Reals = self.costs[:, np.arange(len(choice)), choice].sum(axis=1)
        return used

    def fits(self, choice: Choice) -> bool:
        """Return whether a choice keeps all budgets and differs where it must."""
        return bool((self.used(choice) <= self.room + EPSILON).all()) and all(
            equal_layers(alike, choice) <= alike.most for alike in self.alike
        )

    def linear(self) -> Table:
        """Return the table with what must differ as rows beside the budgets, as far as rows can say it.

        A layer of k slots equals a reference where all k literals hold, so at least `sum of literals - (k - 1)`; that
        summed over layers is at most `most`.  For layers of one slot this is all; for others a choice may keep the row
        and not the constraint, never the other way.
        """
        costs, room = [self.costs], [self.room]
        for alike in self.alike:
            row = np.zeros((1, *self.score.shape))
            for literals in alike.layers:
                for g, j in literals:
                    row[0, g, j] += 1.0
            free = alike.most + sum(len(literals) - 1 for literals in alike.layers)
            costs.append(row / row.max())
            room.append(np.array([free / row.max()]))
        return replace(self, costs=np.concatenate(costs), room=np.concatenate(room), alike=())


def equal_layers(alike: Alike, choice: Choice) -> int:
    """Return how many layers of a choice equal the reference."""
    return sum(all(choice[g] == j for g, j in literals) for literals in alike.layers)


def tabulate(problem: Problem) -> Table:
    """Return a problem's table."""
    groups, allowed = problem.ties(), problem.allowed()
    names = tuple(allowed[slots[0]] for slots in groups)
    score = _summed(problem, groups, names, ["score"])
    least = score.min(axis=1, keepdims=True)
    shifted = score - least
    unit = float(shifted[np.isfinite(shifted)].max()) or 1.0
    costs, room, units = _budgets(problem, groups, names)
    return Table(
        score=shifted / unit, costs=costs, room=room, floor=math.fsum(least[:, 0]), unit=unit, cost_units=units,
        groups=groups, names=names, titles=tuple(b.title for b in problem.budgets),
        alike=_alike(problem, groups, names),
    )  # fmt: skip


def _budgets(
    problem: Problem, groups: Sequence[Sequence[str]], names: Sequence[Sequence[str]]
) -> tuple[Reals, Reals, Reals]:
    """Return costs [B, G, J], rooms [B] and units [B]."""
    count, width = len(groups), max(map(len, names))
    costs, room, units = np.zeros((len(problem.budgets), count, width)), [], []
    for b, budget in enumerate(problem.budgets):
        raw = _summed(problem, groups, names, budget.terms)
        least = raw.min(axis=1, keepdims=True)
        shifted = np.where(np.isfinite(raw), raw - least, 0.0)
        unit = float(shifted.max()) or 1.0
        costs[b] = shifted / unit
        room.append(_between(shifted, _room(problem, budget, least)) / unit)
        units.append(unit)
    return costs, np.array(room), np.array(units)


def _room(problem: Problem, budget: Budget, least: Reals) -> float:
    forgiven = 0.0 if budget.cost in EXACT else TOLERANCE / 2 * budget.limit  # of all that `keeps` forgives, half
    return math.fsum([budget.limit, forgiven, *(-problem.base[c] for c in budget.terms), *(-least[:, 0])])


def _between(costs: Reals, room: float) -> float:
    """Return a room that says the same of costs that are whole numbers, halfway between two sums that they can have.

    No tolerance of a program's then lets the next sum through.
    """
    if not (costs == np.floor(costs)).all() or costs.max() > 2**53:
        return room
    step = float(np.gcd.reduce(costs.astype(np.int64), axis=None)) or 1.0
    return step * (math.floor(room / step) + 0.5)


def _summed(
    problem: Problem, groups: Sequence[Sequence[str]], names: Sequence[Sequence[str]], terms: Sequence[str]
) -> Reals:
    """Return a sum of costs (or `score`) per group and option, [G, J]; inf where there is no option."""
    slots = {s.name: {o.name: o for o in s.options} for s in problem.slots}
    found = np.full((len(groups), max(map(len, names))), np.inf)
    for g, (members, options) in enumerate(zip(groups, names, strict=True)):
        for j, name in enumerate(options):
            every = [slots[member][name] for member in members]
            found[g, j] = math.fsum(o.score if c == "score" else o.costs[c] for c in terms for o in every)
    return found


def _alike(problem: Problem, groups: Sequence[Sequence[str]], names: Sequence[Sequence[str]]) -> tuple[Alike, ...]:
    """Return what must differ; layers that can equal a reference no more are left out."""
    home = {slot: g for g, slots in enumerate(groups) for slot in slots}
    found = []
    for picks, most in problem.references():
        layers = []
        for slots in problem.layers().values():
            wanted = {(home[s.name], picks[s.name]) for s in slots}
            apart = len({g for g, _ in wanted}) < len(wanted)  # tied slots that the reference has unlike
            if not apart and all(name in names[g] for g, name in wanted):
                layers.append(tuple(sorted((g, names[g].index(name)) for g, name in wanted)))
        if len(layers) > most:
            found.append(Alike(tuple(layers), most))
    return tuple(found)
