"""Whether a choice left something on the table: every single better option, by what it is predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress import budgets
from compress.artifact import Artifact
from compress.context import Context
from passes import _library
from passes._pruned import facts_of
from passes.puzzle import offers, pieces, scoring, states
from passes.puzzle.costs import prices
from passes.puzzle.settings import PuzzleSettings


def upgrades(
    settings: Mapping[str, Any], artifact: Artifact, told: Mapping[str, Any], context: Context
) -> list[list[Any]]:
    """Return each option of lower score that fits what is left of the budget, all else as it was chosen.

    Args:
        settings: of the choice.
        artifact: the parent, with its library.
        told: what the choice recorded: `choice`, `solution` and `rounds`.
        context: as it was for the choice; scores and the profile are read from its cache.

    Returns:
        Place, option, and what it costs more than the one chosen, by limited cost.
    """
    given, facts, target = PuzzleSettings(**settings), facts_of(artifact), next(iter(context.targets.values()))
    limits = budgets.parse(given.budget)
    options, _ = pieces.pieces(facts, given, artifact.model.config.model_type, target.precision)
    priced = prices(given, limits, options, artifact, facts, target, context)
    priced.spread(told["solution"][-1]["dense"])
    parent = _library.digest(artifact)
    cached = scoring.kept_in(artifact, parent, given, context)
    made = states.states_of(artifact, parent, options, given, cached)
    scored = offers.alone(options, scoring.scores(artifact, made, options, given, cached))
    room, picked, found = left(told), told["choice"][-1], []
    for place, row in scored.items():
        now = next(o for o in row if o.name == picked[place])
        before = priced.of(now.pieces[0])
        for offer in (o for o in row if o.score < now.score):
            more = {c: priced.of(offer.pieces[0])[c] - before[c] for c in room}
            if all(more[c] <= room[c] for c in room):
                found.append([place, offer.name, more])
    return found


def left(told: Mapping[str, Any]) -> dict[str, float]:
    """Return what is left of each limit in its unit, on the clock where it was taken."""
    return {cost: f["limit"] - f["measured"] for cost, f in kept(told)["figures"].items()}


def kept(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the round of the loop on the clock whose plan was kept, of what a choice recorded."""
    score = told["solution"][-1]["score"]
    found: Mapping[str, Any] = next(r for r in reversed(told["rounds"]) if r["score"] == score)
    return found
