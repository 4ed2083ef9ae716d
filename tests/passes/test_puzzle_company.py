"""Shapes judged among what was chosen: as brute force does it, and never to the choice's harm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.artifact import Artifact
from compress.context import Context, QuietReport
from passes import _library
from passes._library import Library
from passes._pruned import facts_of
from passes._sensitivity import Score
from passes.puzzle import company, pieces, scoring, states
from passes.puzzle.company import Picks
from passes.puzzle.pieces import Piece
from passes.puzzle.scoring import Scores
from tests.passes.test_puzzle import Contexts, Tiny, context_of, library, living, puzzle, source

__all__ = ["context_of", "library", "living", "source"]  # fixtures


class Bench:
    """A small model with all that its options are judged with."""

    def __init__(self, living: Tiny, kind: str, context: Context, library: Library | None = None, **given: Any) -> None:
        self.living, self.kind, self.context = living, kind, context
        self.artifact = living(kind).after(library=library.folder if library else None)
        self.settings = puzzle(**given).settings
        facts = facts_of(self.artifact)
        self.options, _ = pieces.pieces(facts, self.settings, self.artifact.model.config.model_type, "fp32")
        parent = _library.digest(self.artifact)
        self.kept = scoring.kept_in(self.artifact, parent, self.settings, context)
        self.states = states.states_of(self.artifact, parent, self.options, self.settings, self.kept)
        self.scores = scoring.scores(self.artifact, self.states, self.options, self.settings, self.kept)

    def picks(self, **names: str) -> Picks:
        """Return variants by slots, the parent's own where nothing is said: `attention_0="none"`."""
        wanted = {f"block {k.split('_')[1]} {k.split('_')[0]}": v for k, v in names.items()}
        return company.picks_of(
            [next(p for p in o if p.variant.name == wanted.get(slot, "parent")) for slot, o in self.options.items()]
        )

    def judged(self, picks: Picks) -> tuple[float, dict[str, Score]]:
        return company.judged(self.artifact, self.states, self.options, self.settings, self.kept, picks)

    def distance(self, picks: Picks) -> float:
        """Return KL(parent || realised) over all windows, by whole forwards."""
        return self.between(_library.realise_(self.living(self.kind), picks, self.states))

    def between(self, built: Artifact) -> float:
        """Return KL(parent || built) over all windows."""
        p, q = (self._told(each) for each in (self.artifact, built))
        return float((p.exp() * (p - q)).sum(-1).mean())

    def _told(self, artifact: Artifact) -> Tensor:
        examples = self.context.data["calibration"].examples(artifact.tokenizer)
        rows = torch.as_tensor(examples.batch(list(range(len(examples))))["input_ids"])
        artifact.model.train(False)
        with torch.no_grad():
            found: Tensor = artifact.model(input_ids=rows).logits.double().log_softmax(-1)
        return found


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_among_the_parents_own_a_shape_costs_what_it_costs_alone(kind: str, living: Tiny, context_of: Contexts) -> None:
    bench = Bench(living, kind, context_of(), windows=6)
    whole, found = bench.judged(bench.picks())
    assert whole == pytest.approx(0, abs=1e-9)
    assert found.keys() == bench.scores.shapes.keys()
    for key, score in found.items():
        assert score.mean == pytest.approx(bench.scores.shapes[key].mean, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_judged_among_others_is_what_brute_force_says(kind: str, living: Tiny, context_of: Contexts) -> None:
    bench = Bench(living, kind, context_of(), windows=6)
    chosen = {"attention_0": "none", "ffn_1": "50%"}
    whole, found = bench.judged(bench.picks(**chosen))
    assert whole == pytest.approx(bench.distance(bench.picks(**chosen)), rel=1e-4)
    for part, block, name in (
        ("ffn", 0, "50%"),
        ("attention", 1, "none"),
        ("attention", 0, "none"),
        ("ffn", 1, "none"),
    ):
        slot = f"{part}_{block}"
        here = bench.distance(bench.picks(**{**chosen, slot: name}))
        own = bench.distance(bench.picks(**{**chosen, slot: "parent"}))
        variant = bench.picks(**{slot: name})[block, part]
        assert found[variant.key].mean == pytest.approx(here - own, rel=1e-3, abs=1e-7)


def test_parts_that_were_trained_together_are_judged_together(
    living: Tiny, library: Library, context_of: Contexts
) -> None:
    bench = Bench(living, "llama", context_of(), library, windows=6)
    picks = bench.picks(attention_0="none", ffn_0="50%")
    before = bench.distance(picks)
    state = library.state(picks[0, "ffn"])
    assert state is not None
    library.add(picks[0, "ffn"], {n: t * 4 for n, t in state.items()}, {}, beside=picks[0, "attention"])
    whole, found = bench.judged(picks)
    assert whole == pytest.approx(bench.distance(picks), rel=1e-4)
    assert whole != pytest.approx(before, rel=1e-3)
    alone = bench.distance(bench.picks(attention_0="none"))
    assert found[picks[0, "ffn"].key].mean == pytest.approx(whole - alone, rel=1e-3)


def test_what_was_judged_is_not_judged_again(
    living: Tiny, context_of: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(living, "llama", context_of())
    first = bench.judged(bench.picks(ffn_0="none"))
    monkeypatch.setattr(_library, "assembled", None)
    assert bench.judged(bench.picks(ffn_0="none")) == first


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_rescoring_never_ends_farther_from_the_parent(kind: str, living: Tiny, context_of: Contexts) -> None:
    found, distance = {}, {}
    bench = Bench(living, kind, context_of(), windows=6)
    for rescore in (0, 3):
        context = context_of()
        plugin, before = puzzle(budget={"parameters": "0.8x"}, rescore=rescore, windows=6), living(kind)
        after = plugin.run(living(kind), context)
        plugin.ensures(before, after)
        assert after.model.num_parameters() <= 0.8 * before.model.num_parameters()
        assert isinstance(context.report, QuietReport)
        found[rescore], distance[rescore] = context.report.measured, bench.between(after)
    assert distance[3] <= distance[0] * (1 + 1e-4)
    whole = found[3]["whole"][-1]
    assert 1 <= len(whole) <= 4
    if min(whole) == whole[0]:
        assert found[3]["choice"] == found[0]["choice"]
    else:
        assert found[3]["choice"] != found[0]["choice"]
    assert "whole" not in found[0]


def _scores(value: float) -> Scores:
    return Scores(shapes={"a": Score((value,), (1.0,))}, precisions={}, patterns={})


def test_the_best_of_all_choices_is_taken_and_circles_end(living: Tiny, context_of: Contexts) -> None:
    """Three choices, the second the nearest, then the first again: its scores are those that led to the second."""
    bench, asked = Bench(living, "llama", context_of()), list[float]()
    rows: dict[str, Sequence[Piece]] = {}
    for name in ("parent", "50%", "none"):
        rows[name] = [next(p for p in o if p.variant.name in (name, "none")) for o in bench.options.values()]
    whole = {"parent": 3.0, "50%": 1.0, "none": 2.0}
    order = iter(("50%", "none", "parent"))

    def judge(picks: Picks) -> tuple[float, dict[str, Score]]:
        name = next(n for n, row in rows.items() if company.picks_of(row) == picks)
        return whole[name], dict(_scores(4.0).shapes)

    def again(scores: Scores) -> Sequence[Piece]:
        asked.append(scores.shapes["a"].mean)
        return rows[next(order)]

    report = QuietReport()
    found = company.settled(rows["parent"], _scores(0.0), judge, again, 9, report)
    assert asked == [2.0, 3.0, 3.5], "each round by the middle of what was and of what was found"
    assert found.shapes["a"].mean == 2.0
    assert report.measured["whole"] == [[3.0, 1.0, 2.0]]
    assert company.settled(rows["none"], _scores(5.0), judge, again, 0, report).shapes["a"].mean == 5
