"""What was planned of each linear and is made true: by every pass that quantizes, and every one that chooses masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import registry, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Pass
from compress.data import DataSettings, Source
from compress.errors import BadSettings, BrokenPromise
from compress.facts import GridFact, Planned
from compress.settings import schema
from passes._pruned import facts_of

Tiny = Callable[..., Artifact]
QUANTIZERS = ("rtn", "gptq", "awq", "l4q")
PRUNERS = ("magnitude", "wanda", "ria", "sparsegpt")
ROLES: tuple[Any, ...] = ("calibration", "training")
TEXT = "the quick brown fox jumps over the lazy dog; a model is pruned and retrained. "
SMALL = {"batch": 2, "steps": 2, "accumulation": 1, "rank": 2}
FOUR = GridFact(bits=4, group_size=8, zero=True)
EIGHT = GridFact(bits=8, group_size=None, activation="dynamic")
UP = "model.layers.{}.mlp.up_proj.weight"
PLAN = {
    "model.layers.0.self_attn.q_proj": Planned(grid=FOUR, pattern="2:4"),
    "model.layers.0.mlp.down_proj": Planned(grid=EIGHT),
    "model.layers.1.self_attn.o_proj": Planned(pattern="1:8"),
    "model.layers.1.mlp.up_proj": Planned(grid=GridFact(bits=2, group_size=16)),
    "model.layers.1.mlp.gate_proj": Planned(),
}
GRIDS = {n: p.grid for n, p in PLAN.items() if p.grid}
PATTERNS = {n: p.pattern for n, p in PLAN.items() if p.pattern}


def make(use: str, **given: Any) -> Any:
    found = registry.load("passes", use, Pass)
    kinds = {n: f.annotation for n, f in found.Settings.model_fields.items()}
    small = {n: v for n, v in SMALL.items() if kinds.get(n) is int}
    key = "bits" if use in QUANTIZERS else "pattern"
    return found(found.Settings(**{**small, key: "plan", **given}))


def run(plugin: Pass, artifact: Artifact, folder: Path) -> tuple[Artifact, Artifact, QuietReport]:
    """Plan, run, save, check; return what was and what is, from disk, and the report."""
    for name in ("before", "after", "work"):
        (folder / name).mkdir(parents=True)
    artifact.save(folder / "before")
    (folder / "text.txt").write_text(TEXT * 20)
    settings = DataSettings(source=str(folder / "text.txt"), windows=6, length=8)
    data: Any = {role: Source(settings, role, "causal-lm") for role in ROLES}
    planned, report = plugin.plan(facts_of(artifact)), QuietReport()
    context = Context(folder=folder / "work", data=data, report=report, parent=lambda: Artifact.load(folder / "before"))
    plugin.run(Artifact.load(folder / "before"), context).save(folder / "after")
    was, after = Artifact.load(folder / "before"), Artifact.load(folder / "after")
    plugin.ensures(was, after)
    assert after.plan == planned.plan
    assert {n: after.grids[n].fact for n in after.grids} == planned.grids
    assert after.masks.keys() == planned.masks.keys()
    return was, after, report


@pytest.mark.parametrize("use", QUANTIZERS)
def test_each_linear_gets_the_codes_that_are_planned(use: str, tiny: Tiny, tmp_path: Path) -> None:
    was, after, _ = run(make(use), tiny("llama").after(plan=PLAN), tmp_path / "a")
    assert {n: after.grids[n].fact for n in after.grids} == GRIDS
    floats = tree.block_linears(after.model).keys() - GRIDS.keys()
    assert all(torch.equal(after.tensor(f"{n}.weight"), was.tensor(f"{n}.weight")) for n in floats if use != "awq")
    narrowed = make(use, exclude=("mlp.up_proj",), include=("layers.1", "q_proj"))
    assert narrowed.plan(facts_of(was)).grids == {n: f for n, f in GRIDS.items() if "q_proj" in n}


@pytest.mark.parametrize("use", PRUNERS)
def test_each_linear_gets_the_zeros_that_are_planned(use: str, tiny: Tiny, tmp_path: Path) -> None:
    was, after, _ = run(make(use), tiny("llama").after(plan=PLAN), tmp_path / "a")
    assert after.masks.keys() == PATTERNS.keys()
    for name, pattern in PATTERNS.items():
        keep, group = map(int, pattern.split(":"))
        assert (after.masks[name].view(-1, group).sum(1) == keep).all()
    facts = make(use).plan(facts_of(was))
    assert {n: m.pattern for n, m in facts.masks.items()} == PATTERNS
    narrowed = make(use, include=("layers.1",))
    assert narrowed.plan(facts_of(was)).masks.keys() == {n for n in PATTERNS if ".1." in n}
    name = next(iter(PATTERNS))
    masks = {n: after.masks[n] | (n == name) for n in after.masks}
    with pytest.raises(BrokenPromise, match=name):
        make(use).ensures(was, after.after(masks=masks))


def test_ria_permutes_for_the_patterns_that_are_planned(tiny: Tiny, tmp_path: Path) -> None:
    plan = {"model.layers.0.mlp.down_proj": Planned(pattern="2:4"), "model.layers.1.mlp.up_proj": Planned(grid=FOUR)}
    was, after, _ = run(make("ria", permute=True), tiny("llama").after(plan=plan), tmp_path / "a")
    assert after.masks.keys() == {"model.layers.0.mlp.down_proj"}
    moved = [not torch.equal(after.tensor(n), was.tensor(n)) for n in (UP.format(0), UP.format(1))]
    assert moved == [True, False]


def test_a_plan_goes_with_its_blocks(tiny: Tiny, tmp_path: Path) -> None:
    found: Any = registry.load("passes", "structured", Pass)
    plugin = found(found.Settings(layers=1, neurons=0.5, multiple=8, criterion="magnitude"))
    alike = {n: Planned(grid=FOUR) for n in tree.block_linears(tiny("llama").model) if "up_proj" in n}
    given = tiny("llama").after(plan=alike)
    _, after, _ = run(plugin, given, tmp_path / "a")
    assert after.plan == {"model.layers.0.mlp.up_proj": Planned(grid=FOUR)}
    assert plugin.plan(facts_of(given)).plan == after.plan
    _, coded, _ = run(make("rtn"), after, tmp_path / "b")
    assert {n: coded.grids[n].fact for n in coded.grids} == {"model.layers.0.mlp.up_proj": FOUR}


@pytest.mark.parametrize("use", [*QUANTIZERS, *PRUNERS])
def test_a_plan_that_leaves_all_alone_is_no_fault(use: str, tiny: Tiny, tmp_path: Path) -> None:
    plan = {n: Planned() for n in PLAN}
    given = tiny("llama").after(plan=plan)
    plugin = make(use)
    assert plugin.plan(facts_of(given)) == facts_of(given)
    assert plugin.estimate(facts_of(given)).seconds > 0
    was, after, report = run(plugin, given, tmp_path / "a")
    assert all(torch.equal(was.tensor(n), after.tensor(n)) for n in was.tensor_names())
    assert report.notes == [n for n in report.notes if "nothing" in n]
    assert len(report.notes) == 1


@pytest.mark.parametrize("use", [*QUANTIZERS, *PRUNERS])
def test_a_choice_yet_to_be_made_may_still_plan(use: str, tiny: Tiny) -> None:
    facts = facts_of(tiny("llama"))
    key = "bits" if use in QUANTIZERS else "pattern"
    with pytest.raises(BadSettings, match="no earlier pass has planned anything, got 'plan'; put") as caught:
        make(use).plan(facts)
    assert caught.value.key == key
    assert make(use).plan(facts.after(open=True)) == facts.after(open=True)
    later = make(use).plan(facts.after(open=True, plan=PLAN))
    assert later.open
    assert (later.grids if key == "bits" else later.masks).keys() == (GRIDS if key == "bits" else PATTERNS).keys()


CONTRADICTIONS: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    (QUANTIZERS, {"group_size": 32}, "group_size"),
    (QUANTIZERS, {"symmetric": True}, "symmetric"),
    (QUANTIZERS, {"average_bits": 3}, "average_bits"),
    (QUANTIZERS, {"layers": {"q_proj": 8}}, "layers"),
    (QUANTIZERS, {"activation": "none"}, "activation"),
    (QUANTIZERS, {"choose": "part"}, "choose"),
    (("l4q",), {"offset": True}, "offset"),
    (PRUNERS, {"sparsity": 0.5}, "sparsity"),
    (PRUNERS, {"choose": "part"}, "choose"),
    (("magnitude",), {"scope": "row"}, "scope"),
    (("magnitude",), {"minimum_density": 0.1}, "minimum_density"),
    (("ria", "sparsegpt"), {"scope": "matrix"}, "scope"),
    (("wanda", "ria", "sparsegpt"), {"densities": "owl"}, "densities"),
]


@pytest.mark.parametrize(("use", "given", "key"), [(u, g, k) for uses, g, k in CONTRADICTIONS for u in uses])
def test_what_the_plan_tells_is_not_told_twice(use: str, given: dict[str, Any], key: str, tiny: Tiny) -> None:
    with pytest.raises(BadSettings, match=r"comes from the plan where .*, got .*; leave one") as caught:
        make(use, **given).plan(facts_of(tiny("llama").after(plan=PLAN)))
    assert caught.value.key == key


def test_a_plan_that_does_not_fit_is_found_before_any_work(tiny: Tiny) -> None:
    facts = facts_of(tiny("llama"))
    name = "model.layers.0.mlp.down_proj"
    wide = facts.after(plan={name: Planned(grid=GridFact(bits=4, group_size=128), pattern="2:3")})
    with pytest.raises(BadSettings, match="64 inputs, fewer than a group of 128"):
        make("rtn").plan(wide)
    with pytest.raises(BadSettings, match="2:3 does not divide the 64 inputs"):
        make("wanda").plan(wide)
    with pytest.raises(BadSettings, match="no_such"):
        make("rtn", include=("no_such",)).plan(facts.after(plan=PLAN))


def test_the_schema_knows_the_word() -> None:
    passes = {p["title"]: p["properties"] for p in schema()["properties"]["pass"]["items"]["oneOf"]}
    for use in QUANTIZERS:
        assert passes[use]["bits"]["enum"] == [2, 3, 4, 8, "plan"]
        assert passes[use]["choose"]["enum"] == ["layer", "block", "part"]
    for use in PRUNERS:
        assert passes[use]["pattern"]["type"] == "string"
        assert "'plan'" in passes[use]["pattern"]["description"]
