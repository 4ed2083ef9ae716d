"""SmoothQuant: the formula by hand, what it leaves of the function, what it does for integers, and its promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.errors import BadModel, BadSettings, BrokenPromise
from passes._folding import Pair, pairs_in
from passes._layerwise import Layer, LayerwiseSettings, walk_
from passes._masks import same_bits
from passes.smoothquant import SmoothQuant, scale
from tests.conftest import CAUSAL, ENCODERS, loud, outputs, state, uneven

Tiny = Callable[..., Artifact]


def make(**given: Any) -> SmoothQuant:
    return SmoothQuant(SmoothQuant.Settings(batch=4, **given))


def test_the_formula_by_hand() -> None:
    pair = Pair(block="b", before="n", after=("q", "k"), linear=False, channels=4, width=4)
    peak, q, k = torch.tensor([8.0, 2, 0, 3]), torch.tensor([[1.0, -4, 1, 0], [-2, 3, 1, 0]]), torch.zeros(1, 4)
    assert scale(peak, [q, k], pair, 0.5).tolist() == pytest.approx([2, 0.5**0.5, 1, 1])
    k[0, 0] = -8
    assert scale(peak, [q, k], pair, 0.5).tolist() == pytest.approx([1, 0.5**0.5, 1, 1])
    assert scale(peak, [q, k], pair, 1).tolist() == [8, 2, 1, 1]
    assert scale(peak, [q, k], pair, 0).tolist() == [0.125, 0.25, 1, 1]
    heads = Pair(block="b", before="v", after=("o",), linear=True, channels=2, each=2, width=1)
    read, o = torch.tensor([1.0, 8, 5, 3]), torch.tensor([[2.0, 1, 5, 1], [0, 1, 2, 1]])
    assert scale(read, [o], heads, 0.5).tolist() == pytest.approx([2, 1])  # inputs 0 and 1 read the first channel


@pytest.mark.parametrize("change", [loud, uneven], ids=["loud", "uneven"])
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_every_family_gives_what_it_gave(kind: str, change: Callable[..., Artifact], tiny: Tiny, context: Any) -> None:
    before, artifact = change(tiny(kind)), change(tiny(kind))
    plugin, was = make(), outputs(artifact)
    facts = tree.facts(artifact.model, artifact.task)
    assert plugin.plan(facts) == facts
    after = plugin.run(artifact, context(artifact))
    assert tree.facts(after.model, after.task) == facts
    plugin.ensures(before, after)
    torch.testing.assert_close(outputs(after), was, rtol=0, atol=1e-5 * float(was.abs().max()))
    changed = {n for n, t in state(after).items() if not same_bits(t, before.tensor(n))}
    modules = {n for p in pairs_in(after, facts.shapes) for n in (p.before, *p.after)}
    assert {n.rpartition(".")[0] for n in changed} == modules


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bert"])
def test_inputs_and_weights_end_up_with_the_same_range(kind: str, tiny: Tiny, context: Any) -> None:
    artifact = make().run(loud(tiny(kind)), context(tiny(kind)))
    found: dict[str, Layer] = {}

    def look(layers: Sequence[Layer]) -> dict[str, Tensor]:
        found.update({layer.name: layer for layer in layers})
        return {}

    names = list(tree.block_linears(artifact.model))
    walk_(artifact, names, LayerwiseSettings(), context(artifact, "look"), look, gram=False)
    every = pairs_in(artifact, names)
    divided = {pair.before for pair in every}  # whose rows a later pair divided
    checked = [pair for pair in every if not divided & set(pair.after)]
    for pair in checked:
        layers = [found[n] for n in pair.after]
        assert layers[0].inputs.peak is not None
        largest = torch.stack([la.linear.weight.abs().amax(0) for la in layers]).amax(0)
        peaks, weights = (pair.gathered(t).amax(1) for t in (layers[0].inputs.peak, largest))
        torch.testing.assert_close(peaks, weights, rtol=1e-3, atol=1e-5)
    assert len(checked) == (2 if kind == "bert" else 4)


def _off_in_integers(artifact: Artifact) -> float:
    """Return how far logits are off when linears read and have integers of 8 bits: a step a token, a step a row."""
    was = outputs(artifact)

    def rounded(values: Tensor) -> Tensor:
        step = values.abs().amax(-1, keepdim=True) / 127
        return (values / step).round() * step

    hooks = []
    for linear in tree.block_linears(artifact.model).values():
        linear.weight.data = rounded(linear.weight.data)
        hooks.append(linear.register_forward_pre_hook(lambda _, args: (rounded(args[0]),)))
    off = (outputs(artifact) - was).norm() / was.norm()
    for hook in hooks:
        hook.remove()
    return float(off)


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_integers_lose_less_where_channels_are_far_apart(kind: str, tiny: Tiny, context: Any) -> None:
    plain = _off_in_integers(loud(tiny(kind), 40, ".0."))
    smooth = _off_in_integers(make().run(loud(tiny(kind), 40, ".0."), context(tiny(kind))))
    assert smooth < 0.7 * plain


@pytest.mark.parametrize("stored", [False, True])
def test_a_killed_run_and_weights_on_disk_end_in_the_same_bytes(
    stored: bool, tiny: Tiny, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dense").mkdir()
    loud(tiny("gpt2")).save(tmp_path / "dense")
    whole = make().run(Artifact.load(tmp_path / "dense"), context(tiny("gpt2"), "whole"))

    class Killed(Exception):
        pass

    calls: list[str] = []

    def dies(peak: Tensor, weights: Sequence[Tensor], pair: Pair, strength: float) -> Tensor:
        calls.append(pair.before)
        if len(calls) == 5:
            raise Killed
        return scale(peak, weights, pair, strength)

    monkeypatch.setattr("passes.smoothquant.scale", dies)
    again = context(tiny("gpt2"), "again")
    with pytest.raises(Killed):
        make().run(Artifact.load(tmp_path / "dense", stored=stored), again)
    after = make().run(Artifact.load(tmp_path / "dense", stored=stored), again)
    assert len(calls) == 5 + 3
    make().ensures(Artifact.load(tmp_path / "dense", stored=stored), after)
    assert all(same_bits(t, after.tensor(n)) for n, t in state(whole).items())


def test_masks_and_what_is_excluded_stay(tiny: Tiny, context: Any) -> None:
    def masked() -> Artifact:
        artifact, masks = loud(tiny()), {}
        for name, linear in tree.block_linears(artifact.model).items():
            masks[name] = (torch.arange(linear.weight.numel()) % 4 < 2).view(linear.weight.shape)
            linear.weight.data.masked_fill_(~masks[name], 0)
        return artifact.after(masks=masks)

    plugin = make(exclude=("up_proj", "model.layers.1.self_attn.k_proj"))
    before = masked()
    after = plugin.run(masked(), context(masked()))
    plugin.ensures(before, after)
    for name, mask in after.masks.items():
        assert mask.equal(before.masks[name])
        assert not after.model.get_submodule(name).weight[~mask].any()  # type: ignore[index]
    changed = {n for n, t in state(after).items() if not same_bits(t, before.tensor(n))}
    inside = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    expected = {f"model.layers.0.{n}.weight" for n in inside}
    assert changed == expected | {f"model.layers.1.self_attn.{n}_proj.weight" for n in "vo"}


def test_nothing_to_fold_into_is_told(tiny: Tiny, context: Any) -> None:
    facts = tree.facts(tiny().model, "causal-lm")
    with pytest.raises(BadSettings, match="leaves no linear together with all that its scales would change") as caught:
        make(include=("q_proj",)).plan(facts)
    assert caught.value.key == "include"
    with pytest.raises(BadSettings) as caught:
        make(exclude=("query", "value")).plan(tree.facts(tiny("bert").model, "classification"))
    assert caught.value.key == "exclude"
    artifact = tiny("opt")
    config: Any = artifact.model.config
    config.do_layer_norm_before = False
    with pytest.raises(BadModel, match="comes from nothing that scales fold into"):
        make(include=("fc1",)).run(artifact, context(artifact))


def test_the_cost_grows_with_what_is_looked_at(tiny: Tiny) -> None:
    facts = tree.facts(tiny().model, "causal-lm")
    whole, some = make().estimate(facts), make(include=("mlp",)).estimate(facts)
    assert whole.seconds > some.seconds > 0
    assert whole.peak_mib > 4 * facts.parameters / 2**20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", "embed_tokens.weight: changed"),
        ("model.norm.weight", "norm.weight: changed"),
        ("model.layers.0.self_attn.o_proj.weight", "o_proj: gives something else"),
        ("model.layers.1.input_layernorm.weight", "q_proj: gives something else"),
    ],
)
def test_ensures_finds_damage(name: str, expected: str, tiny: Tiny, context: Any) -> None:
    after = make().run(loud(tiny()), context(tiny()))
    make().ensures(loud(tiny()), after)
    after.model.get_parameter(name).data[0] *= 1.5
    with pytest.raises(BrokenPromise, match=expected):
        make().ensures(loud(tiny()), after)
