"""Every fault of a problem, a line each: what is wrong, where, what was found, what would do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import TYPE_CHECKING

from compress.registry import nearest
from solvers._costs import COSTS, SUMS

if TYPE_CHECKING:
    from solvers._problem import Budget, Option, Problem, Slot


def faults(problem: Problem) -> list[str]:
    """Return all faults; those of names first, and those that need sound names only where there are none."""
    found = [
        *_slots(problem), *_measured(problem), *_base(problem), *_budgets(problem), *_choices(problem),
        *_ties(problem), *_references(problem),
    ]  # fmt: skip
    return found or list(_contradictions(problem))


def _slots(problem: Problem) -> Iterator[str]:
    if not problem.slots:
        yield "slots: a problem needs at least one, got none"
    yield from (f"slot {name!r} is there {n} times; give each its own name" for name, n in _twice(problem.slots))
    for slot in problem.slots:
        if not slot.options:
            yield f"slot {slot.name!r} has no options; offer at least the parent's block"
        for name, n in _twice(slot.options):
            yield f"slot {slot.name!r}: option {name!r} is there {n} times; give each its own name"
        names = [o.name for o in slot.options]
        if slot.parent is not None and slot.parent not in names:
            yield f"slot {slot.name!r}: its parent {slot.parent!r} is none of its options{nearest(slot.parent, names)}"


def _measured(problem: Problem) -> Iterator[str]:
    """Scores and costs: numbers, known names, and the same costs in all options."""
    every = {c for s in problem.slots for o in s.options for c in o.costs} & set(COSTS)
    lacking: dict[str, list[str]] = {}
    for slot in problem.slots:
        for option in slot.options:
            where = f"slot {slot.name!r}, option {option.name!r}"
            if not _finite(option.score):
                yield f"{where}: its score is {option.score!r}; score it again, or leave the option out"
            for cost, value in option.costs.items():
                if cost not in COSTS:
                    yield f"{where}: unknown cost {cost!r}{nearest(cost, COSTS)}"
                elif not _finite(value) or value < 0:
                    yield f"{where}: {cost} is {value!r}, not a number >= 0; measure it again, or leave the option out"
            for cost in every.difference(option.costs):
                lacking.setdefault(cost, []).append(where)
    for cost, places in lacking.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        yield f"{places[0]}{more}: no {cost}, which other options have; measure it, or give 0 where there is none"


def _base(problem: Problem) -> Iterator[str]:
    every = {c for s in problem.slots for o in s.options for c in o.costs}
    for cost, value in problem.base.items():
        if cost not in COSTS:
            yield f"base: unknown cost {cost!r}{nearest(cost, COSTS)}"
        elif not _finite(value):
            yield f"base: {cost} is {value!r}, not a finite number"
        elif every and cost not in every:
            yield f"base: {cost} is a cost that no option has; measure it for the options, or leave it out"
    missing = [c for c in COSTS if c in every and c not in problem.base]
    if missing:
        yield f"base: no {', '.join(missing)}, which options have; give what is not chosen, 0 where there is nothing"


def _budgets(problem: Problem) -> Iterator[str]:
    for title, n in Counter(b.title for b in problem.budgets).items():
        if n > 1:
            yield f"budget {title!r} is there {n} times; keep the tightest, or give each a name"
    known = {c for s in problem.slots for o in s.options for c in o.costs}
    for budget in problem.budgets:
        if not _finite(budget.limit) or budget.limit < 0:
            yield f"budget {budget.title!r}: its limit is {budget.limit!r}, not a number >= 0"
        yield from _unmeasured(budget, known)


def _unmeasured(budget: Budget, known: set[str]) -> Iterator[str]:
    if budget.cost not in (*COSTS, *SUMS):
        yield f"budget {budget.title!r}: unknown cost {budget.cost!r}{nearest(budget.cost, (*COSTS, *SUMS))}"
    elif missing := [c for c in budget.terms if c not in known]:
        told = ", ".join(c for c in COSTS if c in known) or "none"
        yield f"budget {budget.title!r}: {', '.join(missing)} was not measured; costs here: {told}"


def _choices(problem: Problem) -> Iterator[str]:
    options = {s.name: [o.name for o in s.options] for s in problem.slots}
    pairs = [("forced", slot, name) for slot, name in problem.forced.items()]
    pairs += [("forbidden", slot, name) for slot, names in problem.forbidden.items() for name in sorted(names)]
    for kind, slot, name in pairs:
        yield from _unknown(f"{kind} {slot!r}", options, slot, name)
    for slot, name in problem.forced.items():
        if name in problem.forbidden.get(slot, ()):
            yield f"slot {slot!r}: option {name!r} is both forced and forbidden"


def _ties(problem: Problem) -> Iterator[str]:
    options = {s.name: {o.name for o in s.options} for s in problem.slots}
    for name, n in Counter(name for group in problem.tied for name in group).items():
        if n > 1:
            yield f"tied: slot {name!r} is named {n} times; put all that are tied to it in one group"
        if name not in options:
            yield f"tied: unknown slot {name!r}{nearest(name, options)}"
    for group in problem.tied:
        known = [options[name] for name in group if name in options] or [set()]
        every = set[str]().union(*known)
        if different := sorted(every - every.intersection(*known)):
            yield f"tied: {_listed(group)} must offer the same options; not all have {_listed(different)}"


def _references(problem: Problem) -> Iterator[str]:
    if not (_finite(problem.alpha) and 0 <= problem.alpha <= 1):
        yield f"alpha: must be in 0 ... 1, got {problem.alpha!r}"
    layers = len(problem.layers())
    if not 0 <= problem.min_changed <= layers:
        yield f"min_changed: must be in 0 ... {layers}, the number of layers, got {problem.min_changed!r}"
    if problem.min_changed and (nameless := [s.name for s in problem.slots if s.parent is None]):
        yield f"min_changed: {_listed(nameless)} must tell which option is the parent's"
    options = {s.name: [o.name for o in s.options] for s in problem.slots}
    for i, picks in enumerate(problem.unlike, 1):
        for slot, name in picks.items():
            yield from _unknown(f"earlier solution {i}", options, slot, name)
        if missing := [name for name in options if name not in picks]:
            yield f"earlier solution {i}: no pick for {_listed(missing)}; it is another problem's"


def _contradictions(problem: Problem) -> Iterator[str]:
    """What cannot hold whatever the budgets: slots without an option left, layers that cannot differ."""
    allowed = problem.allowed()
    empty = dict.fromkeys(group for group in problem.ties() if not allowed[group[0]])
    for group in empty:
        tied = "" if len(group) == 1 else ", which are tied,"
        yield f"{_listed(group)}{tied}: forced and forbidden options leave none; allow one"
    if empty:
        return
    layers = problem.layers()
    for i, (picks, most) in enumerate(problem.references()):
        stuck = sum(all(allowed[s.name] == (picks[s.name],) for s in slots) for slots in layers.values())
        if stuck > most:
            of_parent = problem.min_changed and i == 0
            whom = "the parent" if of_parent else f"earlier solution {i + (not problem.min_changed)}"
            yield (
                f"at most {most} of {len(layers)} layers may equal {whom}, but {stuck} have no other option; "
                f"{'lower min_changed' if of_parent else 'raise alpha'}, or offer more options"
            )


def _unknown(where: str, options: dict[str, list[str]], slot: str, name: str) -> Iterator[str]:
    if slot not in options:
        yield f"{where}: unknown slot {slot!r}{nearest(slot, options)}"
    elif name not in options[slot]:
        yield f"{where}: slot {slot!r} has no option {name!r}{nearest(name, options[slot])}"


def _twice(named: Iterable[Slot | Option]) -> list[tuple[str, int]]:
    return [(name, n) for name, n in Counter(x.name for x in named).items() if n > 1]


def _finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _listed(names: Iterable[str]) -> str:
    first, *rest = map(repr, names)
    return ", ".join([first, *rest[:2], *([f"{len(rest) - 2} more"] if len(rest) > 2 else [])])
