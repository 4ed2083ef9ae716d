"""Scales folded through every pair of every family: the function stays, and damage is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.errors import BrokenPromise
from passes._folding import Pair, check, fold_, pairs, pairs_in
from tests.conftest import CAUSAL, ENCODERS, branched, lively, uneven

Tiny = Callable[..., Artifact]
IDS = torch.arange(2, 34).view(2, 16)
LLAMA = [
    ("input_layernorm", "q_proj k_proj v_proj"),
    ("v_proj", "o_proj"),
    ("post_attention_layernorm", "gate_proj up_proj"),
    ("up_proj", "down_proj"),
]
FOUND = {
    "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "llama-tied": LLAMA,
    "gpt2": [("ln_1", "c_attn"), ("c_attn", "c_proj"), ("ln_2", "c_fc")],
    "opt": [("self_attn_layer_norm", "q_proj k_proj v_proj"), ("v_proj", "out_proj"), ("final_layer_norm", "fc1")],
    "bert": [("value", "dense")],
    "roberta": [("value", "dense")],
}  # fmt: skip


def found(artifact: Artifact) -> list[Pair]:
    return pairs_in(artifact, list(tree.block_linears(artifact.model)))


def by_block(artifact: Artifact) -> list[list[Pair]]:
    return [[p for p in found(artifact) if p.block == block] for block in tree.blocks(artifact.model)]


def short(every: list[Pair]) -> list[tuple[str, str]]:
    last = [(p.before.rpartition(".")[2], [n.rpartition(".")[2] for n in p.after]) for p in every]
    return [(before, " ".join(after)) for before, after in last]


def scales(pair: Pair, seed: int) -> Tensor:
    """Return random scales from about 1/8 to 8."""
    return torch.randn(pair.channels, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2).exp()


@torch.no_grad()
def outputs(artifact: Artifact) -> Tensor:
    given: Tensor = artifact.model(IDS)[0]
    return given.double()


def fold_all_(artifact: Artifact) -> int:
    for seed, pair in enumerate(found(artifact)):
        fold_(artifact.model, pair, scales(pair, seed))
    return len(found(artifact))


def copied(artifact: Artifact) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in artifact.model.state_dict().items()}


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
@pytest.mark.parametrize("change", [lambda a: a, uneven, branched], ids=["whole", "uneven", "branched"])
def test_the_function_stays(kind: str, change: Callable[[Artifact], Artifact], tiny: Tiny) -> None:
    artifact = change(tiny(kind))
    if change is not uneven:
        lively(artifact.model)
        for module in tree.block_linears(artifact.model).values():
            module.weight.data /= 4  # lively enough, and rounding stays small
    was, before = outputs(artifact), copied(artifact)
    count = fold_all_(artifact)
    assert count == (2 * len(FOUND[kind]) if change is not uneven else len(FOUND[kind]))
    torch.testing.assert_close(outputs(artifact), was, rtol=0, atol=1e-5 * float(was.abs().max()))
    changed = {n for n, t in artifact.model.state_dict().items() if not torch.equal(t, before[n])}
    may = {name for pair in found(artifact) for name in (pair.before, *pair.after)}
    assert {n.rpartition(".")[0] for n in changed} == may


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_the_pairs_of_every_family(kind: str, tiny: Tiny) -> None:
    artifact = tiny(kind)
    assert [short(inside) for inside in by_block(artifact)] == 2 * [FOUND[kind]]
    assert len(found(artifact)) == 2 * len(FOUND[kind])
    facts = tree.facts(artifact.model, artifact.task)
    assert pairs(facts, facts.shapes) == found(artifact)
    cut = [short(inside) for inside in by_block(uneven(artifact))]
    attention = 2 if len(FOUND[kind]) > 1 else 1
    assert cut == [FOUND[kind][attention:], FOUND[kind][:attention]]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_bare_model_has_the_same_pairs(kind: str, tiny: Tiny) -> None:
    artifact = tiny(kind, task="embedding")
    was = outputs(artifact)
    assert fold_all_(artifact) == 2
    torch.testing.assert_close(outputs(artifact), was, rtol=0, atol=1e-5 * float(was.abs().max()))


def test_norms_after_the_residual_let_nothing_through(tiny: Tiny) -> None:
    artifact = tiny("opt")
    config: Any = artifact.model.config
    config.do_layer_norm_before = False
    for block in tree.blocks(artifact.model).values():
        block.do_layer_norm_before = False  # type: ignore[assignment]
    lively(artifact.model)
    assert [short(inside) for inside in by_block(artifact)] == 2 * [[("v_proj", "out_proj")]]
    was = outputs(artifact)
    assert fold_all_(artifact) == 2
    torch.testing.assert_close(outputs(artifact), was, rtol=0, atol=1e-5 * float(was.abs().max()))


def test_a_norm_without_weights_lets_nothing_through(tiny: Tiny) -> None:
    artifact = tiny("opt")
    name = "model.decoder.layers.0.final_layer_norm"
    tree.replace_(artifact.model, name, torch.nn.LayerNorm(32, elementwise_affine=False))
    assert [len(inside) for inside in by_block(artifact)] == [2, 3]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_inputs_and_channels_of_grouped_heads(kv_heads: int, each: int, width: int) -> None:
    channels = kv_heads * width
    pair = Pair(block="b", before="v", after=("o",), linear=True, channels=channels, each=each, width=width)
    spread = pair.spread(torch.arange(channels))
    query_heads = torch.arange(channels).view(kv_heads, width).repeat_interleave(each, 0)  # as attention repeats keys
    assert spread.equal(query_heads.reshape(-1))
    gathered = pair.gathered(torch.arange(channels * each))
    assert gathered.shape == (channels, each)
    assert (spread[gathered] == torch.arange(channels)[:, None]).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, torch.inf, torch.nan])
def test_scales_that_are_not_above_0_are_refused(bad: float, tiny: Tiny) -> None:
    artifact = tiny()
    pair = found(artifact)[0]
    scale = torch.ones(32)
    scale[3] = bad
    with pytest.raises(ValueError, match="input_layernorm: a scale must be 32 finite values above 0"):
        fold_(artifact.model, pair, scale)
    with pytest.raises(ValueError, match="must be 32"):
        fold_(artifact.model, pair, torch.ones(31))


def test_zeros_stay_zeros_and_half_precision_itself(tiny: Tiny) -> None:
    artifact = tiny()
    artifact.model.bfloat16()
    masks = {}
    for name, linear in tree.block_linears(artifact.model).items():
        masks[name] = torch.rand(linear.weight.shape) < 0.5
        linear.weight.data.masked_fill_(~masks[name], 0)
    fold_all_(artifact)
    for name, linear in tree.block_linears(artifact.model).items():
        assert linear.weight.dtype == torch.bfloat16
        assert (linear.weight != 0).equal(masks[name])


def test_only_pairs_whose_every_linear_is_chosen(tiny: Tiny) -> None:
    artifact = tiny()
    names = [n for n in tree.block_linears(artifact.model) if ".0." in n]

    def left(gone: str) -> list[tuple[str, str]]:
        return short(pairs_in(artifact, [n for n in names if not n.endswith(gone)]))

    assert left("nothing") == LLAMA
    assert left("q_proj") == LLAMA[1:]
    assert left("v_proj") == LLAMA[2:]
    assert left("o_proj") == [LLAMA[0], *LLAMA[2:]]
    assert left("up_proj") == LLAMA[:2]
    assert left("down_proj") == LLAMA[:3]


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_the_promise_holds_after_a_fold_and_sees_damage(kind: str, tiny: Tiny) -> None:
    before, after = lively_(tiny(kind)), lively_(tiny(kind))
    every = found(after)
    fold_all_(after)
    check(before, after, every)
    state = after.model.state_dict()
    for pair in by_block(after)[1]:
        for name in (pair.before, *pair.after):
            for part in ("weight", "bias"):
                tensor = state.get(f"{name}.{part}")
                if tensor is None:
                    continue
                at = (-1,) * tensor.dim()  # of GPT-2's c_attn a value, and no query
                kept = tensor[at].clone()
                tensor[at] += 0.5 * tensor.abs().max()
                with pytest.raises(BrokenPromise, match="gives something else than before"):
                    check(before, after, every)
                tensor[at] = torch.nan
                with pytest.raises(BrokenPromise, match="gives something else than before"):
                    check(before, after, every)
                tensor[at] = kept
    check(before, after, every)


def test_the_promise_sees_zeros_that_came_back(tiny: Tiny) -> None:
    before, after = tiny(), tiny()
    name = "model.layers.1.mlp.down_proj.weight"
    for artifact in (before, after):
        artifact.model.get_parameter(name).data[3] = 0
    check(before, after, found(after))
    after.model.get_parameter(name).data[3, 5] = 1e-9
    with pytest.raises(BrokenPromise, match="down_proj: weights that were zero are not"):
        check(before, after, found(after))


def test_the_promise_sees_fused_queries(tiny: Tiny) -> None:
    before, after = lively_(tiny("gpt2")), lively_(tiny("gpt2"))
    every = [pair for pair in found(after) if pair.linear]  # the values' rows alone
    check(before, after, every)
    with torch.no_grad():
        after.model.get_parameter("transformer.h.1.attn.c_attn.weight")[0] += 1
    with pytest.raises(BrokenPromise, match="c_attn: gives something else"):
        check(before, after, every)


def lively_(artifact: Artifact) -> Artifact:
    lively(artifact.model)
    return artifact
