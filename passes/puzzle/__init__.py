"""Puzzle: the best block for every place within a budget, out of a library of blocks, chosen exactly and realised.

Formula: with x[i, j] = 1 where part i (a block's attention, or its FFN) takes option j,

    minimise sum score[i, j] x[i, j]   such that   base + sum cost[i, j] x[i, j] <= limit   for every cost of the budget

where score[i, j] is the distance KL(parent || parent with that part alone replaced), and costs are times from a latency
profile of the target, sizes and counts by arithmetic.  Options are shapes (the library's variants), on top of them
codes and zeros of the linears: their scores come from the passes that make them, times the share of the weights that
stay, and are added.  What is to become codes or zeros is written to the artifact's plan; `bits = "plan"` and
`pattern = "plan"` make it.  A budget of times is met on the clock: what the dense engine takes beyond the sum of its
parts is spread over its weights, the choice is built with random weights and timed beside it, and what sums still miss
corrects the next choice.

Paper: Bercovich et al. 2024, Puzzle (arXiv 2411.19146), sections 3 and 4.

Scores of one change each say too little where much is changed (attention of neighbouring blocks above all).  So what
was chosen is judged as a whole, every shape is scored anew among what was chosen, and the program is solved again by
the middle of both, up to `rescore` times; the scores of the choice that is nearest to the parent have the last word.

Options: `rescore = 0` chooses as the paper does, by scores of one change each.  `refine = true` trains the picked
options and their neighbours together in their blocks, and chooses anew.

Cost: half a forward of the windows for every option, and again for every choice that is judged; a second budget on the
same model, library and data reads the first scores from the cache.  A budget of times also takes what profile entries
are missing, and one or more engines on the clock.
Keeps: embeddings, head, and every part where the parent's own is chosen, bit for bit; masks (parts are chosen among
those made under them); ties.
Helps: where latency is to fall by a share that is known, since every part gives what it can spare; train the whole
afterwards.
Hurts: with `rescore = 0` where much has to go: on the demo model at 0.4 of the decode time such a choice lost 0.68 nats
after healing, judged anew among what was chosen 0.24.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import profiles
from compress import budgets
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate, Pass, Target
from compress.errors import BadSettings
from compress.facts import Facts
from compress.families import families
from compress.registry import nearest
from passes import _library, _sensitivity
from passes._library import Library
from passes._pruned import facts_of
from passes.puzzle import checking, company, offered, offers, pieces, refining, scoring, solving, states, telling
from passes.puzzle.costs import prices
from passes.puzzle.offers import Offers
from passes.puzzle.pieces import Piece
from passes.puzzle.scoring import Scores
from passes.puzzle.settings import PuzzleSettings
from passes.puzzle.solving import Chosen, Program
from passes.puzzle.states import Begun


class Puzzle(Pass):
    """Choose a variant, codes and zeros for every part of every block."""

    Settings = PuzzleSettings
    uses = frozenset[DataUse]({"calibration", "training"})
    streams = True
    library = True
    settings: PuzzleSettings

    def data_uses(self) -> frozenset[DataUse]:
        """Return the roles that are read: the second round learns from training data."""
        return self.uses if self.settings.refine else frozenset({"calibration"})

    def targets(self, given: Mapping[str, Target]) -> Mapping[str, Target]:
        """Return the target that the budget is about.

        Raises:
            BadSettings: there is none of that name, or none at all where the budget needs one, or its graph has other
                floats than the precisions name.
        """
        name = self.settings.target
        if name and name not in given:
            raise BadSettings(f"no [[target]] has this name, got {name!r}{nearest(name, given)}", key="target")
        if not given:
            self._check_unaimed()
            return {}
        target = given[name] if name else next(iter(given.values()))
        self._check_floats(target)
        return {target.name: target}

    def files(self) -> Mapping[str, Path]:
        """Return the profile file, unless times are measured here or come from a datasheet.

        Raises:
            BadSettings: it is not there.
        """
        profile = self.settings.profile
        if not profile or (profile in profiles.names() and not Path(profile).is_file()):
            return {}
        if not Path(profile).is_file():
            what = f"no such file, got {profile!r}; `compress profile PIPELINE.toml -o {profile}` writes one"
            raise BadSettings(f"{what}, or a datasheet{nearest(profile, profiles.names())}", key="profile")
        return {"profile": Path(profile)}

    def plan(self, facts: Facts) -> Facts:
        """Return upper bounds: the parent's blocks, and every code and zero that may be chosen.

        Raises:
            BadSettings: a variant, precision or pattern does not fit; a budget that such a model has no cost for.
        """
        given = self.settings
        if facts.grids:
            raise BadSettings(
                f"{min(facts.grids)} has codes already, and blocks are chosen in floats", key="precisions"
            )
        offered.check(given, facts)
        _sensitivity.check(given.score, facts.task)
        self._check_scores()
        self._check_budget(facts)
        self._variants(facts)
        solving.solver_of(given.solver)
        return facts.after(plan=offered.bounds(facts, given), library=False, open=True)

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost: half a forward of the windows for each option, by a core of 3e10 products a second."""
        given = self.settings
        shapes, others = self._variants(facts), 2 * facts.blocks * (len(given.precisions) + len(given.patterns))
        options = shapes * (1 + given.rescore) + others
        weights = sum(out * inputs for out, inputs in facts.shapes.values())
        head = facts.head[1][0] * facts.head[1][1] if facts.head else 0
        tokens, width = given.windows * (facts.positions or 512), min(inputs for _, inputs in facts.shapes.values())
        model, held = 4 * facts.parameters, 4 * tokens * width * -(-(shapes + others) // facts.blocks)
        return Estimate(
            peak_mib=(2 * model + held) / 2**20,
            disk_mib=2 * model / 2**20,
            seconds=2 * tokens * options * (weights / 2 + head) / 3e10 + model / 1e9,
        )

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Score the options, or read their scores; choose; put what was chosen into the model."""
        given, facts = states.opened(self.settings, artifact), context.facts or facts_of(artifact)
        target = next(iter(context.targets.values()), Target())
        limits, parent = budgets.parse(given.budget), _library.digest(artifact)
        kept = scoring.kept_in(artifact, parent, given, context)
        options, notes = pieces.pieces(facts, given, artifact.model.config.model_type, target.precision)
        for note in notes:
            context.report.note(note)
        priced = prices(given, limits, options, artifact, facts, target, context)
        made: Library | Begun = states.states_of(artifact, parent, options, given, kept)
        scores = scoring.scores(artifact, made, options, given, kept)
        telling.tell_scores(scores, context)

        def program(found: Offers) -> Program:
            return Program(facts=facts, offers=found, prices=priced, solver=solving.solver_of(given.solver))

        def choice(found: Offers, before: Chosen | None = None, *, last: bool) -> Chosen:
            rounds = given.rounds if last else 1  # what other scores will choose by need not be met
            return solving.choose(program(found), limits, given, artifact.task, target, context, rounds, before)

        found = offers.alone(options, scores)
        chosen = choice(found, last=not (given.rescore or given.refine))
        if given.rescore:
            judge = functools.partial(company.judged, artifact, made, options, given, kept)

            def again(found: Scores, first: Chosen = chosen) -> Sequence[Piece]:
                return solving.again(program(offers.alone(options, found)), first)

            scores = company.settled(chosen.pieces, scores, judge, again, given.rescore, context.report)
            found = offers.alone(options, scores)
            chosen = choice(found, chosen, last=not given.refine)
        if given.refine:
            near = refining.shrunk(options, chosen.pieces)
            made, found = refining.refined(artifact, near, scores, given, kept, parent)
            chosen = choice(found, chosen, last=True)
        telling.tell(chosen, priced, limits, target, context)
        return _library.realise_(artifact, company.picks_of(chosen.pieces), made).after(
            plan=chosen.build.plan, library=None
        )

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check shapes, the library's tensors in their places, all else as it was, masks, and the plan."""
        checking.check(before, after, states.opened(self.settings, before))

    def _variants(self, facts: Facts) -> int:
        """Return how many variants there are; defaults are not judged where the library will tell its own."""
        try:
            return len(pieces.space_of(facts, self.settings))
        except BadSettings:
            if facts.library and not {"attention", "ffn"} <= self.settings.model_fields_set:
                return 0
            raise

    def _check_unaimed(self) -> None:
        """Raise where the budget is about a request, which only a target tells."""
        for limit in budgets.parse(self.settings.budget):
            if limit.timed or limit.cost in ("kv_mib", "memory_mib"):
                raise BadSettings(f"is about a request, got {limit}; add the [[target]] that tells it", key="budget")

    def _check_floats(self, target: Target) -> None:
        floats = offered.floats_of(self.settings)
        if floats not in (None, target.precision):
            what = f"the graph of target {target.name!r} is {target.precision}, got {floats!r}"
            raise BadSettings(f"{what}; {target.precision!r} would do", key="precisions")

    def _check_scores(self) -> None:
        """Raise unless scores of shapes, codes and zeros are in one unit, and others can judge the latter."""
        given = self.settings
        codes = [p for p in given.precisions if pieces.grid_of(p)]
        zeros = [p for p in given.patterns if p != pieces.DENSE]
        if (codes or zeros) and given.score in ("hidden", "task"):
            what = f"what {(codes or zeros)[0]} costs is told in nats, which do not add to {given.score!r}"
            raise BadSettings(f"{what}; 'kl' would do", key="score")
        if codes:
            scoring.judging(given.quantizer, {"bits": 8}, given)
        if zeros:
            scoring.judging(given.pruner, {"pattern": zeros[0]}, given)

    def _check_budget(self, facts: Facts) -> None:
        """Raise unless such a model has the costs that are limited."""
        for limit in budgets.parse(self.settings.budget):
            if limit.cost in ("decode_ms", "kv_mib") and not families()[facts.family].decoder:
                what = f"an encoder has no {limit.title}, got {limit}"
                raise BadSettings(f"{what}; prefill, request or weights_mib would do", key="budget")
