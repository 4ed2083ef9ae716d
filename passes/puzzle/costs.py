"""What options cost: times from a profile that has them all or is taken on the spot, sizes by arithmetic."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import profiles
from compress import files, loading, tree
from compress.artifact import Artifact
from compress.budgets import TIMES, Limit
from compress.context import Context
from compress.contracts import Target
from compress.errors import BadSettings
from compress.facts import BlockConfig, Facts
from compress.families import families
from compress.profiling import Wanted, profiler
from passes.puzzle.pieces import DENSE, Piece, Pieces, bare
from passes.puzzle.settings import PuzzleSettings
from profiles import Base, Choice, Costs, NotMeasured, Time, _precision
from profiles._costs import Phase
from solvers import SUMS

_READ = ("decode_ms", "request_ms")  # times of which reading weights is the most
_SHOWN = 3  # of what a profile lacks
_WHOLES, _PROCESSES = 6, 4  # models that tell what sums of parts miss: few, for what is chosen is timed anyway


class Sizes(Costs):
    """No times: of budgets about sizes alone."""

    name, estimated = "arithmetic", False

    def time(self, choice: Choice, phase: Phase, batch: int, length: int) -> Time:
        """Return nothing."""
        return Time(0.0, 0.0)


class Prices:
    """Costs of options, of what is not chosen, and of the dense model.

    Args:
        costs: who knows the times of parts.
        dense: facts of the dense model, of which budgets take shares.
        facts: of the model whose parts are chosen.
        model_type: the architecture.
        target: the request.
        kept: elements that stay where a part is absent: those of a norm over the residual.
        timed: whether times are told at all.

    Raises:
        NotMeasured: a part of the dense model, or what is outside the blocks, is not known.
    """

    def __init__(
        self, costs: Costs, dense: Facts, facts: Facts, model_type: str, target: Target, *, kept: int, timed: bool
    ) -> None:
        self.costs, self.target, self.timed = costs, target, timed
        self.per_mib: dict[str, float] = {}  # ms by cost, beside what the parts take
        self._outside = profiles.base_of(facts, model_type)
        self._parts = [profiles.base_of(dense, model_type), *dense_choices(dense, model_type, target)]
        bytes_ = kept * _precision.BYTES[target.precision]
        sizes = {"parameters": kept, "bytes": bytes_, "weights_mib": bytes_ / 2**20}
        self.absent = {cost: float(sizes.get(cost, 0.0)) for cost in self.base}

    @property
    def base(self) -> dict[str, float]:
        """What is outside the blocks costs."""
        return self._told(self._outside)

    @property
    def dense(self) -> dict[str, float]:
        """What the parts of the dense model cost together."""
        every = [self._told(each) for each in self._parts]
        return {cost: sum(each[cost] for each in every) for cost in every[0]}

    def spread(self, measured: Mapping[str, float]) -> None:
        """Spread what the dense model takes beyond the sum of its parts over its weights.

        Few parts stay in a cache that a whole model does not fit into, and at decoding weights are read at the speed of
        memory: so codes save more in a whole model than a profile of parts tells.  What is missed otherwise is left to
        the loop on the clock.

        Args:
            measured: ms of the dense model, by cost.
        """
        self.per_mib = {}
        told = self.dense
        beyond = {cost: measured[cost] - told[cost] for cost in _READ if cost in measured and cost in told}
        self.per_mib = {cost: ms / told["weights_mib"] for cost, ms in beyond.items() if ms > 0}

    def whole(self, cost: str) -> float:
        """Return what the dense model costs, of a cost or of a sum of some."""
        dense = self.dense
        return sum(dense[each] for each in SUMS.get(cost, (cost,)) if each in dense)

    def of(self, piece: Piece) -> dict[str, float]:
        """Return what an option costs; next to nothing where the part is absent."""
        return self._told(piece.choice) if piece.choice else self.absent

    def _told(self, choice: Choice) -> dict[str, float]:
        found = {"kv_mib": 0.0, **self.costs.costs(choice, self.target)}  # encoders keep none
        found |= {cost: found[cost] + ms * found["weights_mib"] for cost, ms in self.per_mib.items()}
        return {cost: value for cost, value in found.items() if self.timed or cost not in TIMES}


def prices(
    settings: PuzzleSettings,
    limits: Sequence[Limit],
    pieces: Pieces,
    artifact: Artifact,
    facts: Facts,
    target: Target,
    context: Context,
) -> Prices:
    """Return what options cost for a target.

    Args:
        settings: which profile.
        limits: of the budget; where none is a time, no profile is needed.
        pieces: the options.
        artifact: whose parts they are.
        facts: of the same.
        target: the request.
        context: where the dense model is, what was measured before, and the report.

    Raises:
        BadSettings: the profile lacks parts.
        UserFault: it cannot be read, is of another machine, or parts cannot be measured here.
    """
    model_type: str = artifact.model.config.model_type
    dense = loading.facts_of(context.model, artifact.task) if context.model else facts
    timed = any(limit.timed for limit in limits)
    costs: Costs = Sizes()
    if timed:
        every = [piece for options in pieces.values() for piece in options]
        parts = [*(c for p in every if (c := p.choice)), *dense_choices(dense, model_type, target)]
        parts += [profiles.base_of(f, model_type) for f in (facts, dense)]
        layout = tuple(dict.fromkeys((*dense.layout, *(bare(p.variant.config, p.variant.part) for p in every))))
        costs = _opened(settings, tuple(dict.fromkeys(parts)), layout, artifact, dense, target, context)
    kept = 0 if tree.norm_first(artifact.model) else _norm(facts)
    return Prices(costs, dense, facts, model_type, target, kept=kept, timed=timed)


def _norm(facts: Facts) -> int:
    """Return the elements of the norm of one part, weight and bias."""
    stack = f".{families()[facts.family].blocks}."
    inside = {n.rpartition(".")[0]: size for n, size in facts.norms.items() if stack in f".{n}"}
    return sum(size + facts.biases.get(f"{n}.bias", 0) for n, size in inside.items()) // (2 * facts.blocks)


def dense_choices(facts: Facts, model_type: str, target: Target) -> list[Choice]:
    """Return the parts of the dense model."""
    return profiles.layout_choices(facts.layout, model_type, profiles.hidden_of(facts), target.precision)


def _opened(
    settings: PuzzleSettings,
    needed: Sequence[Choice],
    layout: tuple[BlockConfig, ...],
    artifact: Artifact,
    dense: Facts,
    target: Target,
    context: Context,
) -> Costs:
    """Return costs that hold all that is needed; `layout` is of blocks with those parts."""
    warnings: list[str] = []
    if settings.profile:
        found = profiles.open(settings.profile, target, warnings=warnings, parameters=dense.parameters)
        if missing := lacking(found, needed, target):
            raise BadSettings(_offer(settings, missing, target), key="profile")
    else:
        path = _kept(dense.parameters, target, context)
        if not path.exists() or lacking(profiles.open(path, target), needed, target):
            profiler().take(_wanted(settings, layout, artifact, target, context), path, context.report)
        found = profiles.open(path, target, warnings=warnings)
    context.report.record("profile", found.name)  # which the report shows
    for line in warnings:
        context.report.note(line)
    return found


def lacking(costs: Costs, needed: Iterable[Choice], target: Target) -> list[Choice]:
    """Return the parts whose times for a target's request are not known."""

    def known(choice: Choice) -> bool:
        try:
            costs.costs(choice, target)
        except NotMeasured:
            return False
        return True

    return [choice for choice in needed if not known(choice)]


