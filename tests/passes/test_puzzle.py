"""Blocks chosen within a budget: scores, the program, what is realised and planned, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import profiles
from compress import registry, tree
from compress.artifact import Artifact
from compress.blocks import slice_
from compress.budgets import TIMES
from compress.context import Context, QuietReport
from compress.contracts import Pass, Target
from compress.data import Source
from compress.data.settings import DataSettings
from compress.errors import BadModel, BadSettings, BrokenPromise
from compress.facts import GridFact, MaskFact, Planned
from compress.measure import Measurement
from compress.profiling import Build, Wanted
from passes import _library
from passes._library import Library, variants
from passes._pruned import facts_of
from passes._sensitivity import Judge
from passes.puzzle import costs, pieces, solving
from profiles import Roofline, _file
from profiles.roofline import estimate
from solvers import Infeasible
from tests.compress.test_sweep_loop import measurement
from tests.conftest import CAUSAL, ENCODERS, lively
from tests.passes.test_sensitivity import Dies

TEXT = "the quick brown fox jumps over the lazy dog; a model is pruned and retrained. "
SMALL: dict[str, Any] = {"multiple": 8, "windows": 4, "ranking": "oneshot", "ffn": ("parent", "50%", "none")}
FEW: dict[str, Any] = {**SMALL, "attention": ("parent", "none")}
SHEET = "raspberry-pi-5"
Tiny = Callable[..., Artifact]
Contexts = Callable[..., Context]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT * 200)
    return Source(DataSettings(source=str(folder / "text.txt"), windows=6, length=16), "calibration", "causal-lm", 0)


@pytest.fixture
def context_of(source: Source, tmp_path: Path) -> Contexts:
    """Return a maker of contexts: each step has its own folder, all share the cache."""
    count = itertools.count()

    def make(**changes: Any) -> Context:
        folder = tmp_path / f"step-{next(count)}"
        folder.mkdir()
        given: dict[str, Any] = {"folder": folder, "data": {"calibration": source}, "cache": tmp_path / "cache"}
        return Context(**{**given, **changes})

    return make


def puzzle(**given: Any) -> Any:
    found = registry.load("passes", "puzzle", Pass)
    return found(found.Settings(**{**FEW, **given}))


@pytest.fixture
def living(tiny: Tiny) -> Tiny:
    """Return a maker of models whose every part matters."""

    def make(kind: str = "llama", **given: Any) -> Artifact:
        artifact = tiny(kind, **given)
        lively(artifact.model)
        return artifact

    return make


def outputs(artifact: Artifact) -> Tensor:
    artifact.model.train(False)
    with torch.no_grad():
        found: Tensor = artifact.model(torch.arange(2, 18).view(2, 8)).logits
    return found


def figures(context: Context) -> dict[str, Any]:
    """Return what the last program came to."""
    assert isinstance(context.report, QuietReport)
    found: dict[str, Any] = context.report.measured["solution"][-1]
    return found


def notes(context: Context) -> str:
    assert isinstance(context.report, QuietReport)
    return "\n".join([*context.report.notes, *context.report.told])


# The choice.


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_loose_budget_keeps_the_parent(kind: str, living: Tiny, context_of: Contexts) -> None:
    plugin, context, before = puzzle(budget={"weights_mib": "1x"}), context_of(), living(kind)
    after = plugin.run(living(kind), context)
    assert torch.equal(outputs(after), outputs(before))
    plugin.ensures(before, after)
    assert figures(context)["score"] == 0
    assert "blocks 0 to 1: attention parent, fp32; ffn parent, fp32" in notes(context)


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_what_is_realised_costs_what_was_told(kind: str, living: Tiny, context_of: Contexts) -> None:
    """Norms over the residual stay where parts are absent, stand-ins take over biases, tied tensors count once."""
    plugin, context, before = puzzle(budget={"parameters": "0.75x"}, **SMALL | {"attention": ()}), context_of(), None
    plugin = puzzle(budget={"parameters": "0.75x"}, attention=("parent", "linear", "none"), ffn=("parent", "linear"))
    before = living(kind)
    after = plugin.run(living(kind), context)
    plugin.ensures(before, after)
    told = figures(context)
    assert after.model.num_parameters() == told["predicted"]["parameters"] <= 0.75 * before.model.num_parameters()
    assert before.model.num_parameters() == told["dense"]["parameters"]
    bytes_ = sum(p.nbytes for p in after.model.parameters())
    assert bytes_ == told["predicted"]["bytes"] == pytest.approx(told["predicted"]["weights_mib"] * 2**20)


def test_tighter_budgets_never_score_better_and_only_solve(
    living: Tiny, context_of: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, real = list[int](), Judge.rows

    def counted(self: Judge, models: Any) -> Any:
        judged.append(len(models))
        return real(self, models)

    monkeypatch.setattr(Judge, "rows", counted)
    scores = []
    for share in ("1x", "0.9x", "0.8x", "0.7x", "0.6x"):
        context = context_of()
        puzzle(budget={"parameters": share}, precisions=("fp32", "int8-g8"), rescore=0).run(living(), context)
        told = figures(context)
        assert told["predicted"]["parameters"] <= told["dense"]["parameters"] * float(share[:-1])
        assert told["gap"] == 0
        scores.append(told["score"])
        assert len(judged) == (2 + 2), "the second budget scores nothing"  # two blocks, shapes and codes
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] == 0


def test_the_choice_is_that_of_brute_force(living: Tiny, context_of: Contexts) -> None:
    for share in ("0.9x", "0.75x", "0.6x"):
        found = []
        for solver in ("mip", "exhaustive"):
            context = context_of()
            puzzle(budget={"weights_mib": share, "kv_mib": "0.6x"}, solver=solver).run(living(), context)
            found.append(figures(context)["score"])
        assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_scores_are_those_of_one_change_each(living: Tiny, context_of: Contexts) -> None:
    context = context_of()
    puzzle(budget={"weights_mib": "0.8x"}).run(living(), context)
    scores = {key: (mean, low, high) for key, mean, low, high in context.report.measured["scores"]}  # type: ignore[attr-defined]
    assert len(scores) == 2 * 3
    assert all(low <= mean <= high and low < high for mean, low, high in scores.values())
    artifact = living()
    given = outputs(artifact).log_softmax(-1)
    none = torch.tensor([], dtype=torch.int64)
    slice_(artifact.model, 1, kv_groups=none)  # no attention at all: the same change by other means
    found = outputs(artifact).log_softmax(-1)
    assert not torch.equal(given, found)
    assert scores["01-attention-none"][0] > 0


def test_codes_and_zeros_are_planned(living: Tiny, context_of: Contexts) -> None:
    plugin = puzzle(
        budget={"weights_mib": "0.8x"}, ffn=("parent",), attention=("parent",),
        precisions=("fp32", "int8-g8", "int8-dynamic"), patterns=("dense", "2:4"),
    )  # fmt: skip
    context, before = context_of(), living()
    facts = plugin.plan(facts_of(before))
    after = plugin.run(living(), context)
    plugin.ensures(before, after)
    assert torch.equal(outputs(after), outputs(before)), "codes are for later passes"
    assert after.plan.keys() == tree.block_linears(after.model).keys()
    for name, planned in after.plan.items():
        bound = facts.plan[name]
        assert planned.grid is None or (bound.grid and planned.grid in bound.grid.possible)
        assert planned.pattern is None, "zeros cost quality and no bytes"
    assert {p.grid.bits for p in after.plan.values() if p.grid} == {8}
    measured = context.report.measured  # type: ignore[attr-defined]
    assert len(measured["codes"]) == 2 * 4
    assert len(measured["zeros"]) == 4
    chosen = measured["choice"][0]
    table = {(slot, name): score for slot, name, score in measured["codes"]}
    wanted = sum(table.get((slot, name.rpartition(", ")[2]), 0.0) for slot, name in chosen.items())
    assert figures(context)["score"] == pytest.approx(wanted)


def test_scores_of_codes_count_for_the_weights_that_stay(living: Tiny, context_of: Contexts) -> None:
    context = context_of()
    plugin = puzzle(
        budget={"weights_mib": "0.61x"}, attention=("parent",), ffn=("50%", "none"), precisions=("int4-g16",)
    )
    after = plugin.run(living(), context)
    measured = context.report.measured  # type: ignore[attr-defined]
    shapes = {key: mean for key, mean, *_ in measured["scores"]}
    codes = {slot: score for slot, _, score in measured["codes"]}
    total = 0.0
    for slot, name in measured["choice"][0].items():
        _, block, part = slot.split()
        variant = name.partition(",")[0]
        share = {"parent": 1.0, "50%": 0.5, "none": 0.0}[variant]
        total += share * codes[slot] + (shapes[f"{int(block):02d}-{part}-{variant}"] if variant != "parent" else 0.0)
    assert figures(context)["score"] == pytest.approx(total)
    assert {p.grid for p in after.plan.values()} == {GridFact(bits=4, group_size=16)}


@pytest.mark.parametrize("score", ["lm", "hidden"])
def test_other_scores(score: str, living: Tiny, context_of: Contexts) -> None:
    context = context_of()
    plugin = puzzle(budget={"weights_mib": "0.9x"}, score=score)
    plugin.ensures(living(), plugin.run(living(), context))
    scores = {key: mean for key, mean, *_ in context.report.measured["scores"]}  # type: ignore[attr-defined]
    below = [key for key, mean in scores.items() if mean < 0]
    assert ("score below 0" in notes(context)) == bool(below)


# Masks, encoders, weights on disk.


def masked(artifact: Artifact) -> Artifact:
    linears = tree.block_linears(artifact.model)
    masks = {n: torch.arange(m.weight.numel()).view_as(m.weight) % 4 < 2 for n, m in linears.items()}
    for name, mask in masks.items():
        linears[name].weight.data[~mask] = 0
    return artifact.after(masks=masks)


def test_masks_hold(living: Tiny, context_of: Contexts) -> None:
    plugin, before = puzzle(budget={"parameters": "0.75x"}, multiple=5), masked(living())
    facts = facts_of(before).after(masks={n: MaskFact("2:4", 0.5) for n in before.masks})
    context = context_of(facts=facts)
    after = plugin.run(masked(living()), context)
    plugin.ensures(before, after)
    assert after.masks.keys() == tree.block_linears(after.model).keys()
    assert any("50%" in name for name in context.report.measured["choice"][0].values())  # type: ignore[attr-defined]
    for name, mask in after.masks.items():
        assert (mask.view(-1, 4).sum(1) == 2).all()
        assert not after.tensor(f"{name}.weight")[~mask].any()
    for given in ({"attention": ("parent", "linear")}, {"attention": ("parent", "kv 50%"), "kv": "pool"}):
        with pytest.raises(BadSettings, match="fill"):
            puzzle(**given).plan(facts)


def test_an_encoder_by_its_classes(living: Tiny, context_of: Contexts, tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "{w} {w}", "label": {i % 2}}}\n' for i, w in enumerate(TEXT.split()))
    (tmp_path / "rows.jsonl").write_text(rows)
    given = DataSettings(source=str(tmp_path / "rows.jsonl"), windows=8, length=16)
    source = Source(given, "calibration", "classification", 0)
    for score in ("task", "lm", "kl"):
        context = context_of(data={"calibration": source})
        plugin = puzzle(budget={"request": "0.8x", "memory_mib": "0.9x"}, profile=SHEET, score=score)
        plugin.plan(facts_of(living("bert")))
        plugin.ensures(living("bert"), plugin.run(living("bert"), context))
        assert "decode_ms" not in figures(context)["predicted"]
        assert "kv_mib" not in notes(context)
    with pytest.raises(BadSettings, match=r"an encoder has no decode, got decode 0\.5x"):
        puzzle(budget={"decode": "0.5x"}).plan(facts_of(living("bert")))
    with pytest.raises(BadSettings, match="counts right classes") as caught:
        puzzle(score="task").plan(facts_of(living()))
    assert caught.value.key == "score"


def test_weights_on_disk_choose_the_same(living: Tiny, context_of: Contexts, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    living().save(tmp_path / "model")
    found = []
    for stored in (False, True):
        plugin, context = puzzle(budget={"weights_mib": "0.7x"}), context_of(cache=tmp_path / str(stored))
        before = Artifact.load(tmp_path / "model", stored=stored)
        after = plugin.run(before, context)
        (tmp_path / f"after-{stored}").mkdir()
        after.save(tmp_path / f"after-{stored}")
        plugin.ensures(*(Artifact.load(tmp_path / n, stored=stored) for n in ("model", f"after-{stored}")))
        found.append(context.report.measured["choice"])  # type: ignore[attr-defined]
    assert found[0] == found[1]
    digests = {_library.digest(Artifact.load(tmp_path / f"after-{s}")) for s in (False, True)}
    assert len(digests) == 1


# The library.


@pytest.fixture
def library(living: Tiny, source: Source, tmp_path: Path) -> Library:
    """Return a library whose blocks are not as they begin."""
    artifact = living()
    found = [v for v in variants(facts_of(artifact), puzzle().settings) if not v.parent]
    made = Library(tmp_path / "library")
    made.seal(_library.digest(artifact), {"calibration": source.digest}, {})
    (tmp_path / "gathering").mkdir()
    context = Context(folder=tmp_path / "gathering", data={"calibration": source})
    worth = _library.statistics(artifact, found, puzzle().settings, context)
    for variant in found:
        state = _library.initial(artifact, variant, worth[variant.block])
        made.add(variant, {n: t * 1.01 for n, t in state.items()}, {})
    return made


def test_what_is_chosen_is_the_librarys(living: Tiny, library: Library, context_of: Contexts) -> None:
    plugin, before = puzzle(budget={"weights_mib": "0.75x"}), living().after(library=library.folder)
    assert plugin.plan(facts_of(before).after(library=True)).library is False
    context = context_of()
    after = plugin.run(living().after(library=library.folder), context)
    assert after.library is None
    assert "no library" not in notes(context)
    plugin.ensures(before, after)
    chosen = context.report.measured["choice"][0]  # type: ignore[attr-defined]
    slot = next(slot for slot, name in chosen.items() if name.startswith("50%"))
    weight = after.model.get_parameter(f"model.layers.{slot.split()[1]}.mlp.down_proj.weight")
    weight.data[0, 0] += 1
    with pytest.raises(BrokenPromise, match=rf"{slot.replace(' ffn', ', ffn')} 50%: mlp.down_proj.weight differs"):
        plugin.ensures(before, after)


def test_a_foreign_library_is_refused(tiny: Tiny, living: Tiny, library: Library, context_of: Contexts) -> None:
    with pytest.raises(BadModel, match="another model"):
        puzzle().run(tiny().after(library=library.folder), context_of())
    with pytest.raises(BadModel, match="has no 00-ffn-25%, 01-ffn-25%; make them too"):
        puzzle(ffn=("parent", "25%")).run(living().after(library=library.folder), context_of())


def test_the_space_is_the_librarys_where_it_is_not_said(
    living: Tiny, source: Source, context_of: Contexts, tmp_path: Path
) -> None:
    space = {"attention": ["parent"], "ffn": ["parent", "25%"], "multiple": 1}
    artifact, made = living(), Library(tmp_path / "library")
    made.seal(_library.digest(artifact), {"calibration": source.digest}, space)
    told = puzzle(**space).settings
    (tmp_path / "gathering").mkdir()
    begun = [v for v in variants(facts_of(artifact), told) if not v.parent]
    worth = _library.statistics(
        artifact, begun, told, Context(folder=tmp_path / "gathering", data={"calibration": source})
    )
    for variant in begun:
        made.add(variant, _library.initial(artifact, variant, worth[variant.block]), {})
    few = {k: v for k, v in FEW.items() if k not in space}
    plugin = type(puzzle())(type(puzzle()).Settings(**few, budget={"weights_mib": "0.8x"}))
    before = living().after(library=made.folder)
    plugin.plan(facts_of(before).after(library=True))
    after = plugin.run(living().after(library=made.folder), context_of())
    plugin.ensures(before, after)
    assert {b.ffn for b in tree.layout(after.model)} <= {v.config.ffn for v in variants(facts_of(artifact), told)}
    assert tree.layout(after.model) != tree.layout(before.model)


# What it promises.


def _embedding(after: Artifact) -> None:
    after.model.get_input_embeddings().get_parameter("weight").data[0, 0] += 1


def _kept(after: Artifact) -> None:
    after.model.get_parameter("model.layers.0.self_attn.q_proj.weight").data[0, 0] += 1


def _shape(after: Artifact) -> None:
    slice_(after.model, 0, neurons=torch.arange(7))


def _plan(after: Artifact) -> None:
    assert isinstance(after.plan, dict)
    after.plan.popitem()


def _codes(after: Artifact) -> None:
    assert isinstance(after.plan, dict)
    after.plan[next(iter(after.plan))] = Planned(grid=GridFact(bits=2, group_size=8))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_embedding, "outside the blocks: model.embed_tokens.weight differs"),
        (_kept, "block 0, attention: self_attn.q_proj.weight differs"),
        (_shape, "block 0, ffn: .* is of no variant of the space"),
        (_plan, "is not planned"),
        (_codes, "which the settings do not offer"),
    ],
)
def test_damage_is_seen(damage: Callable[[Artifact], None], what: str, living: Tiny, context_of: Contexts) -> None:
    plugin = puzzle(budget={"weights_mib": "1x"})
    after = plugin.run(living(), context_of())
    plugin.ensures(living(), after)
    damage(after)
    with pytest.raises(BrokenPromise, match=what):
        plugin.ensures(living(), after)


def test_facts_are_upper_bounds(living: Tiny) -> None:
    facts = facts_of(living())
    planned = puzzle(precisions=("fp32", "int4-g8", "int8-g8"), exclude=("layers.0.mlp",)).plan(facts)
    assert planned.open
    assert not planned.library
    assert planned.layout == facts.layout
    assert planned.plan["model.layers.0.mlp.up_proj"] == Planned()
    grid = planned.plan["model.layers.0.self_attn.q_proj"].grid
    assert grid
    assert {g.bits for g in grid.possible} == {4, 8}


# What is refused.


@pytest.mark.parametrize(
    ("given", "key", "what"),
    [
        ({"precisions": ("fp32", "int9")}, "precisions", "got 'int9'"),
        ({"precisions": ("int5-g8",)}, "precisions", "codes have 2, 3, 4, 8 bits"),
        ({"precisions": ("fp32", "fp16")}, "precisions", "one type of floats"),
        ({"precisions": ("int8-g8", "int4-g8-exact")}, "precisions", "exact and fast kernels cannot be in one engine"),
        ({"precisions": ("int4-g33",)}, "precisions", "fewer than a group of 33"),
        ({"patterns": ("dense", "4:2")}, "patterns", "got '4:2'"),
        ({"patterns": ("unstructured",)}, "patterns", "scattered zeros"),
        ({"patterns": ("2:3",)}, "patterns", "does not divide the 32 inputs"),
        ({"precisions": ("int8-g8",), "quantizer": "rnt"}, "quantizer", "did you mean 'rtn'"),
        ({"precisions": ("int8-g8",), "quantizer": "magnitude"}, "quantizer", "has no bits"),
        ({"patterns": ("dense", "2:4"), "pruner": "rtn"}, "pruner", "has no pattern"),
        ({"precisions": ("fp32", "int8-g8"), "score": "hidden"}, "score", "told in nats"),
        ({"solver": "mpi"}, "solver", "did you mean 'mip'"),
        ({"attention": ("parent",), "ffn": ("parent",)}, "ffn", "nothing could be chosen"),
    ],
)
def test_faults_come_before_any_work(given: dict[str, Any], key: str, what: str, living: Tiny) -> None:
    with pytest.raises(BadSettings, match=what) as caught:
        puzzle(**given).plan(facts_of(living()))
    assert caught.value.key == key


def test_codes_that_are_there_already(living: Tiny) -> None:
    facts = facts_of(living())
    with pytest.raises(BadSettings, match="has codes already"):
        puzzle().plan(facts.after(grids=dict.fromkeys(facts.shapes, GridFact(bits=4, group_size=8))))


def test_targets_and_files(tmp_path: Path) -> None:
    two = {"a": Target(name="a"), "b": Target(name="b", precision="fp16")}
    assert list(puzzle().targets(two)) == ["a"]
    assert puzzle().targets({}) == {}
    with pytest.raises(BadSettings, match=r"is about a request, got decode 0\.5x; add the"):
        puzzle(budget={"decode": "0.5x"}).targets({})
    assert list(puzzle(target="b", precisions=("fp16",)).targets(two)) == ["b"]
    for given, key, what in (
        ({"target": "c"}, "target", "no .* has this name, got 'c'"),
        ({"target": "b"}, "precisions", "is fp16, got 'fp32'"),
    ):
        with pytest.raises(BadSettings, match=what) as caught:
            puzzle(**given).targets(two)
        assert caught.value.key == key
    assert puzzle().files() == puzzle(profile=SHEET).files() == {}
    with pytest.raises(BadSettings, match=r"no such file, got .*laptop.json.*; `compress profile PIPELINE.toml -o"):
        puzzle(profile=str(tmp_path / "laptop.json")).files()
    (tmp_path / "laptop.json").write_text("{}")
    assert puzzle(profile=str(tmp_path / "laptop.json")).files() == {"profile": tmp_path / "laptop.json"}


def test_nothing_reaches_the_budget(living: Tiny, context_of: Contexts) -> None:
    with pytest.raises(Infeasible, match=r"weights_mib <= .*least reachable .*most of it base .*, block 0 attention"):
        puzzle(budget={"weights_mib": "0.1x"}, ffn=("parent", "none"), attention=("parent",)).run(
            living(), context_of()
        )


def test_outputs_that_are_no_numbers(living: Tiny, library: Library, context_of: Contexts) -> None:
    variant = next(v for v in library.variants() if v.key == "01-ffn-50%")
    state = library.state(variant)
    assert state
    library.add(variant, {n: t * torch.nan for n, t in state.items()}, {})
    with pytest.raises(BadModel, match=r"block 1 ffn, 50%: the outputs"):
        puzzle().run(living().after(library=library.folder), context_of())


# Killed.


def test_a_killed_run_goes_on_where_it_was(living: Tiny, context_of: Contexts, tmp_path: Path) -> None:
    plugin = puzzle(budget={"weights_mib": "0.75x"})

    def digest(cache: str, report: QuietReport) -> str:
        after = plugin.run(living(), context_of(cache=tmp_path / cache, report=report))
        return _library.digest(after)

    unhurt, again = Dies(10**6), Dies(10**6)
    once = digest("once", unhurt)
    walk, first = 2, 3 * 2  # of bars: two blocks that are gathered, then three variants of the first pass two blocks
    with pytest.raises(KeyboardInterrupt):
        digest("twice", Dies(walk + first))
    assert digest("twice", again) == once
    assert again.steps - unhurt.steps == walk + first, "what was judged is not judged again"


# The clock and profiles.


class Measured(Roofline):
    """A datasheet that passes for a measured profile."""

    estimated = False


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> list[Build]:
    """Let whole models take a third more than their parts by the datasheet, and return what was built."""
    built: list[Build] = []
    target = Target(name="board", generate=8, prompt=16)
    sheet = estimate(SHEET, target)
    facts = facts_of(tiny("llama"))

    def taken(build: Build) -> float:
        parts = profiles.layout_choices(build.layout, "llama", 32)
        return 1.3 * sum(sheet.costs(c, target)["decode_ms"] for c in (profiles.base_of(facts, "llama"), *parts))

    def measure(self: solving.Stand, build: Build) -> Measurement:
        built.append(build)
        return measurement(taken(Build(layout=facts.layout)), taken(build))

    def opened(source: Any, target: Target, **_: Any) -> Roofline:
        return Measured(sheet=sheet.sheet, threads=sheet.threads, floats=sheet.floats)

    monkeypatch.setattr(solving.Stand, "measure", measure)
    monkeypatch.setattr(profiles, "open", opened)
    return built


def test_a_budget_of_times_is_met_on_the_clock(
    living: Tiny, context_of: Contexts, clocked: list[Build], tmp_path: Path
) -> None:
    target = Target(name="board", generate=8, prompt=16)
    (tmp_path / "model").mkdir()
    living().save(tmp_path / "model")
    given = {"targets": {"board": target}, "model": str(tmp_path / "model")}
    context = context_of(**given)
    plugin = puzzle(budget={"decode": "0.8x"}, profile=SHEET, rescore=0)
    after = plugin.run(living(), context)
    plugin.ensures(living(), after)
    rounds = context.report.measured["rounds"]  # type: ignore[attr-defined]
    assert len(clocked) == len(rounds) + 1 >= 2
    assert clocked[0].layout == tree.layout(living().model), "the dense model first, alone"
    assert any(r["met"] for r in rounds)
    assert clocked[-1].layout == tree.layout(after.model)
    assert context.report.measured["profile"] == [SHEET]  # type: ignore[attr-defined]
    again = context_of(**given)  # the same in ms
    puzzle(budget={"decode": 0.8 * figures(context)["dense"]["decode_ms"]}, profile=SHEET, rescore=0).run(
        living(), again
    )
    assert figures(again)["score"] == figures(context)["score"]
    assert " measured" in notes(again)


def test_what_the_dense_model_takes_beyond_its_parts_is_spread_over_its_weights(living: Tiny) -> None:
    target, artifact = Target(name="board", generate=8, prompt=16), living()
    facts = facts_of(artifact)
    sheet = estimate(SHEET, target)
    own, priced = (costs.Prices(sheet, facts, facts, "llama", target, kept=0, timed=True) for _ in range(2))
    options, _ = pieces.pieces(facts, puzzle(precisions=("fp32", "int8-g8")).settings, "llama", "fp32")
    measured = {cost: 1.4 * ms for cost, ms in own.dense.items() if cost in TIMES}
    priced.spread(measured)
    assert priced.dense["decode_ms"] == pytest.approx(measured["decode_ms"])
    assert priced.dense["request_ms"] == pytest.approx(measured["request_ms"])
    assert priced.dense["prefill_ms"] == own.dense["prefill_ms"], "products, not weights, take its time"
    added = {}
    for piece in (p for row in options.values() for p in row):
        here, there = own.of(piece), priced.of(piece)
        more = there["decode_ms"] - here["decode_ms"]
        assert more == pytest.approx(here["weights_mib"] * 0.4 * own.dense["decode_ms"] / own.dense["weights_mib"])
        added[piece.slot, piece.name] = more
    assert added["block 0 ffn", "parent, int8-g8"] < 0.5 * added["block 0 ffn", "parent, fp32"]
    priced.spread({"decode_ms": 0.5 * own.dense["decode_ms"]})
    assert priced.dense == own.dense, "what is faster than its sum is the loop's to learn"


def test_an_estimate_is_not_timed(living: Tiny, context_of: Contexts) -> None:
    context = context_of(targets={"board": Target(name="board")})
    puzzle(budget={"decode": "0.8x", "prefill": "0.9x"}, profile=SHEET).run(living(), context)
    assert f"the budget's times are predicted, not measured: {SHEET} is a datasheet" in notes(context)
    told = figures(context)
    assert told["estimated"]
    for cost, share in (("decode_ms", 0.8), ("prefill_ms", 0.9)):
        assert told["predicted"][cost] <= share * told["dense"][cost] * (1 + 1e-9)


class Profiler:
    """Takes profiles by arithmetic, of what is wanted."""

    def __init__(self, tiny: Tiny) -> None:
        self.facts, self.wanted = facts_of(tiny("llama")), list[Wanted]()

    def take(self, wanted: Wanted, path: Path, report: Any) -> list[str]:
        self.wanted.append(wanted)
        sheet = estimate(SHEET, wanted.target)
        choices = [
            c.model_copy(update={"precision": p, "pattern": z})
            for layout in wanted.layouts
            for c in profiles.layout_choices(layout, "llama", 32)
            for p in wanted.precisions
            for z in wanted.patterns
        ]
        _file.write(document(sheet, wanted.target, [*choices, profiles.base_of(self.facts, "llama")]), path)
        return []


def document(sheet: Roofline, target: Target, choices: list[profiles.Choice]) -> _file.Document:
    parts = []
    for choice in dict.fromkeys(choices):
        times = tuple(
            _file.Timing(
                phase=phase, batch=1, length=target.prompt, spread=0.0, runs=9,
                ms=sheet.time(choice, phase, 1, target.prompt).ms,
            )
            for phase in ("prefill", "decode")
        )  # fmt: skip
        parts.append(_file.Measured(**choice.model_dump(), times=times))
    taken = _file.Taken(date="2026-01-01", load=(0.0, 0.0))
    return _file.Document(machine=profiles.here(target), taken=taken, parts=tuple(parts))


def test_what_a_profile_lacks_is_measured_once(
    living: Tiny, tiny: Tiny, context_of: Contexts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    profiler = Profiler(tiny)
    monkeypatch.setattr(costs, "profiler", lambda: profiler)
    monkeypatch.setattr(solving, "_untimed", lambda *_: "no time")
    (tmp_path / "model").mkdir()
    living().save(tmp_path / "model")
    given = {"targets": {"board": Target(name="board", prompt=16, generate=4)}, "model": str(tmp_path / "model")}
    plugin = puzzle(budget={"decode": "0.8x"}, precisions=("fp32", "int8-g8"), seconds=0.5)
    plugin.run(living(), context_of(**given))
    assert len(profiler.wanted) == 1
    assert profiler.wanted[0].precisions == ("fp32", "int8-g8")
    assert profiler.wanted[0].seconds == 0.5
    puzzle(budget={"decode": "0.7x"}, precisions=("fp32", "int8-g8")).run(living(), context_of(**given))
    assert len(profiler.wanted) == 1, "a second budget measures nothing"
    puzzle(budget={"decode": "0.7x"}, precisions=("fp32", "int4-g8")).run(living(), context_of(**given))
    assert len(profiler.wanted) == 2
    with pytest.raises(BadSettings, match="which only a pipeline names"):
        puzzle(budget={"decode": "0.7x"}).run(living(), context_of(cache=tmp_path / "other"))


def test_a_profile_that_lacks_parts_is_refused(living: Tiny, context_of: Contexts, tmp_path: Path) -> None:
    target = Target(name="board", prompt=16, generate=4)
    facts = facts_of(living())
    own = profiles.layout_choices(facts.layout, "llama", 32)
    path = tmp_path / "laptop.json"
    _file.write(document(estimate(SHEET, target), target, [*own, profiles.base_of(facts, "llama")]), path)
    plugin = puzzle(budget={"decode": "0.9x"}, profile=str(path))
    what = rf"holds no ffn 32: 32 neurons, fp32, got .*; `compress profile PIPELINE.toml --target board -o {path} "
    with pytest.raises(BadSettings, match=what + "--shape ffn:32,32 --precision fp32` measures them") as caught:
        plugin.run(living(), context_of(targets={"board": target}))
    assert caught.value.key == "profile"


# The second round.


def test_what_was_picked_is_trained_together(living: Tiny, source: Source, context_of: Contexts) -> None:
    data = {"calibration": source, "training": source}
    plugin, context = puzzle(budget={"weights_mib": "0.75x"}, refine=True, steps=4, batch=2), context_of(data=data)
    assert plugin.data_uses() == {"calibration", "training"}
    after = plugin.run(living(), context)
    plugin.ensures(living(), after)
    (second,) = context.report.measured["solution"]  # type: ignore[attr-defined]
    assert second["predicted"]["weights_mib"] <= 0.75 * second["dense"]["weights_mib"]
    pairs = dict(context.report.measured["pairs"])  # type: ignore[attr-defined]
    assert second["score"] == pytest.approx(sum(v for k, v in pairs.items() if told(context, k)), rel=1e-6)
    again = context_of(data=data)
    assert _library.digest(plugin.run(living(), again)) == _library.digest(after)
    loose = context_of(data=data)
    puzzle(budget={"weights_mib": "1x"}, refine=True, steps=4, batch=2).run(living(), loose)
    assert figures(loose)["score"] == 0


def told(context: Context, key: str) -> bool:
    """Tell whether a pair was chosen at last, by its name: `block 0, attention none and ffn 50%`."""
    choice: Mapping[str, str] = context.report.measured["choice"][-1]  # type: ignore[attr-defined]
    block = key.partition(",")[0]
    parts = [f"{part} {choice[f'{block} {part}'].partition(',')[0]}" for part in ("attention", "ffn")]
    return key == f"{block}, {' and '.join(parts)}"
