"""What passes that quantize share: steps, rounding, plans, promises; every family, masks, disk, bad input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress import registry, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Pass
from compress.data import Examples
from compress.errors import BadModel, BadSettings, BrokenPromise
from compress.facts import Facts, GridFact
from compress.grid import BITS, Grid, bounds, spread
from passes import _quant
from passes._masks import same_bits
from passes._pruned import facts_of
from passes._quant import Quantizer, QuantSettings, telling
from passes.magnitude import Magnitude
from tests.conftest import CAUSAL, ENCODERS, VOCABULARY, branched, quantized, uneven

Tiny = Callable[..., Artifact]
USES = ("rtn", "gptq")


class Rows:
    """Calibration rows of unlike lengths."""

    def __init__(self, lengths: Sequence[int] = (9, 5, 7, 9, 3, 8)) -> None:
        random = torch.Generator().manual_seed(1)
        tokens = torch.randint(2, VOCABULARY, (sum(lengths),), generator=random)
        self.made = Examples(tokens=tokens, lengths=torch.tensor(lengths), pad=1)

    def examples(self, tokenizer: Any) -> Examples:
        return self.made


def make(use: str, **given_: Any) -> Quantizer:
    found: Any = registry.load("passes", use, Pass)
    usual = {"group_size": 8} | ({"batch": 4} if "batch" in found.Settings.model_fields else {})
    made: Quantizer = found(found.Settings(**usual | given_))
    return made


def context_of(folder: Path, report: QuietReport | None = None) -> Context:
    data: Any = {"calibration": Rows()}
    return Context(folder=folder, data=data, report=report or QuietReport())


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Artifact, Artifact, QuietReport]]:
    """Return a function that saves, plans, runs, saves and checks; it gives both artifacts from disk and the report."""

    def go(plugin: Pass, artifact: Artifact, name: str = "run") -> tuple[Artifact, Artifact, QuietReport]:
        folders = [tmp_path / name / part for part in ("before", "after", "work")]
        for folder in folders:
            folder.mkdir(parents=True)
        artifact.save(folders[0])
        facts = plugin.plan(facts_of(artifact))
        report = QuietReport()
        plugin.run(artifact, context_of(folders[2], report)).save(folders[1])
        was, after = Artifact.load(folders[0]), Artifact.load(folders[1])
        plugin.ensures(was, after)
        assert {n: after.grids[n].fact for n in after.grids} == facts.grids
        return was, after, report

    return go


def weights(rows: int, inputs: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))


@st.composite
def rounded(draw: Any) -> tuple[Tensor, GridFact]:
    """Return a weight, some of it 0, and a grid for it."""
    inputs = draw(st.integers(1, 20))
    size = draw(st.one_of(st.none(), st.integers(1, inputs)))
    fact = GridFact(bits=draw(st.sampled_from(BITS)), group_size=size, zero=draw(st.booleans()))
    weight = weights(3, inputs, draw(st.integers(0, 99))) * 10 ** draw(st.integers(-3, 3))
    shift = draw(st.sampled_from((0.0, 2.0, -2.0)))
    return (weight + shift * weight.abs().max()).masked_fill(weight < weight.quantile(draw(st.floats(0, 1))), 0), fact


@settings(deadline=None)
@given(rounded())
def test_a_span_clips_nothing_and_zeros_stay(given_: tuple[Tensor, GridFact]) -> None:
    weight, fact = given_
    made = _quant.grid(weight, _quant.span(weight, fact), fact)
    width = spread(made.scale, weight.shape[1], fact.group_size)
    reach = 0.5 if not fact.zero else 1.0  # a zero is rounded, which may move the ends by half a step
    assert ((made.dequantized() - weight).abs() <= (reach + 1e-4) * width).all()
    made.check("x", made.dequantized(), weight != 0)


@settings(deadline=None)
@given(rounded(), st.sampled_from(("plain", "square", "block")))
def test_a_search_is_never_worse_than_the_span_by_its_own_measure(given_: tuple[Tensor, GridFact], kind: str) -> None:
    weight, fact = given_
    inputs = weight.shape[1]
    x = weights(40, inputs, 7) @ weights(inputs, inputs, 8)
    gram = x.T @ x / len(x)
    importance = {"plain": None, "square": gram.diagonal(), "block": gram}[kind]
    found, span = _quant.search(weight, fact, importance), _quant.span(weight, fact)
    measure = {"plain": torch.eye(inputs), "square": gram.diagonal().diag(), "block": gram}[kind].double()
    apart = (torch.arange(inputs) // (fact.group_size or inputs)).unsqueeze(0)
    measure = measure * (apart == apart.T)
    errors = []
    for steps in (found, span):
        made = _quant.grid(weight, steps, fact)
        off = (made.dequantized() - weight).double()
        errors.append(((off @ measure) * off).sum(1))
        made.check("x", made.dequantized(), weight != 0)
    assert (errors[0] <= errors[1] * (1 + 1e-4) + 1e-12 * weight.abs().max() ** 2).all()


def test_a_search_comes_near_the_best_steps() -> None:
    weight, fact = weights(16, 32), GridFact(bits=3, group_size=None)
    span = _quant.span(weight, fact)

    def error(scale: Tensor) -> Tensor:
        return (_quant.grid(weight, _quant.Steps(scale), fact).dequantized() - weight).square().sum(1)

    every = torch.stack([error(span.scale * f) for f in torch.linspace(0.2, 1.2, 2000).tolist()])
    found = error(_quant.search(weight, fact).scale)
    assert found.sum() < 1.03 * every.amin(0).sum()
    assert found.sum() < 0.8 * error(span.scale).sum()


def test_what_matters_more_is_rounded_better() -> None:
    weight, fact = weights(16, 32), GridFact(bits=2, group_size=16, zero=True)
    importance = torch.where(torch.arange(32) % 16 < 4, 100.0, 1.0)
    plain, weighed = (
        (_quant.grid(weight, _quant.search(weight, fact, i), fact).dequantized() - weight).square()
        for i in (None, importance)
    )
    assert (weighed * importance).sum() < 0.8 * (plain * importance).sum()


def test_rows_are_searched_alike_however_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, fact = weights(9, 24), GridFact(bits=3, group_size=7, zero=True)
    whole = _quant.search(weight, fact)
    monkeypatch.setattr("passes._quant.steps._AT_ONCE", 30)
    parts = _quant.search(weight, fact)
    assert whole.zero is not None
    assert parts.zero is not None
    assert torch.equal(whole.scale, parts.scale)
    assert torch.equal(whole.zero, parts.zero)


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_clamped_then_rounded_half_to_even(bits: Any) -> None:
    low, high = bounds(bits)
    weight = torch.tensor([[0.5, 1.5, -0.5, high + 0.5, 1e9, -1e9, 0.0]])
    made = _quant.codes(weight, _quant.Steps(torch.ones(1, 1)), GridFact(bits=bits, group_size=None))
    assert made.tolist() == [[0, min(2, high), 0, high, high, low, 0]]


def test_a_search_takes_the_device_of_its_weight() -> None:
    steps = _quant.search(torch.empty(4, 6, device="meta"), GridFact(bits=8, group_size=4))
    assert steps.scale.device.type == "meta"


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
@pytest.mark.parametrize("use", USES)
def test_every_family(tiny: Tiny, run: Any, use: str, kind: str) -> None:
    bits = {"fc1": 8, "q_proj": 3} if kind == "opt" else {}
    was, after, report = run(make(use, layers=bits), tiny(kind))
    linears = tree.block_linears(after.model)
    assert after.grids.keys() == linears.keys()
    for name, linear in linears.items():
        assert after.grids[name].bits == next((b for part, b in bits.items() if part in name), 4)
        off = (linear.weight - was.tensor(f"{name}.weight")).abs().max()
        assert 0 < off < 0.5 * was.tensor(f"{name}.weight").abs().max()
    assert tree.tied(after.model) == tree.tied(was.model)
    told = [n for n in report.notes if n.startswith("quantized ")]
    assert len(told) == 1 + len(bits)
    assert all("in groups of 8: " in n for n in told)


@pytest.mark.parametrize("change", [uneven, branched], ids=["blocks of unlike shapes", "branches"])
@pytest.mark.parametrize("use", USES)
def test_other_shapes(tiny: Tiny, run: Any, use: str, change: Callable[[Artifact], Artifact]) -> None:
    _, after, _ = run(make(use, group_size=-1, bits=3), change(tiny("llama")))
    assert after.grids.keys() == tree.block_linears(after.model).keys()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("use", USES)
def test_a_pattern_stays_in_the_codes(tiny: Tiny, run: Any, use: str, symmetric: bool) -> None:
    _, pruned, _ = run(Magnitude(Magnitude.Settings(pattern="2:4")), tiny("llama"), "pruned")
    masks = {n: pruned.masks[n] for n in pruned.masks}
    _, after, _ = run(make(use, bits=2, symmetric=symmetric), pruned)
    for name, mask in masks.items():
        grid = after.grids[name]
        zero = 0 if grid.zero is None else spread(grid.zero, mask.shape[1], 8)
        assert (grid.codes == zero)[~mask].all()
        assert ((grid.codes != zero).view(-1, 4).sum(1) <= 2).all()
        assert torch.equal(after.masks[name], mask)


@pytest.mark.parametrize("use", USES)
def test_weights_on_disk_end_as_weights_in_memory(tiny: Tiny, tmp_path: Path, use: str) -> None:
    dense = tmp_path / "dense"
    dense.mkdir()
    tiny("gpt2").save(dense)
    found = []
    for stored in (False, True):
        (tmp_path / str(stored)).mkdir()
        artifact, plugin = Artifact.load(dense, stored=stored), make(use, symmetric=False)
        after = plugin.run(artifact, context_of(tmp_path / str(stored)))
        plugin.ensures(Artifact.load(dense, stored=True), after)
        if stored:
            assert all(p.is_meta for n, p in after.model.named_parameters() if ".h." in n)
        found.append(after)
    for name in found[0].tensor_names():
        assert same_bits(found[0].tensor(name), found[1].tensor(name))
    for name in found[0].grids:
        assert torch.equal(found[0].grids[name].codes, found[1].grids[name].codes)


@pytest.mark.parametrize("use", USES)
def test_codes_are_rounded_once_more_only_where_asked(tiny: Tiny, run: Any, use: str) -> None:
    fact = GridFact(bits=4, group_size=16)
    artifact = quantized(tiny("llama"), {"model.layers.0.self_attn.q_proj": fact})
    with pytest.raises(BadSettings, match=r"q_proj has codes of 4 bits.* already; exclude it") as caught:
        make(use).plan(facts_of(artifact))
    assert caught.value.key == "again"
    was, after, _ = run(make(use, exclude=("layers.0.self_attn.q_proj",)), artifact, "beside")
    kept = [a.grids["model.layers.0.self_attn.q_proj"] for a in (was, after)]
    assert torch.equal(kept[0].codes, kept[1].codes)
    assert len(after.grids) == len(tree.block_linears(after.model))
    _, twice, _ = run(make(use, bits=2, again=True), after, "again")
    assert {twice.grids[n].bits for n in twice.grids} == {2}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"group_size": 33}, "group_size", "has 32 inputs, fewer than a group of 33; -1"),
    ({"group_size": None}, "group_size", "fewer than a group of 128"),
    ({"group_size": 0}, "group_size", "above 0"),
    ({"activation": "dynamic", "group_size": -1}, "activation", "integer inputs go with 8 bits"),
    ({"activation": "dynamic", "bits": 8}, "activation", "whole rows"),
    ({"activation": "dynamic", "bits": 8, "group_size": -1, "symmetric": False}, "activation", "symmetric"),
    ({"activation": "dynamic", "bits": 8, "group_size": -1, "layers": {"q_proj": 4}}, "activation", "got 4 bits"),
    ({"activation": "static", "bits": 8}, "activation", "whole rows"),
    ({"activation": "static", "group_size": -1}, "activation", "got 4 bits"),
    ({"activation": "static", "group_size": -1, "average_bits": 8}, "activation", "leaves average_bits nothing"),
    ({"input_range": "max"}, "input_range", "only with activation = 'static', got 'max'"),
    ({"layers": {"nowhere": 4}}, "layers", "nowhere"),
    ({"layers": {"*": "float"}}, "layers", "leaves every linear in floats"),
    ({"include": ("nowhere",)}, "include", "nowhere"),
]


@pytest.mark.parametrize(("given_", "key", "words"), BAD)
@pytest.mark.parametrize("use", USES)
def test_impossible_settings_are_found_before_any_work(
    tiny: Tiny, use: str, given_: dict[str, Any], key: str, words: str
) -> None:
    with pytest.raises(BadSettings) as caught:
        make(use, **given_).plan(facts_of(tiny("llama")))
    assert caught.value.key == key
    assert words in str(caught.value)


@pytest.mark.parametrize("use", USES)
def test_weights_that_are_not_numbers_are_told_by_name(tiny: Tiny, tmp_path: Path, use: str) -> None:
    artifact = tiny("llama")
    tree.block_linears(artifact.model)["model.layers.1.mlp.down_proj"].weight.data[3, 5] = torch.nan
    with pytest.raises(BadModel, match=r"model.layers.1.mlp.down_proj: "):
        make(use).run(artifact, context_of(tmp_path))


@pytest.mark.parametrize("use", USES)
def test_ensures_finds_each_kind_of_damage(tiny: Tiny, run: Any, use: str) -> None:
    pruned = run(Magnitude(Magnitude.Settings(pattern="2:4")), tiny("llama"), "pruned")[1]
    before = quantized(pruned, {"model.layers.1.mlp.up_proj": GridFact(bits=3, group_size=4)})
    plugin = make(use, include=("q_proj",))
    was, after, _ = run(plugin, before)
    name, other = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
    grids, masks = {n: after.grids[n] for n in after.grids}, {n: after.masks[n] for n in after.masks}

    def broken(expected: str, **changes: Any) -> None:
        with pytest.raises(BrokenPromise, match=expected):
            plugin.ensures(was, after.after(**changes))

    def moved(grid: Grid, at: tuple[int, ...]) -> Grid:
        codes = grid.codes.clone()
        codes[at] = -1 if codes[at] == 0 else 0
        return dataclasses.replace(grid, codes=codes)

    broken("none where they were", grids={n: g for n, g in grids.items() if n != other})
    broken("nobody planned", grids=grids | {"model.layers.0.mlp.up_proj": grids[other]})
    broken("its codes changed", grids=grids | {other: moved(grids[other], (0, 0))})
    broken("weights differ from what their codes", grids=grids | {name: moved(grids[name], (0, 0))})
    broken("was to become", grids=grids | {name: dataclasses.replace(grids[name], bits=8)})
    broken("mask came or went", masks={n: m for n, m in masks.items() if n != name})
    broken("its mask changed", masks=masks | {name: ~masks[name]})
    pruned_at = tuple((~masks[name]).nonzero()[0].tolist())
    weight = after.tensor(f"{name}.weight")
    weight[pruned_at] = -grids[name].scale[pruned_at[0], pruned_at[1] // 8]
    broken("do not stand for 0", grids=grids | {name: moved(grids[name], pruned_at)})
    weight[pruned_at] = 0
    norm = after.model.get_parameter("model.norm.weight")
    norm.data[0] += 1e-3
    broken("model.norm.weight: changed")
    norm.data[0] = was.tensor("model.norm.weight")[0]
    plugin.ensures(was, after)


def test_sizes_are_those_of_packed_codes_and_steps() -> None:
    shapes = {"a": (10, 100), "b": (4, 7)}
    whole, fine = GridFact(bits=8, group_size=None), GridFact(bits=3, group_size=3, zero=True)
    assert telling.size(shapes["a"], whole) == 10 * 100 + 10 * 4
    assert telling.size(shapes["b"], fine) == 4 * 3 + 4 * 3 * (4 + 3 / 8)
    shapes["a"] = (2**10, 2**10)
    told = list(_quant.told({"a": GridFact(bits=4, group_size=128), "b": fine}, shapes, 4))
    assert told[0] == "quantized 1 linears to 4 bits in groups of 128: 4 MiB -> 0.531 MiB"
    assert told[1].startswith("quantized 1 linears to 3 bits in groups of 3 with zeros: ")


@pytest.mark.parametrize("use", USES)
def test_estimates_grow_with_what_is_asked(tiny: Tiny, use: str) -> None:
    facts: Facts = facts_of(tiny("llama"))
    plain, more = make(use, steps="span").estimate(facts), make(use).estimate(facts)
    one = make(use, include=("layers.0.self_attn.q_proj",)).estimate(facts)
    assert 0 < one.seconds < more.seconds
    assert plain.peak_mib > 4 * facts.parameters / 2**20
    assert plain.trainable == 0
    eight = make(use, bits=8).estimate(facts)
    weights_ = sum(rows * inputs for rows, inputs in facts.shapes.values())
    assert eight.disk_mib - more.disk_mib == pytest.approx(weights_ / 2 / 2**20)


def test_defaults_are_groups_of_128_and_whole_rows_at_8_bits() -> None:
    found = [_quant.planned(_facts((4, 256)), QuantSettings(bits=b))["x"].group_size for b in (4, 8)]
    assert found == [128, None]


def _facts(shape: tuple[int, int]) -> Facts:
    return Facts(
        family="llama", task="causal-lm", tied=False, shapes={"x": shape}, biases={}, norms={}, head=None,
        parameters=1, vocabulary=1, positions=1, layout=(),
    )  # fmt: skip
