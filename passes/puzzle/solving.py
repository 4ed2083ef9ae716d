"""The program: least score within the budget, met on the clock where times are limited and can be taken."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compress import budgets, files, loading, registry
from compress.budgets import TIMES, Limit
from compress.context import Context
from compress.contracts import Exporter, Target
from compress.errors import BadSettings
from compress.facts import Facts, Task
from compress.measure import Measurement
from compress.profiling import Build, profiler
from compress.sweep import clock, loop
from passes.puzzle.costs import Prices
from passes.puzzle.offers import Offer, Offers
from passes.puzzle.pieces import Piece, build_of
from passes.puzzle.settings import PuzzleSettings
from solvers import Budget, Infeasible, Option, Problem, Slot, Solution, Solver


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A choice, and what is known of it.

    Attributes:
        pieces: of every part, in order.
        solution: the solver's.
        build: the model as it will ship, by shapes.
        limits: that it was chosen under, in units.
        closed: how the loop on the clock ended; None where no time was taken.
    """

    pieces: tuple[Piece, ...]
    solution: Solution
    build: Build
    limits: Mapping[str, float]
    closed: loop.Closed | None = None


@dataclass(kw_only=True)
class Program:
    """One choice to make, again and again under other limits.

    Attributes:
        facts: of the model whose parts are chosen.
        offers: the options.
        prices: what they cost.
        solver: who chooses.
        made: every choice so far.
    """

    facts: Facts
    offers: Offers
    prices: Prices
    solver: Solver
    made: list[tuple[loop.Proposal, Chosen]] = field(default_factory=list)

    def propose(self, limits: Mapping[str, float], offsets: Mapping[str, float]) -> loop.Proposal:
        """Return the best choice under limits in units, what sums of parts miss being told in ms.

        Raises:
            Infeasible: no choice keeps them.
        """
        solution = self.solver.solve(self.problem(limits, offsets))
        picks = [next(o for o in self.offers[slot] if o.name == name) for slot, name in solution.picks.items()]
        pieces = tuple(piece for offer in picks for piece in offer.pieces)
        build = build_of(self.facts, pieces)
        proposal = loop.Proposal(build=build, predicted=solution.totals, score=solution.score)
        made = Chosen(pieces=pieces, solution=solution, build=build, limits=dict(limits))
        self.made.append((proposal, made))
        return proposal

    def problem(self, limits: Mapping[str, float], offsets: Mapping[str, float]) -> Problem:
        """Return the program under limits."""
        slots = tuple(
            Slot(
                name=name, layer=f"block {offers[0].pieces[0].variant.block}", options=tuple(map(self._option, offers))
            )
            for name, offers in self.offers.items()
        )
        base = {cost: value + offsets.get(cost, 0.0) for cost, value in self.prices.base.items()}
        wanted = tuple(Budget(cost=cost, limit=limit) for cost, limit in limits.items())
        return Problem(slots=slots, base=base, budgets=wanted)

    def chosen(self, proposal: loop.Proposal) -> Chosen:
        """Return the choice behind a proposal."""
        return next(chosen for made, chosen in self.made if made is proposal)

    def _option(self, offer: Offer) -> Option:
        costs = [self.prices.of(piece) for piece in offer.pieces]
        return Option(name=offer.name, score=offer.score, costs={c: sum(each[c] for each in costs) for c in costs[0]})


def solver_of(name: str) -> Solver:
    """Return a solver by its name.

    Raises:
        BadSettings: there is none of that name.
    """
    try:
        return registry.load("solvers", name, Solver)()
    except BadSettings as error:
        raise BadSettings(str(error), key="solver") from None


def choose(
    program: Program,
    limits: Sequence[Limit],
    settings: PuzzleSettings,
    task: Task,
    target: Target,
    context: Context,
    rounds: int,
    before: Chosen | None = None,
) -> Chosen:
    """Return the choice that keeps the budget: on the clock where a time is limited, else by arithmetic.

    Args:
        program: the options and what they cost.
        limits: of the whole model.
        settings: how long the clock is asked.
        task: of the model.
        target: where it runs.
        context: the folder keeps what was timed.
        rounds: choices to time at most.
        before: a choice by other scores, of which the clock taught something already.

    Raises:
        Infeasible: no choice keeps it; the message says the least that can be reached, and what sets it.
    """
    if not (timed := any(limit.timed for limit in limits)) or (why := _untimed(program, target, context)):
        if timed:
            context.report.note(f"the budget's times are predicted, not measured: {why}")
        return program.chosen(program.propose(budgets.absolute(limits, program.prices.dense), {}))
    times = [limit.cost for limit in limits if limit.timed]
    stand = Stand(task=task, target=target, costs=times, looks=settings.looks, context=context)
    alone = stand.measure(stand.dense).engines[0]
    program.prices.spread({cost: time.ms for cost in TIMES if (time := clock.time_of(alone, cost))})
    closed = loop.close(
        limits, program.propose, stand.measure, context.report,
        dense=program.prices.dense, tolerance=settings.tolerance, rounds=rounds,
        learnt=before.closed.learnt if before and before.closed else None,
    )  # fmt: skip
    found = program.chosen(closed.proposal)
    return dataclasses.replace(found, closed=closed)


def again(program: Program, chosen: Chosen) -> tuple[Piece, ...]:
    """Return what a program picks under the limits of a choice and what the clock taught of them, without the clock."""
    limits: loop.Costs = chosen.limits
    offsets: loop.Costs = {}
    if chosen.closed:
        limits = {cost: figure.limit for cost, figure in chosen.closed.best.figures.items()}
        offsets = chosen.closed.learnt.offsets
    try:
        return program.chosen(program.propose(limits, offsets)).pieces
    except Infeasible:  # within the tolerance alone, where the clock's word had to do
        return chosen.pieces


def _untimed(program: Program, target: Target, context: Context) -> str:
    """Return why nothing can be timed here, empty where it can."""
    if program.prices.costs.estimated:
        return f"{program.prices.costs.name} is a datasheet"
    if not context.model:
        return "only a pipeline names the dense model, of whose kind engines are built"
    for name in registry.names("exporters"):
        found = registry.load("exporters", name, Exporter)
        if target.runtime in found.runtimes:
            return found(found.Settings()).available() or ""
    return f"nothing writes engines for {target.runtime}"


@dataclass(frozen=True, kw_only=True)
class Stand:
    """Where engines of random weights are timed beside the dense one's; what was timed before a kill is kept."""

    task: Task
    target: Target
    costs: Sequence[str]
    looks: Sequence[int]
    context: Context

    @functools.cached_property
    def dense(self) -> Build:
        """The dense model's."""
        return Build(layout=loading.facts_of(self.context.model, self.task).layout)

    def measure(self, build: Build) -> Measurement:
        """Return the times of the dense engine and of a build's, interleaved; of the dense one alone if it is that."""
        folder = self.context.folder / "engines"
        folder.mkdir(exist_ok=True)
        kept = folder / f"{_digest(build)}.json"
        if not kept.exists():
            engines = [self._engine(each, folder) for each in (self.dense, *([build] if build != self.dense else []))]
            found = clock.timed(engines, self.target, self.context.report, self.costs, processes=self.looks)
            files.write_atomic(kept, found.model_dump_json(indent=2))
        return Measurement.model_validate_json(kept.read_text(encoding="utf-8"))

    def _engine(self, build: Build, folder: Path) -> Path:
        made = folder / _digest(build)
        if not made.exists():
            profiler().engine(self.context.model, self.task, build, self.target, made)
        return made


def _digest(build: Build) -> str:
    return files.digest_of(dataclasses.asdict(build))[:16]
