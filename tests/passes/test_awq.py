"""AWQ: scales by hand and by a full search, the function before rounding, every family, masks, resuming, damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.errors import BadModel, BadSettings, BrokenPromise
from compress.facts import GridFact
from compress.grid import Grid, spread
from passes import _masks, _quant
from passes._folding import Pair
from passes._pruned import facts_of
from passes.awq import Awq
from passes.awq.attempt import attempts
from passes.awq.scales import best, candidates, energy, rounded, shares
from passes.rtn import Rtn
from tests.conftest import CAUSAL, ENCODERS, loud, outputs, state, uneven

Tiny = Callable[..., Artifact]
FOUR = GridFact(bits=4, group_size=8)


def make(**given: Any) -> Awq:
    return Awq(Awq.Settings(**{"batch": 4, "group_size": 16, **given}))


def channels(count: int, each: int = 1) -> Pair:
    return Pair(block="b", before="n", after=("q",), linear=False, channels=count, each=each, width=count)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- the formula -------------------------------------------------------------------------------------------------------


def test_shares_of_the_largest_of_a_group() -> None:
    weight = torch.tensor([[1.0, -2, 0, 0, 3], [4, 1, -1, -2, 5]])
    assert shares(weight, 2).tolist() == [[0.5, 1, 0, 0, 1], [1, 0.25, 0.5, 1, 1]]
    assert shares(weight, None)[0].tolist() == pytest.approx([1 / 3, 2 / 3, 0, 0, 1])


def test_candidates_by_hand() -> None:
    weights, gram = [torch.tensor([[1.0, 0.5], [1, 1]]), torch.tensor([[0.0, 2]])], torch.tensor([[16.0, 9], [9, 1]])
    facts = [GridFact(bits=4, group_size=None), GridFact(bits=3, group_size=None)]
    found = list(candidates(weights, facts, gram, channels(2)))
    assert len(found) == 20
    held = torch.tensor([2 / 3, 2.5 / 3])  # shares 1, 1, 0 and 0.5, 1, 1
    for point, scale in enumerate(found):
        expected = torch.tensor([4.0, 1.0]) ** (point / 20) / (held ** (1 - point / 20) + 1e-4)
        torch.testing.assert_close(scale, expected / (expected[0] * expected[1]).sqrt())
        assert float(scale.max() * scale.min()) == pytest.approx(1, rel=1e-5)


def test_heads_that_share_a_channel_are_taken_together() -> None:
    gram = torch.diag(torch.tensor([1.0, 4.0, 9.0, 0.0]))
    (first, *_) = candidates([torch.ones(1, 4)], [GridFact(bits=4, group_size=None)], gram, channels(2, each=2))
    assert first.tolist() == [1, 1]
    *_, last = candidates([torch.ones(1, 4)], [GridFact(bits=4, group_size=None)], gram, channels(2, each=2))
    assert float(last[0] / last[1]) == pytest.approx((2 / 1) ** 0.95, rel=1e-4)  # means of 1, 3 and of 2, 0


def test_inputs_that_are_never_read_have_scales_and_all_dead_ones_none() -> None:
    gram = torch.diag(torch.tensor([1.0, 0, 4, 0]))
    found = list(candidates([random(3, 4)], [GridFact(bits=4, group_size=None)], gram, channels(4)))
    assert all(bool((s.isfinite() & (s > 0)).all()) for s in found)
    assert best([random(3, 4)], [GridFact(bits=4, group_size=2)], torch.zeros(4, 4), channels(4)) is None


def test_the_best_scale_is_that_of_a_full_search_over_outputs() -> None:
    x = random(64, 16, seed=1) * torch.linspace(0.1, 4, 16)
    x[:, 3] *= 30
    weights, facts, gram = [random(12, 16, seed=2), random(5, 16, seed=3)], [FOUR, FOUR], x.T @ x / len(x)

    def lost(scale: Tensor) -> float:
        """Return what the outputs on the very rows lose."""
        each = [
            ((x / scale) @ (rounded(w, scale, f) * scale).T - x @ w.T, x @ w.T)
            for w, f in zip(weights, facts, strict=True)
        ]
        return sum(float(off.square().sum() / whole.square().sum()) for off, whole in each)

    found = best(weights, facts, gram, channels(16))
    assert found is not None
    every = [torch.ones(16), *candidates(weights, facts, gram, channels(16))]
    assert lost(found) == pytest.approx(min(map(lost, every)), rel=1e-5)
    assert lost(found) < 0.5 * lost(torch.ones(16))


def test_energy_is_the_mean_square_of_outputs() -> None:
    x, weight = random(40, 6), random(3, 6, seed=1)
    assert float(energy(weight, x.T @ x / 40)) == pytest.approx(float((x @ weight.T).square().sum() / 40), rel=1e-5)


@pytest.mark.parametrize("clip", [False, True])
def test_attempts_lose_less_and_less(clip: bool) -> None:
    x = random(64, 16, seed=1)
    x[:, 3] *= 30
    weight, gram = random(12, 16, seed=2), x.T @ x / 64
    found = list(attempts([weight], [GridFact(bits=3, group_size=8)], gram, channels(16), clip=clip))
    words = ["rounding to nearest", "narrower steps", "scales", "scales and narrower steps"]
    assert [a.what for a in found] == (words if clip else words[::2])
    lost = {a.what: float(energy(next(a.weights()) - weight, gram)) for a in found}
    assert lost["scales"] < lost["rounding to nearest"]
    plain = _quant.grid(weight, _quant.span(weight, GridFact(bits=3, group_size=8)), GridFact(bits=3, group_size=8))
    assert found[0].grids[0].codes.equal(plain.codes)
    if clip:
        assert lost["scales and narrower steps"] < lost["scales"]
    assert [a.what for a in attempts([weight], [FOUR], gram, None, clip=clip)] == words[: 1 + clip]


# -- the pass ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "opt", "bert"])
def test_before_rounding_the_function_stays(
    kind: str, tiny: Tiny, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[Grid]()

    def put_(linear: torch.nn.Linear, grid: Grid) -> None:
        """Leave the weight as the fold left it, and see that the codes are of this weight."""
        step = spread(grid.scale, grid.codes.shape[1], grid.group_size)
        assert bool(((linear.weight - grid.dequantized()).abs() <= 0.51 * step).all())
        made.append(grid)

    artifact = loud(tiny(kind))
    was = outputs(artifact)
    monkeypatch.setattr("passes._quant.put_", put_)
    monkeypatch.setattr("passes._layerwise.block._check", lambda *_: None)  # that weights are their codes
    after = make(clip=False).run(artifact, context(artifact))
    assert len(made) == len(tree.block_linears(after.model))
    norm = next(n for n, p in tree.norms(after.model).items() if ".0." in n and len(p) == 32)
    assert _masks.same_bits(after.tensor(norm), loud(tiny(kind)).tensor(norm)) == (kind == "bert")
    torch.testing.assert_close(outputs(after), was, rtol=0, atol=1e-5 * float(was.abs().max()))


VARIANTS = [
    {"bits": 3, "symmetric": False}, {"bits": 2, "group_size": 8}, {"exclude": ("v_proj",)}, {"average_bits": 3.5},
    {"bits": 8, "group_size": -1, "activation": "dynamic"}, {"layers": {"down_proj": "float", "q_proj": 8}},
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "given"), [*((k, {}) for k in (*CAUSAL, *ENCODERS)), *(("llama", v) for v in VARIANTS)]
)
def test_every_family_and_setting(kind: str, given: dict[str, Any], tiny: Tiny, context: Any, tmp_path: Path) -> None:
    plugin, artifact = make(**given), loud(tiny(kind))
    planned = plugin.plan(facts_of(artifact))
    after = plugin.run(artifact, context(artifact))
    plugin.ensures(loud(tiny(kind)), after)
    assert planned.admits({n: after.grids[n].fact for n in after.grids})
    assert tree.facts(after.model, after.task).after(grids=planned.grids) == planned
    (tmp_path / "after").mkdir()
    after.save(tmp_path / "after")
    again = Artifact.load(tmp_path / "after")
    assert all(_masks.same_bits(t, again.tensor(n)) for n, t in state(after).items())
    told = after.grids.keys()
    layers = plugin_layers(plugin, artifact, context)
    assert [row[0] for row in layers] == [n for n in planned.shapes if n in told]


def plugin_layers(plugin: Awq, artifact: Artifact, context: Any) -> list[list[Any]]:
    """Return what a run that finds all blocks finished tells of the linears."""
    again = context(artifact)
    report: Any = again.report
    plugin.run(artifact, again)
    layers: list[list[Any]] = report.measured["layers"]
    assert all(row[3] <= row[1] + 1e-9 or "scales" in row[4] for row in layers)
    return layers


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_blocks_of_unlike_shapes(kind: str, tiny: Tiny, context: Any) -> None:
    plugin, artifact = make(group_size=-1), uneven(tiny(kind))
    after = plugin.run(artifact, context(artifact))
    plugin.ensures(uneven(tiny(kind)), after)
    assert after.grids.keys() == tree.block_linears(after.model).keys()


@pytest.mark.parametrize("kind", ["opt", "gpt2"])
def test_loud_channels_cost_less_than_by_rounding(kind: str, tiny: Tiny, context: Any) -> None:
    artifact = loud(tiny(kind))
    given = context(artifact)
    make(bits=3, clip=False).run(artifact, given)
    layers = given.report.measured["layers"]
    after_norms = [row for row in layers if row[0].endswith(("q_proj", "k_proj", "v_proj", "fc1", "c_attn", "c_fc"))]
    assert len(after_norms) == {"opt": 8, "gpt2": 4}[kind]
    assert all(row[4] == "scales" and row[3] < 0.7 * row[1] for row in after_norms)
    assert any("by rounding to nearest; most" in note for note in given.report.notes)


def test_what_held_out_windows_refuse_stays_plain(tiny: Tiny, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(weights: Any, facts: Any, gram: Tensor, pair: Pair) -> Tensor:
        return torch.logspace(-4, 4, pair.channels)

    monkeypatch.setattr("passes.awq.attempt.best", bad)
    artifact = loud(tiny())
    before, given = state(artifact), context(artifact)
    after = make(clip=False).run(artifact, given)
    rtn = Rtn(Rtn.Settings(group_size=16)).run(loud(tiny()), context(artifact, "rtn"))
    assert all(_masks.same_bits(t, rtn.tensor(n)) for n, t in state(after).items())
    assert _masks.same_bits(
        before["model.layers.0.input_layernorm.weight"], after.tensor("model.layers.0.input_layernorm.weight")
    )
    told = "scales did worse than rounding to nearest on held-out windows, which therefore stays, in 14 of 14 linears"
    assert any(note.startswith(told) for note in given.report.notes)


def masked(artifact: Artifact) -> Artifact:
    masks = {}
    for name, linear in tree.block_linears(artifact.model).items():
        masks[name] = _masks.keep_n_of_m(linear.weight.detach().abs(), 2, 4)
        _masks.apply_(linear.weight, masks[name])
    return artifact.after(masks=masks)


@pytest.mark.parametrize("symmetric", [True, False])
def test_masks_stay_and_n_of_m_is_in_the_codes(symmetric: bool, tiny: Tiny, context: Any) -> None:
    plugin, artifact = make(symmetric=symmetric, bits=3), masked(loud(tiny()))
    after = plugin.run(artifact, context(artifact))
    plugin.ensures(masked(loud(tiny())), after)
    for name, mask in after.masks.items():
        grid = after.grids[name]
        stands = grid.codes if grid.zero is None else grid.codes - spread(grid.zero, mask.shape[1], grid.group_size)
        assert not stands[~mask].any()
        assert ((stands != 0).view(len(mask), -1, 4).sum(2) <= 2).all()


class Killed(Exception):
    """As if the process had been killed."""


@pytest.mark.parametrize("stored", [False, True])
def test_a_killed_run_and_weights_on_disk_end_in_the_same_bytes(
    stored: bool, tiny: Tiny, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dense").mkdir()
    loud(tiny("gpt2")).save(tmp_path / "dense")
    once, again = context(tiny("gpt2"), "once"), context(tiny("gpt2"), "again")
    whole = make().run(Artifact.load(tmp_path / "dense"), once)
    calls: list[str] = []

    def dies(*given: Any, **rest: Any) -> Any:
        calls.append("group")
        if len(calls) == 7:  # of four groups of linears in each block
            raise Killed
        return attempts(*given, **rest)

    monkeypatch.setattr("passes.awq.attempts", dies)
    with pytest.raises(Killed):
        make().run(Artifact.load(tmp_path / "dense", stored=stored), again)
    after = make().run(Artifact.load(tmp_path / "dense", stored=stored), again)
    assert len(calls) == 7 + 4
    make().ensures(Artifact.load(tmp_path / "dense", stored=stored), after)
    assert all(_masks.same_bits(t, after.tensor(n)) for n, t in state(whole).items())
    assert all(whole.grids[n].codes.equal(after.grids[n].codes) for n in whole.grids)
    assert once.report.notes[-3:] == again.report.notes[-3:]
    assert once.report.measured["layers"] == again.report.measured["layers"]


def test_codes_may_be_made_once_more_only_where_asked(tiny: Tiny, context: Any, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    Rtn(Rtn.Settings(bits=8)).run(loud(tiny()), context(tiny())).save(tmp_path / "first")
    before, artifact = (Artifact.load(tmp_path / "first") for _ in range(2))
    with pytest.raises(BadSettings) as caught:
        make().plan(facts_of(artifact))
    assert caught.value.key == "again"
    plugin = make(again=True, include=("mlp",))
    after = plugin.run(artifact, context(artifact, "second"))
    plugin.ensures(before, after)
    assert {grid.bits for n, grid in after.grids.items() if "mlp" in n} == {4}
    assert {grid.bits for n, grid in after.grids.items() if "attn" in n} == {8}


def test_values_that_are_not_finite_are_told_by_name(tiny: Tiny, context: Any) -> None:
    artifact = tiny()
    artifact.model.get_parameter("model.layers.1.mlp.down_proj.weight").data[0, 0] = torch.inf
    with pytest.raises(BadModel, match=r"model.layers.1.mlp.down_proj: holds weights that are NaN or infinite"):
        make().run(artifact, context(artifact))


def test_the_cost_grows_with_the_searches(tiny: Tiny) -> None:
    facts = tree.facts(tiny().model, "causal-lm")
    plain, clipped = make(clip=False).estimate(facts), make().estimate(facts)
    alone = make(clip=False, include=("q_proj",)).estimate(facts)
    assert clipped.seconds > plain.seconds > alone.seconds > 0
    assert plain.peak_mib > 4 * facts.parameters / 2**20


DAMAGE = [
    ("model.embed_tokens.weight", "embed_tokens.weight: changed"),
    ("model.layers.0.self_attn.q_proj.bias", "q_proj.bias: changed"),
    ("model.layers.0.input_layernorm.weight", "codes are not the nearest to what their scaled weights are"),
    ("model.layers.1.self_attn.q_proj.weight", "differ from what their codes stand for"),
]


@pytest.mark.parametrize(("name", "expected"), DAMAGE)
def test_ensures_finds_damage(name: str, expected: str, tiny: Tiny, context: Any) -> None:
    after = make().run(loud(tiny("qwen2")), context(tiny("qwen2")))
    make().ensures(loud(tiny("qwen2")), after)
    after.model.get_parameter(name).data[0] *= 1.5
    with pytest.raises(BrokenPromise, match=expected):
        make().ensures(loud(tiny("qwen2")), after)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.v_proj.bias", "model.layers.1.input_layernorm.weight"])
def test_ensures_finds_what_no_division_does(name: str, tiny: Tiny, context: Any) -> None:
    after = make().run(loud(tiny("qwen2")), context(tiny("qwen2")))
    for value in (0.0, -1.0, torch.nan):
        after.model.get_parameter(name).data[3] = value * after.model.get_parameter(name).data[3]
        with pytest.raises(BrokenPromise, match="is more than divided by scales above 0"):
            make().ensures(loud(tiny("qwen2")), after)


def test_ensures_finds_other_codes_and_a_fold_that_is_missing(tiny: Tiny, context: Any) -> None:
    after = make().run(loud(tiny()), context(tiny()))
    name = "model.layers.0.self_attn.k_proj"
    for other in (0, 7):
        grid = after.grids[name]
        codes = grid.codes.clone()
        codes[0] = other
        changed = Grid(bits=4, group_size=16, codes=codes, scale=grid.scale)
        linear: Any = after.model.get_submodule(name)
        kept = linear.weight.detach().clone()
        _quant.put_(linear, changed)
        with pytest.raises(BrokenPromise, match="codes are not the nearest"):
            make().ensures(loud(tiny()), after.after(grids={**after.grids, name: changed}))
        linear.weight.data.copy_(kept)
    norm = "model.layers.0.input_layernorm.weight"
    after.model.get_parameter(norm).data.copy_(loud(tiny()).tensor(norm))
    with pytest.raises(BrokenPromise, match="codes are not the nearest"):
        make().ensures(loud(tiny()), after)