def _kept(parameters: int, target: Target, context: Context) -> Path:
    """Return the file of what was measured on this machine, for targets like this one and models about as large."""
    machine = profiles.here(target)
    known = {**machine.model_dump(mode="json"), "cached": profiles.cached(parameters, machine)}
    folder = (context.cache or context.folder) / "profiles"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{target.device}-{files.digest_of(known)[:12]}.json"


def _wanted(
    settings: PuzzleSettings, layout: tuple[BlockConfig, ...], artifact: Artifact, target: Target, context: Context
) -> Wanted:
    if not context.model:
        raise BadSettings(
            "parts are measured in engines of the dense model's kind, which only a pipeline names; name a profile, "
            "such as that of a datasheet",
            key="profile",
        )
    return Wanted(
        model=context.model, task=artifact.task, target=target, layouts=(layout,), seed=context.seed,
        precisions=tuple(dict.fromkeys([target.precision, *settings.precisions])),
        patterns=tuple(dict.fromkeys([DENSE, *settings.patterns])), models=_WHOLES, processes=_PROCESSES,
        seconds=settings.seconds,
    )  # fmt: skip


def _offer(settings: PuzzleSettings, missing: Sequence[Choice], target: Target) -> str:
    """Return what a profile lacks, and the command that measures it."""
    told = "; ".join(map(str, missing[:_SHOWN])) + (f"; {more} more" if (more := len(missing) - _SHOWN) > 0 else "")
    shapes = dict.fromkeys(c.part.text for c in missing if not isinstance(c.part, Base))
    options = [f"--shape {text}" for text in shapes]
    options += [f"--precision {p}" for p in dict.fromkeys([target.precision, *settings.precisions])]
    options += [f"--pattern {p}" for p in settings.patterns if p != DENSE]
    command = f"compress profile PIPELINE.toml --target {target.name} -o {shlex.quote(settings.profile)}"
    return f"holds no {told}, got {settings.profile!r}; `{' '.join([command, *options])}` measures them"
