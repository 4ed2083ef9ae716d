"""The law of order: what a pass won is still there after the next one, for every pair that `plan` allows.

Masks stay as they are or grow; where a pass changes the shapes of blocks, its own promise says what became of each
mask, and what holds for all of them is held here: their patterns, and the zeros under them.

Passes, their settings and what they read are discovered, so that a new pass is held to it for free.
"""

from __future__ import annotations

import functools
import itertools
import os
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError

from compress import blocks, registry, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Pass, PassSettings, Target
from compress.data import Role, Source
from compress.data.settings import DataSettings
from compress.errors import BadSettings
from compress.facts import Facts, MaskFact
from compress.known import known
from tests.conftest import standing, uneven

PASSES = registry.names("passes")
# The first state that this one leaves meets every variant of the next pass; its other states, and the first of every
# other pass, those that plan otherwise; and the rest the first variant alone.
THOROUGH = "magnitude"
SMALL = {
    "steps": 2, "tune_steps": 2, "batch": 2, "accumulation": 1, "rank": 2, "lr": 1e-3, "probes": 2, "entries": 4,
    "heads": 0.4, "neurons": 0.25, "layers": 1, "multiple": 8, "group_size": 8, "refine_cycles": 1, "choose_windows": 2,
    "windows": 4,
}  # fmt: skip
UNUSED = ("rank", "group_size", "refine_cycles", "choose_windows")  # that some choices have no use for
ROLES: tuple[Role, ...] = ("calibration", "training")
TARGETS = {"cpu": Target(prompt=16, generate=4)}
TEXT = "the quick brown fox jumps over the lazy dog; a model is pruned and retrained. "


@dataclass(frozen=True, kw_only=True)
class State:
    """An artifact on disk, what was planned of it, and what is known of it; the same unless a choice was open."""

    folder: Path
    planned: Facts
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The dense model, and the surroundings of every pass."""

    dense: State
    given: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def fleeting() -> Iterator[None]:
    """Do not wait for the disk: nothing here outlives a failure of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def ground(tiny: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ground]:
    """Return a maker of the dense model of a kind, and of what of its surroundings no pass makes."""

    @functools.cache
    def make(kind: str) -> Ground:
        root = tmp_path_factory.mktemp(kind)
        (root / "dense").mkdir()
        artifact = tiny(kind)
        artifact.save(root / "dense")
        (root / "text.txt").write_text(TEXT * 200)
        words = TEXT.split()
        rows = (f'"{" ".join(words[i % 5 : 6 + i % 7])}",{i % 2}' for i in range(16))
        (root / "classes.csv").write_text("\n".join(["text,label", *rows]))
        source = "text.txt" if artifact.task == "causal-lm" else "classes.csv"
        settings = DataSettings(source=str(root / source), windows=4, length=16)
        given = {
            "data": {role: Source(settings, role, artifact.task, 0, root / role) for role in ROLES},
            "parent": lambda: Artifact.load(root / "dense"),
            "model": str(root / "dense"),
            "cache": root / "cache",
        }
        return Ground(dense=_state(root / "dense"), given=given)

    return make


def _state(folder: Path) -> State:
    """Return what is known of an artifact that was not planned."""
    artifact = Artifact.load(folder)
    facts = tree.facts(artifact.model, artifact.task)
    return State(folder=folder, planned=facts, facts=facts)


def _variants(use: str) -> Iterator[dict[str, Any]]:
    """Yield the default settings, then each choice of each setting that is a choice, one at a time."""
    settings = registry.load("passes", use, Pass).Settings
    fields = settings.model_fields
    small = {n: v for n, v in SMALL.items() if n in fields and _takes(settings, n, v)}
    yield small
    if "pattern" in fields:
        yield small | {"pattern": "2:4"}
        yield small | {"pattern": "plan"}
    if "precisions" in fields:
        yield small | {"precisions": ("fp32", "int4-g8"), "patterns": ("dense", "2:4"), "budget": {"bytes": "0.5x"}}
    if "layers" in fields:
        yield small | {"layers": 0}
    if "input_range" in fields:
        yield small | {"bits": 8, "activation": "static"}
    if "average_bits" in fields:
        yield small | {"average_bits": 3}
    for name, field in fields.items():
        inner = typing.get_args(field.annotation)
        if typing.get_origin(field.annotation) is Literal:
            yield from (small | {name: choice} for choice in inner if choice != field.default)
        elif inner and typing.get_origin(inner[0]) is Literal:  # a tuple of choices
            yield from (small | {name: (choice,)} for choice in typing.get_args(inner[0]))
        elif field.annotation is bool:
            yield small | {name: not field.default}


