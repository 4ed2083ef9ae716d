"""Bits by sensitivity: each linear's from what its codes alone cost in quality, their mean within a budget.

The score of a linear and its bits is the distance of the model's outputs with that linear alone rounded to nearest
(`passes/_sensitivity` has the formula).  Rounding stands for any way to make codes: what matters is which linears bear
few bits, and it is cheap.  Scores are added up as if linears did not act on each other; the least sum that the budget
allows is found exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from compress import grids, known, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Candidate, Estimate
from compress.errors import BadSettings, BrokenPromise
from compress.facts import Facts, GridFact
from passes import _candidates
from passes._quant.plan import allowed, are_open, choices_of, planned, possible
from passes._quant.rounding import Steps, grid, integers
from passes._quant.settings import QuantSettings
from passes._quant.telling import size
from passes._sensitivity import Change
from solvers import Budget, Option, Problem, Slot
from solvers.mip import Mip

StepsOf = Callable[[Tensor, GridFact], Steps]

_LOGIT = 600  # products that take as long as the share of one logit in a distance


@dataclass(frozen=True)
class Unit:
    """What gets one choice of bits: a linear, or all of a block or a part of one that may get the same.

    Attributes:
        names: the linears.
        bits: the choices, fewest first.
        facts: by linear, then by bits, the grid.
    """

    names: tuple[str, ...]
    bits: tuple[int, ...]
    facts: Mapping[str, Mapping[int, GridFact]]


def resolved(artifact: Artifact, settings: QuantSettings, context: Context, steps_of: StepsOf) -> dict[str, GridFact]:
    """Return the grid of every linear that is to be quantized, its bits chosen where `average_bits` leaves them open.

    The choice is told; scores that were found before a kill are read from the context's folder.

    Args:
        artifact: the model as it is, which stays so.
        settings: how to quantize.
        context: with calibration data where bits are to be chosen.
        steps_of: the steps of a weight's grid.

    Raises:
        BadSettings: as `planned` does.
        BadModel: outputs are NaN or infinite.
    """
    found = planned(known.told(artifact), settings)
    if settings.average_bits is None:
        return found
    sizes = {n: linear.weight.numel() for n, linear in tree.block_linears(artifact.model).items() if n in found}
    units = _units(artifact, {n: f for n, f in found.items() if f.others}, settings)
    fixed = sum(f.bits * sizes[n] for n, f in found.items() if not f.others)
    budget = allowed(settings.average_bits, sum(sizes.values())) - fixed
    scores: dict[str, dict[int, float]] = {key: {} for key in units}
    for each in _judged(artifact, units, settings, context, steps_of):
        if each.choice:
            scores[each.layer][each.choice["bits"]] = each.score
    weights = {key: sum(sizes[n] for n in unit.names) for key, unit in units.items()}
    picks = cheapest(scores, weights, budget) if units else {}
    for key, bits in picks.items():
        found |= {n: units[key].facts[n][bits] for n in units[key].names}
        context.report.record("bits", [key, bits, scores[key][bits]])
    _tell(artifact, found, sizes, sum(scores[key][bits] for key, bits in picks.items()), context)
    return found


def cheapest(scores: Mapping[str, Mapping[int, float]], weights: Mapping[str, int], budget: int) -> dict[str, int]:
    """Return the bits of each unit of least score in sum, such that `sum bits * weights <= budget`: proven, verified.

    Args:
        scores: by unit and bits.
        weights: of each unit, how many.
        budget: in bits, no less than the fewest of all come to.

    Raises:
        BrokenPromise: the solver proved no choice to be the best.
    """
    slots = tuple(
        Slot(
            name=key,
            options=tuple(Option(name=str(b), score=s, costs={"bytes": b * weights[key]}) for b, s in row.items()),
        )
        for key, row in scores.items()
    )
    bits = Budget(cost="bytes", limit=budget, name="bits")  # eighths of a byte, which are whole numbers
    found = Mip().solve(Problem(slots=slots, base={"bytes": 0}, budgets=(bits,)))
    if not found.proven:
        raise BrokenPromise(f"{found.solver}: its choice of bits is not proven the best, with a gap of {found.gap:g}")
    return {key: int(name) for key, name in found.picks.items()}


def candidates(artifact: Artifact, settings: QuantSettings, context: Context, steps_of: StepsOf) -> list[Candidate]:
    """Return every choice of bits of every linear (block, part) that is to be quantized, and each as it is.

    There are the settings' choices, or where `bits` is given instead, it alone.  With integer inputs these are rounded
    too, each sequence's with one step, as runtimes do it.

    Raises:
        BadSettings: as `possible` does, or all bits are planned.
        BadModel: outputs are NaN or infinite.
    """
    if settings.bits == "plan":
        raise BadSettings("leaves nothing to choose, got 'plan'; give bits, or choices", key="bits")
    units = _units(artifact, possible(known.told(artifact), settings, open_=are_open(settings)), settings)
    return _judged(artifact, units, settings, context, steps_of)


def check(after: Artifact, names: Collection[str], mean: float) -> None:
    """Raise `BrokenPromise` unless the bits of the named linears keep their mean within what is allowed."""
    found = grids.facts({n: after.grids[n] for n in names})
    sizes = {n: linear.weight.numel() for n, linear in tree.block_linears(after.model).items() if n in found}
    bits, weights = sum(f.bits * sizes[n] for n, f in found.items()), sum(sizes.values())
    if bits > allowed(mean, weights):
        raise BrokenPromise(f"codes have {bits / weights:.4g} bits in the mean, and were to have {mean:g} at most")


def with_choice(estimate: Estimate, facts: Facts, settings: QuantSettings) -> Estimate:
    """Return what a pass will cost with the choice of bits before it, where it makes one."""
    if settings.average_bits is None:
        return estimate
    open_ = {n: f for n, f in planned(facts, settings).items() if f.others}
    units = {"layer": len(open_), "block": facts.blocks, "part": 2 * facts.blocks}[settings.choose]
    tokens = settings.choose_windows * (facts.positions or 512)
    width = min(i for _, i in facts.shapes.values())
    choices = len(set(settings.choices))
    head = math.prod(facts.head[1]) + _LOGIT / 2 * facts.vocabulary if facts.head else 0
    work = 2 * tokens * units * choices * (sum(map(math.prod, facts.shapes.values())) / 2 + head)
    peak = 4 * (tree.held(facts) + tokens * width * choices * math.ceil(units / facts.blocks))
    return dataclasses.replace(
        estimate, seconds=estimate.seconds + work / 3e10, peak_mib=max(estimate.peak_mib, peak / 2**20)
    )


def _units(artifact: Artifact, found: Mapping[str, GridFact], settings: QuantSettings) -> dict[str, Unit]:
    """Return what gets one choice; a linear whose bits `layers` fixes is always by itself."""
    by_bits = {n: {p.bits: p for p in sorted(f.possible, key=lambda p: p.bits)} for n, f in found.items()}
    usual = [n for n, bits in by_bits.items() if tuple(bits) == choices_of(settings, open_=are_open(settings))]
    together = _candidates.units(artifact.model, usual, settings.choose)
    together |= _candidates.units(artifact.model, found.keys() - set(usual), "layer")
    return {
        key: Unit(tuple(names), tuple(by_bits[names[0]]), {n: by_bits[n] for n in names})
        for key, names in together.items()
    }


def _judged(
    artifact: Artifact, units: Mapping[str, Unit], settings: QuantSettings, context: Context, steps_of: StepsOf
) -> list[Candidate]:
    """Return what each choice of each unit costs, and the unit as it is."""
    shapes = tree.facts(artifact.model, artifact.task).shapes

    def option(key: str, unit: Unit, bits: int) -> _candidates.Option:
        def made(name: str, weight: Tensor) -> Tensor:
            fact = unit.facts[name][bits]
            return grid(weight, steps_of(weight, fact), fact).dequantized()

        reads = integers if settings.activation == "dynamic" else None
        change = Change(key=f"{key} in {bits} bits", names=unit.names, made=made, reads=reads)
        bytes_ = sum(size(shapes[n], unit.facts[n][bits]) for n in unit.names)
        return _candidates.Option(choice={"bits": bits}, change=change, bytes=bytes_)

    options = {key: [option(key, unit, bits) for bits in unit.bits] for key, unit in units.items()}
    return _candidates.judged(artifact, options, settings, settings.choose_windows, context)


def _tell(
    artifact: Artifact, found: Mapping[str, GridFact], sizes: Mapping[str, int], total: float, context: Context
) -> None:
    """Note the table of bits: for each linear of a block a digit in block after block, - where it stays in floats."""
    blocks = list(tree.blocks(artifact.model))
    inner: dict[str, dict[str, int]] = {}
    for name, fact in found.items():
        block = next(b for b in blocks if name.startswith(f"{b}."))
        inner.setdefault(name.removeprefix(f"{block}."), {})[block] = fact.bits
    rows = (f"{n} {''.join(str(bits.get(b, '-')) for b in blocks)}" for n, bits in inner.items())
    mean = sum(f.bits * sizes[n] for n, f in found.items()) / sum(sizes.values())
    context.report.note(f"chose bits with a mean of {mean:.4g}, block after block: {', '.join(rows)}")
    context.report.note(f"what these codes cost in quality, one linear at a time and rounded, adds up to {total:.4g}")