def _takes(settings: type[PassSettings], name: str, value: Any) -> bool:
    """Tell whether a setting of this name is of the value's kind: passes call unlike things by one name."""
    try:
        settings(**{name: value})
    except ValidationError:
        return False
    return True


def _planned(use: str, facts: Facts) -> Iterator[tuple[Pass, Facts]]:
    """Yield every variant of a pass that may run on such a model, with the facts after it."""
    found = registry.load("passes", use, Pass)
    if facts.grids and not found.quantized:
        return  # as `compress check` refuses
    for given in _variants(use):
        for unused in itertools.chain.from_iterable(itertools.combinations(UNUSED, n) for n in range(len(UNUSED) + 1)):
            try:
                plugin = found(found.Settings(**{n: v for n, v in given.items() if n not in unused}))
                planned = plugin.plan(facts)
            except (BadSettings, ValidationError):
                continue
            yield plugin, planned if found.library else planned.after(library=False)
            break


def _run(plugin: Pass, before: State, facts: Facts, given: dict[str, Any], folder: Path) -> State:
    """Do what the pipeline does: open, run, save, and hold the pass to what it declares."""
    (folder / "work").mkdir(parents=True)
    (folder / "after").mkdir()
    data: dict[str, Source] = {role: given["data"][role] for role in plugin.data_uses()}
    torch.manual_seed(0)
    surroundings = {"targets": plugin.targets(TARGETS), "facts": before.facts, **given, "data": data}
    after = plugin.run(Artifact.load(before.folder), Context(folder=folder / "work", **surroundings))
    (after if plugin.library else after.after(library=None)).save(folder / "after")
    opened = Artifact.load(folder / "after")
    plugin.ensures(Artifact.load(before.folder), opened)
    found = known(opened, facts)
    if facts.open:  # what could not be told before is chosen
        return State(folder=folder / "after", planned=facts, facts=found)
    assert found.after(grids=facts.grids) == facts, "the model is not what was planned"
    assert facts.admits(found.grids)
    assert opened.masks.keys() == facts.masks.keys()
    return State(folder=folder / "after", planned=facts, facts=facts)


def _check_masks(first: Artifact, second: Artifact, facts: Facts, *, again: bool = False) -> None:
    linears = tree.block_linears(second.model)
    same = tree.layout(first.model) == tree.layout(second.model)  # else names may stand for other blocks
    for name in first.masks.keys() & facts.masks.keys() if same else ():
        old, new = first.masks[name], second.masks[name]
        assert not (new & ~old).any(), f"{name}: the mask grew"
        assert (linears[name].weight[~old] == 0).all(), f"{name}: zeros came back"
    for name, fact in facts.masks.items():
        assert (linears[name].weight[~second.masks[name]] == 0).all(), f"{name}: weights under its mask"
        if fact.pattern != "unstructured":
            keep, group = map(int, fact.pattern.split(":"))
            assert (second.masks[name].view(-1, group).sum(1) <= keep).all(), f"{name}: {fact.pattern} is lost"
            assert ((linears[name].weight.view(-1, group) != 0).sum(1) <= keep).all()
    for name in () if again else first.grids:  # codes may be rounded once more where that was asked for
        same_codes = torch.equal(first.grids[name].dequantized(), second.grids[name].dequantized())
        assert same_codes, f"{name}: its codes are lost"
    assert tree.tied(first.model) == tree.tied(second.model)
    logits = second.model(torch.arange(2, 18).view(2, 8)).logits
    assert torch.isfinite(logits).all()


@pytest.fixture(scope="module")
def states(ground: Callable[[str], Ground], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[State]]:
    """Return a maker of what a pass leaves of the dense model: one state for each plan that its variants make."""
    here = ground("llama-tied")

    @functools.cache
    def make(use: str) -> list[State]:
        found: list[State] = []
        for plugin, facts in _planned(use, here.dense.facts):
            if not any(facts == state.planned for state in found):  # what follows tells models apart by facts alone
                found.append(_run(plugin, here.dense, facts, here.given, tmp_path_factory.mktemp(use)))
        return found

    return make


@pytest.mark.parametrize(("first", "second"), [*itertools.product(PASSES, PASSES)])
def test_masks_survive_what_follows(
    first: str,
    second: str,
    states: Callable[[str], list[State]],
    ground: Callable[[str], Ground],
    tmp_path: Path,
) -> None:
    given, count = ground("llama-tied").given, itertools.count()
    pairs = 0
    for number, state in enumerate(states(first)):
        care = (first == THOROUGH) + (number == 0)
        seen: list[Facts] = []
        for following, later in _planned(second, state.facts):
            if care == 2 or later not in seen:
                last = _run(following, state, later, given, tmp_path / str(next(count)))
                again = getattr(following.settings, "again", False)
                _check_masks(Artifact.load(state.folder), Artifact.load(last.folder), last.facts, again=again)
                pairs += 1
            if not care:
                break
            seen.append(later)
    if all(state.facts.grids for state in states(first)) and not registry.load("passes", second, Pass).quantized:
        return  # it works on floats alone
    assert pairs, f"no settings of {first} and {second} go together; `_variants` must find some"


@pytest.mark.parametrize("change", [uneven, standing])
@pytest.mark.parametrize("kind", ["llama-tied", "bert"])
@pytest.mark.parametrize("use", PASSES)
def test_blocks_may_be_unlike(
    use: str,
    kind: str,
    change: Callable[[Artifact], Artifact],
    ground: Callable[[str], Ground],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parts are absent, or a linear stands in for them: as they are and behind masks, every pass works on them."""
    here, start = ground(kind), tmp_path / "start"
    start.mkdir()
    change(Artifact.load(here.dense.folder)).save(start)
    for name, value in {"group_size": -1, "multiple": 1, "score_rank": 2}.items():  # which fit any linear
        monkeypatch.setitem(SMALL, name, value)
    unlike = _state(start)
    pruning, masked = next(_planned(THOROUGH, unlike.facts))
    pruned = _run(pruning, unlike, masked, here.given, tmp_path / "pruned")
    for number, state in enumerate((unlike, pruned)):
        plugin, planned = next(_planned(use, state.facts))
        last = _run(plugin, state, planned, here.given, tmp_path / str(number))
        _check_masks(Artifact.load(state.folder), Artifact.load(last.folder), last.facts)


def test_the_law_sees_a_mask_that_grew_and_a_pattern_that_is_lost(
    ground: Callable[[str], Ground], tiny: Callable[..., Artifact]
) -> None:
    known_ = ground("llama-tied").dense.facts
    name = next(iter(known_.shapes))
    mask = (torch.arange(32 * 64) % 4 < 2).view(64, 32)
    facts = known_.after(masks={name: MaskFact("2:4", 0.5)})
    first = tiny("llama-tied").after(masks={name: mask})
    tree.block_linears(first.model)[name].weight.data[~mask] = 0
    _check_masks(first, first, facts)
    with pytest.raises(AssertionError, match="the mask grew"):
        _check_masks(first, first.after(masks={name: torch.ones_like(mask)}), facts)
    with pytest.raises(AssertionError, match="zeros came back"):
        _check_masks(first, tiny("llama-tied").after(masks={name: mask}), facts)
    with pytest.raises(AssertionError, match="1:4 is lost"):
        _check_masks(first, first, facts.after(masks={name: MaskFact("1:4", 0.75)}))


def test_the_law_sees_a_weight_under_the_mask_of_a_smaller_model(tiny: Callable[..., Artifact]) -> None:
    first = tiny("llama-tied")
    second = tiny("llama-tied")
    blocks.slice_(second.model, 0, neurons=torch.arange(48))
    name = "model.layers.0.mlp.down_proj"
    masks = {name: torch.ones(32, 48, dtype=torch.bool)}
    facts = tree.facts(second.model, "causal-lm").after(masks={name: MaskFact("unstructured", 0.0)})
    _check_masks(first, second.after(masks=masks), facts)
    masks[name][3, 5] = False
    with pytest.raises(AssertionError, match="weights under its mask"):
        _check_masks(first, second.after(masks=masks), facts)
