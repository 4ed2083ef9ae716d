"""Blocks to choose from: the space, how variants begin, what is realised of them, and the folder that keeps them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from compress import files, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.data import DataSettings, Source
from compress.errors import BadModel, BadSettings
from compress.facts import BlockConfig, Facts, MaskFact
from passes import _masks
from passes._library import (
    PARTS,
    Library,
    Part,
    SpaceSettings,
    State,
    Statistics,
    Variant,
    digest,
    initial,
    joined,
    masks_of,
    module,
    realise_,
    state_of,
    statistics,
    swapped,
    variants,
    worth,
)
from passes._library.formulas import led, pooled
from passes._library.worth import contribution, removal_order
from tests.conftest import CAUSAL, ENCODERS, lively, uneven

KINDS = (*CAUSAL, *ENCODERS)
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "llama-tied")
WORDS = "the quick brown fox jumps over the lazy dog a model is pruned and retrained and no zero is lost"
IDS = torch.randint(2, 380, (2, 9), generator=torch.Generator().manual_seed(5))
ATOL = 2e-4  # of logits of tens
Tiny = Callable[..., Artifact]


@pytest.fixture
def alive(tiny: Tiny) -> Tiny:
    """Return a maker of tiny artifacts whose biases and norms tell."""

    def make(kind: str = "llama", **given: Any) -> Artifact:
        artifact = tiny(kind, **given)
        lively(artifact.model)
        return artifact

    return make


@pytest.fixture
def context(tmp_path: Path, tiny: Tiny) -> Callable[..., Context]:
    text, words = tmp_path / "text.txt", WORDS.split()
    text.write_text(" ".join(words[(i * i) % len(words)] for i in range(300)))
    rows = tmp_path / "classes.csv"
    rows.write_text("text,label\n" + "".join(f"{' '.join(words[i : i + 1 + i % 6])},{i % 2}\n" for i in range(12)))

    def make(artifact: Artifact, folder: str = "run") -> Context:
        (tmp_path / folder).mkdir(exist_ok=True)
        source = text if artifact.task == "causal-lm" else rows
        table = DataSettings(source=str(source), windows=8, length=12)
        data = {"calibration": Source(table, "calibration", artifact.task)}
        return Context(folder=tmp_path / folder, data=data, report=QuietReport())

    return make


def facts_of(artifact: Artifact, pattern: str = "unstructured") -> Facts:
    masks = {n: MaskFact(pattern, 0.5) for n in artifact.masks}
    return tree.facts(artifact.model, artifact.task).after(masks=masks)


def shapes(artifact: Artifact, **given: Any) -> dict[str, BlockConfig]:
    return {v.key: v.config for v in variants(facts_of(artifact), SpaceSettings(**{"multiple": 8, **given}))}


def one(artifact: Artifact, part: Part, name: str, **changes: Any) -> Variant:
    """Return a variant of the first block by its shape."""
    config = dataclasses.replace(tree.layout(artifact.model)[0], **changes)
    return Variant(block=0, part=part, name=name, config=config)


@torch.no_grad()
def logits(artifact: Artifact, ids: Tensor = IDS) -> Tensor:
    found: Tensor = artifact.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


def outputs(artifact: Artifact, variant: Variant, state: State, ids: Tensor = IDS) -> Tensor:
    with swapped(artifact.model, variant.block, module(artifact, variant, state)):
        return logits(artifact, ids)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=1e-4)


def first(artifact: Artifact) -> Any:
    return next(iter(tree.blocks(artifact.model).values()))


# -- the space --------------------------------------------------------------------------------------------------------


def test_the_space_of_a_model(tiny: Tiny) -> None:
    changes: dict[str, dict[str, Any]] = {
        "attention-parent": {},
        "attention-kv-50%": {"kv_heads": 1},  # a quarter of two heads is one too
        "attention-linear": {"heads": 0, "kv_heads": 0, "linear_attention": True},
        "attention-none": {"heads": 0, "kv_heads": 0},
        "ffn-parent": {},
        "ffn-75%": {"ffn": 48},
        "ffn-50%": {"ffn": 32},
        "ffn-25%": {"ffn": 16},
        "ffn-linear": {"ffn": 0, "linear_ffn": True},
        "ffn-none": {"ffn": 0},
    }
    whole = BlockConfig(heads=4, kv_heads=2, head_dim=8, ffn=64)
    expected = {f"0{i}-{key}": dataclasses.replace(whole, **new) for i in (0, 1) for key, new in changes.items()}
    assert shapes(tiny("llama")) == expected
    order = [(v.block, v.part, v.parent) for v in variants(facts_of(tiny("llama")), SpaceSettings(multiple=8))]
    assert [o for o in order if o[2]] == [(i, part, True) for i in (0, 1) for part in PARTS]
    assert order == sorted(order, key=lambda o: (o[0], PARTS.index(o[1]), not o[2]))


@given(share=st.floats(0.001, 1), multiple=st.integers(1, 200))
def test_widths_are_multiples_and_never_beyond_the_parent(share: float, multiple: int) -> None:
    block = BlockConfig(heads=4, kv_heads=2, head_dim=8, ffn=96)
    shapes = {"model.layers.0.mlp.down_proj": (32, 96)}
    shapes |= {f"model.layers.0.mlp.{n}_proj": (96, 32) for n in ("gate", "up")}
    facts = Facts(
        family="llama", task="causal-lm", tied=False, shapes=shapes, biases={}, norms={}, head=None, parameters=0,
        vocabulary=1, positions=None, layout=(block,),
    )  # fmt: skip
    asked = SpaceSettings(ffn=(f"{100 * share:.6f}%", "none"), multiple=multiple)
    *_, width, none = (v.config.ffn for v in variants(facts, asked) if v.part == "ffn")
    assert none == 0
    assert width == 96 or (width % multiple == 0 and 0 < width < 96)
    assert abs(width - share * 96) <= max(multiple / 2, multiple - share * 96) + 1e-3


@pytest.mark.parametrize(
    ("asked", "config"),
    [("kv 1", {"kv_heads": 1}), ("kv   4", {"kv_heads": 4}), ("kv 40%", {"kv_heads": 2}), ("kv 9%", {"kv_heads": 1})],
)
def test_key_heads_by_number_and_share(tiny: Tiny, asked: str, config: dict[str, Any]) -> None:
    facts = facts_of(tiny("llama"))
    block = BlockConfig(heads=16, kv_heads=8, head_dim=8, ffn=64)
    facts = facts.after(layout=(block, dataclasses.replace(block, heads=2, kv_heads=2)))
    found = variants(facts, SpaceSettings(attention=(asked, "none"), multiple=8))
    assert found[1].config == dataclasses.replace(block, **({"kv_heads": 4} if asked == "kv 40%" else config))


def test_blocks_of_unlike_shapes_have_unlike_variants(tiny: Tiny) -> None:
    artifact = uneven(tiny("llama"))
    assert list(shapes(artifact, multiple=1, ffn=("50%", "linear", "none"))) == [
        "00-attention-parent", "00-ffn-parent", "00-ffn-50%", "00-ffn-linear", "00-ffn-none",
        "01-attention-parent", "01-attention-linear", "01-attention-none", "01-ffn-parent",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bert", "roberta"])
def test_families_without_groups_keep_their_key_heads(tiny: Tiny, kind: str) -> None:
    assert not any("kv" in key for key in shapes(tiny(kind)))
    with pytest.raises(BadSettings, match=rf"a key head of {kind} serves one query head.*got 'kv 50%'") as caught:
        shapes(tiny(kind), attention=("parent", "kv 50%"))
    assert caught.value.key == "attention"


@pytest.mark.parametrize(
    ("given", "key", "text"),
    [
        ({"attention": ("kv 3",)}, "attention", "3 does not divide the 4 key heads of block 0, got 'kv 3'; 1 or 2"),
        ({"attention": ("kv 8",)}, "attention", "no block can have it, got 'kv 8'"),
        (
            {"attention": (), "ffn": ("90%",), "multiple": 64},
            "ffn",
            "nothing could be chosen .* 4 key heads",
        ),
        ({"include": ("q_proj",)}, "ffn", "nothing could be chosen"),
        ({"include": ("nowhere",)}, "include", "'nowhere' matches no linear"),
    ],
)
def test_impossible_spaces_are_refused(tiny: Tiny, given: dict[str, Any], key: str, text: str) -> None:
    facts = facts_of(tiny("llama"))
    layout = tuple(dataclasses.replace(b, kv_heads=4) for b in facts.layout)
    with pytest.raises(BadSettings, match=text) as caught:
        variants(facts.after(layout=layout), SpaceSettings(**{"multiple": 8, **given}))
    assert caught.value.key == key


@pytest.mark.parametrize("given", [{"ffn": ("half",)}, {"ffn": ("0%",)}, {"attention": ("kv 0",)}, {"ffn": ("120%",)}])
def test_unknown_variants_are_refused_at_once(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="must be 'parent', 'linear', 'none'"):
        SpaceSettings(**given)


def test_a_branch_is_refused(tiny: Tiny) -> None:
    with pytest.raises(BadSettings, match=r"gate_proj has a branch beside its weight.*; choose blocks before"):
        variants(facts_of(tiny("llama")).after(branches={"model.layers.0.mlp.gate_proj": 4}), SpaceSettings())


def test_masks_allow_selection_alone(tiny: Tiny) -> None:
    facts = facts_of(tiny("llama"))
    facts = facts.after(masks={n: MaskFact("2:4", 0.5) for n in facts.shapes})
    asked = {"attention": ("kv 1", "none"), "ffn": ("30%", "none"), "multiple": 6}

    def refused(key: str, text: str, **given: Any) -> None:
        with pytest.raises(BadSettings, match=text) as caught:
            variants(facts, SpaceSettings(**{**asked, **given}))
        assert caught.value.key == key

    refused("kv", r"fill the zeros of model.layers.0.self_attn.q_proj, got 'kv 1' with 'pool'; 'select'", kv="pool")
    refused("attention", r"'linear' is a product .* fills the zeros of model", attention=("linear",))
    refused(
        "ffn",
        r"'linear' is a product .* fills the zeros of model.layers.0.mlp.gate_proj",
        ffn=("linear",),
        attention=(),
    )
    found = {v.key: v for v in variants(facts, SpaceSettings(**asked))}
    assert found["00-attention-kv-1"].select
    assert (found["00-ffn-30%"].config.ffn, found["00-ffn-30%"].group) == (24, 4)  # of 19.2, in twelves
    left = {v.name for v in variants(facts, SpaceSettings(multiple=8)) if v.part == "attention"}
    assert left == {"parent", "kv 50%", "none"}  # 'linear' is of the defaults, which are not held against anyone
    facts = facts.after(masks={n: MaskFact("1:32", 0.5) for n in facts.shapes})
    refused("attention", "a mask in groups of 32, and a key head 16 columns, which cut them")


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_a_block_is_of_one_part(tiny: Tiny, kind: str) -> None:
    artifact = tiny(kind)
    table, block = tree.family(artifact.model), first(artifact)
    parts = [set(state_of(block, table, part)) for part in PARTS]
    assert parts[0] | parts[1] == {n for n, _ in block.named_parameters()}
    assert not parts[0] & parts[1]


# -- how variants begin -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_is_as_it_was(alive: Tiny, kind: str) -> None:
    artifact, expected = alive(kind), logits(alive(kind))
    shape = tree.layout(artifact.model)[0]
    told = Statistics(heads=torch.rand(shape.kv_heads), neurons=torch.rand(shape.ffn))
    for variant in (one(artifact, "attention", "kv 100%"), one(artifact, "ffn", "100%")):
        state = initial(artifact, variant, told)
        assert torch.equal(outputs(artifact, variant, state), expected)
    if kind in GROUPED:
        variant = dataclasses.replace(one(artifact, "attention", "kv 100%"), select=True)
        assert torch.equal(outputs(artifact, variant, initial(artifact, variant, told)), expected)
    assert torch.equal(logits(artifact), expected)


@given(heads=st.integers(1, 6), width=st.integers(1, 4))
def test_pools_of_one_are_the_heads(heads: int, width: int) -> None:
    rows = torch.randn(heads * width, 5)
    assert torch.equal(pooled(rows, heads, heads), rows)
    assert torch.equal(led(torch.arange(heads), heads).view(-1), torch.arange(heads))


@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize("kv", ["pool", "select"])
def test_fewer_key_heads_lose_nothing_where_they_are_alike(alive: Tiny, kind: str, kv: str) -> None:
    """Pooled: heads that are equal; selected: a head whose queries the output projection does not read."""
    artifact = alive(kind)
    shape = tree.layout(artifact.model)[0]
    query, key, value, output = (first(artifact).get_submodule(n) for n in tree.family(artifact.model).qkvo)
    width = shape.head_dim
    if kv == "pool":
        for tensor in (t for linear in (key, value) for t in linear.parameters()):
            tensor.data[width:] = tensor.data[:width]
    else:
        output.weight.data[:, : 2 * width] = 0  # of the first key head, so that the second must lead
    expected = logits(artifact)
    variant = dataclasses.replace(one(artifact, "attention", "kv 1", kv_heads=1), select=kv == "select")
    state = initial(artifact, variant, Statistics(heads=torch.tensor([0.5, 1.0])))
    assert state["self_attn.k_proj.weight"].shape == (width, 32)
    close(outputs(artifact, variant, state), expected)
    assert query.weight.shape == (4 * width, 32)  # the parent's own


def test_selected_heads_lead_and_the_others_queries_add_nothing(alive: Tiny) -> None:
    assert led(torch.tensor([1, 4]), 6).tolist() == [[1, 0, 2], [4, 3, 5]]
    artifact = alive("llama")
    variant = dataclasses.replace(one(artifact, "attention", "kv 1", kv_heads=1), select=True)
    state = initial(artifact, variant, Statistics(heads=torch.tensor([0.5, 1.0])))
    found = outputs(artifact, variant, state)
    first(artifact).self_attn.o_proj.weight.data[:, :16] = 0
    close(found, logits(artifact))


@pytest.mark.parametrize("kv", ["pool", "select"])
def test_groups_of_several_heads_stay_aligned(tiny: Tiny, kv: str) -> None:
    """Eight query and four key heads become two: pairs that are equal, or the second and the last of them."""
    torch.manual_seed(0)
    config = copy.deepcopy(tiny("qwen2").model.config)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 8, 4, 4
    model: Any = type(tiny("qwen2").model)(config)
    artifact = tiny("qwen2").after(model=lively(model.eval()))
    attention = first(artifact).self_attn
    variant = dataclasses.replace(one(artifact, "attention", "kv 2", kv_heads=2), select=kv == "select")
    if kv == "pool":
        for tensor in (t.data.view(2, 2, 4, -1) for m in (attention.k_proj, attention.v_proj) for t in m.parameters()):
            tensor[:, 1] = tensor[:, 0]
    state = initial(artifact, variant, Statistics(heads=torch.tensor([0.5, 1.0, 0.2, 0.8])))
    found = outputs(artifact, variant, state)
    if kv == "select":
        attention.o_proj.weight.data.view(-1, 4, 8)[:, [0, 2]] = 0
    close(found, logits(artifact))


@pytest.mark.parametrize(
    ("kind", "ranking"), [*((k, "iterative") for k in KINDS), ("llama", "oneshot"), ("bert", "oneshot")]
)
def test_neurons_that_nobody_reads_go_first(
    alive: Tiny, context: Callable[..., Context], kind: str, ranking: Any
) -> None:
    artifact = alive(kind)
    table = tree.family(artifact.model)
    first(artifact).get_submodule(table.down).weight.data[:, 1::2] = 0
    if kind == "opt":  # some of its neurons else give 0 on all calibration windows, and are worth as little
        first(artifact).get_submodule(table.up[0]).bias.data += 20
    expected = logits(artifact)
    variant = one(artifact, "ffn", "50%", ffn=tree.layout(artifact.model)[0].ffn // 2)
    found = statistics(artifact, [variant], SpaceSettings(ranking=ranking), context(artifact))
    assert found[1] == Statistics()
    state = initial(artifact, variant, found[0])
    close(outputs(artifact, variant, state), expected)


def test_neurons_are_ranked_alike_where_what_they_give_does_not_fit_in_memory(
    alive: Tiny, context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = alive("llama")
    variant = one(artifact, "ffn", "50%", ffn=tree.layout(artifact.model)[0].ffn // 2)
    settings = SpaceSettings(ranking="iterative")
    held = statistics(artifact, [variant], settings, context(artifact, folder="held"))
    monkeypatch.setattr("passes._library.worth.MEMORY", 0)
    read = statistics(artifact, [variant], settings, context(artifact, folder="read"))
    assert held[0].neurons is not None
    assert read[0].neurons is not None
    assert held[0].neurons.tolist() == read[0].neurons.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_linear_attention_is_attention_to_oneself(alive: Tiny, kind: str) -> None:
    artifact = alive(kind)
    variant = one(artifact, "attention", "linear", heads=0, kv_heads=0, linear_attention=True)
    state = initial(artifact, variant, Statistics())
    close(outputs(artifact, variant, state, IDS[:, :1]), logits(artifact, IDS[:, :1]))
    assert not torch.allclose(outputs(artifact, variant, state), logits(artifact), atol=ATOL)


@contextmanager
def without_gate(block: Any, kind: str) -> Iterator[None]:
    """Let the gate's activation be 1 inside; the activation of an FFN without gate, the identity."""
    holder, name = next(
        (m, n)
        for m, n in (
            (getattr(block, "mlp", block), "act_fn"), (getattr(block, "mlp", block), "act"), (block, "activation_fn"),
            (getattr(block, "intermediate", block), "intermediate_act_fn"),
        )
        if hasattr(m, n)
    )  # fmt: skip
    own = getattr(holder, name)
    delattr(holder, name)
    setattr(holder, name, torch.ones_like if kind in GROUPED else lambda x: x)
    yield
    delattr(holder, name)
    setattr(holder, name, own)


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_ffn_is_the_ffn_whose_gate_is_open(alive: Tiny, kind: str) -> None:
    artifact = alive(kind)
    variant = one(artifact, "ffn", "linear", ffn=0, linear_ffn=True)
    found = outputs(artifact, variant, initial(artifact, variant, Statistics()))
    with without_gate(first(artifact), kind):
        close(found, logits(artifact))
    assert not torch.allclose(found, logits(artifact), atol=ATOL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_the_part_deleted(alive: Tiny, kind: str, part: Part) -> None:
    artifact = alive(kind)
    gone: dict[str, Any] = {"heads": 0, "kv_heads": 0} if part == "attention" else {"ffn": 0}
    variant = one(artifact, part, "none", **gone)
    found = outputs(artifact, variant, initial(artifact, variant, Statistics()))
    table = tree.family(artifact.model)
    last = first(artifact).get_submodule(table.qkvo[-1] if part == "attention" else table.down)
    for tensor in last.parameters():
        tensor.data.zero_()
    close(found, logits(artifact))


# -- what units are worth ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_contributions_are_norms_of_what_would_be_gone(
    units: int, width: int, out: int, tokens: int, some_gone: bool
) -> None:
    random = torch.Generator().manual_seed(units * 1000 + width * 100 + out * 10 + tokens)
    x, weight = torch.randn(tokens, units * width, generator=random), torch.randn(out, units * width, generator=random)
    gone = torch.randn(tokens, out, generator=random) if some_gone else torch.zeros(tokens, out)
    found = contribution(x, weight, units, gone if some_gone else None)
    for unit in range(units):
        at = slice(unit * width, (unit + 1) * width)
        each = (gone + x[:, at] @ weight[:, at].t()).double().norm(dim=1)
        torch.testing.assert_close(found[unit], each.sum(), rtol=1e-4, atol=1e-5)


def test_contribution_of_a_neuron_is_its_output_times_the_norm_of_its_column() -> None:
    x, weight = torch.randn(5000, 7), torch.randn(3, 7)  # more rows than are taken at once
    torch.testing.assert_close(contribution(x, weight, 7).float(), x.abs().sum(0) * weight.norm(dim=0))


def test_removal_order_is_greedy() -> None:
    """Sixteen units or fewer go one by one, each the one whose absence beside the others' costs least."""
    x, weight = torch.randn(50, 10), torch.randn(4, 10)
    weight[:, 3] = -weight[:, 8]  # two that all but make up for each other: gone together, they cost little
    x[:, 3] = x[:, 8] * 1.01
    found = removal_order(lambda: iter((x[:20], x[20:40], x[40:])), weight, 10)
    gone: list[int] = []
    while len(gone) < 10:
        cost = {
            unit: float((x[:, [*gone, unit]] @ weight[:, [*gone, unit]].t()).norm(dim=1).sum())
            for unit in range(10)
            if unit not in gone
        }
        gone.append(min(cost, key=lambda u: cost[u]))
    assert found.argsort().tolist() == gone
    assert abs(found[3] - found[8]) == 1
    alone = contribution(x, weight, 10)
    assert alone.argsort().tolist() != gone


def test_heads_are_ranked_by_what_they_add(alive: Tiny, context: Callable[..., Context]) -> None:
    artifact = alive("qwen3")
    seen: list[Tensor] = []
    output = first(artifact).self_attn.o_proj
    variant = dataclasses.replace(one(artifact, "attention", "kv 1", kv_heads=1), select=True)
    hook = output.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = statistics(artifact, [variant], SpaceSettings(), context(artifact))
    hook.remove()
    read = torch.cat([s.flatten(0, 1) for s in seen])
    parts = [(read[:, at : at + 32] @ output.weight[:, at : at + 32].t()).norm(dim=1).sum() for at in (0, 32)]
    torch.testing.assert_close(found[0].heads, torch.stack(parts).detach(), rtol=1e-4, atol=0)


def test_statistics_resume_to_the_same_bits(
    alive: Tiny, context: Callable[..., Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = alive("llama")
    wanted = [v for v in variants(facts_of(artifact), SpaceSettings(multiple=8, kv="select")) if not v.parent]
    asked = SpaceSettings(multiple=8, kv="select")
    whole = statistics(artifact, wanted, asked, context(artifact, "whole"))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worth, "pass_", killed)  # the first block is judged, and no window has passed it
    with pytest.raises(KeyboardInterrupt):
        statistics(artifact, wanted, asked, context(artifact, "killed"))
    assert [p.name for p in (tmp_path / "killed" / "worth").glob("*.safetensors")] == ["00000.safetensors"]
    monkeypatch.undo()
    again = statistics(artifact, wanted, asked, context(artifact, "killed"))
    for index in (0, 1):
        for a, b in zip(dataclasses.astuple(whole[index]), dataclasses.astuple(again[index]), strict=True):
            assert _masks.same_bits(a, b)
    monkeypatch.setattr(worth, "windows", None)  # all is there, so nothing is walked
    assert statistics(artifact, wanted, asked, context(artifact, "killed")).keys() == {0, 1}
    assert statistics(artifact, [], asked, context(artifact, "nothing")) == {0: Statistics(), 1: Statistics()}
    monkeypatch.undo()
    first(artifact).mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(BadModel, match=r"model.layers.0: what its (neurons|heads) give is NaN or infinite"):
        statistics(artifact, wanted, asked, context(artifact, "bad"))


# -- blocks put in ----------------------------------------------------------------------------------------------------


def begun(artifact: Artifact, **given: Any) -> tuple[dict[str, Variant], dict[str, State]]:
    """Return all variants and their states, by key, from random statistics."""
    asked = SpaceSettings(**{"multiple": 8, **given})
    found = {v.key: v for v in variants(facts_of(artifact, "2:4"), asked)}
    random = torch.Generator().manual_seed(1)
    told = [
        Statistics(heads=torch.rand(b.kv_heads, generator=random), neurons=torch.rand(b.ffn, generator=random))
        for b in tree.layout(artifact.model)
    ]
    return found, {key: initial(artifact, v, told[v.block]) for key, v in found.items()}


def picked(found: Mapping[str, Variant], *keys: str) -> dict[tuple[int, str], Variant]:
    return {(found[key].block, found[key].part): found[key] for key in keys}


MIXED = ("00-attention-none", "00-ffn-50%", "01-attention-linear", "01-ffn-linear")


@pytest.mark.parametrize("kind", KINDS)
def test_the_parent_everywhere_is_the_parent(alive: Tiny, kind: str) -> None:
    artifact, expected = alive(kind), logits(alive(kind))
    found, states = begun(artifact)
    parents = picked(found, *(key for key, v in found.items() if v.parent))
    assert len(parents) == 4
    for variant in parents.values():
        assert torch.equal(outputs(artifact, variant, {}), expected)
        assert torch.equal(outputs(artifact, variant, states[variant.key]), expected)
    before = digest(artifact)
    after = realise_(artifact, parents, {})
    assert digest(after) == before
    assert torch.equal(logits(after), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_realised_saved_loaded(alive: Tiny, tmp_path: Path, kind: str) -> None:
    artifact = alive(kind)
    found, states = begun(artifact)
    both = [[found[k] for k in MIXED[at : at + 2]] for at in (0, 2)]
    made = [module(artifact, pair, {**states[pair[0].key], **states[pair[1].key]}) for pair in both]
    with swapped(artifact.model, 0, made[0]), swapped(artifact.model, 1, made[1]):
        expected = logits(artifact)
    layout = tree.layout(artifact.model)
    after = realise_(artifact, picked(found, *MIXED), states)
    assert torch.equal(logits(after), expected)
    assert tree.layout(after.model) == tuple(joined(b, pair) for b, pair in zip(layout, both, strict=True))
    assert tree.layout(after.model)[0].ffn == layout[0].ffn // 2
    (tmp_path / "after").mkdir()
    after.save(tmp_path / "after")
    again = Artifact.load(tmp_path / "after")
    assert tree.layout(again.model) == tree.layout(after.model)
    assert torch.equal(logits(again), expected)


@pytest.mark.parametrize("kind", ["llama-tied", "qwen2", "gpt2", "bert"])
def test_a_stored_model_is_realised_alike(alive: Tiny, tmp_path: Path, kind: str) -> None:
    artifact = alive(kind)
    for name in ("given", "after"):
        (tmp_path / name).mkdir()
    artifact.save(tmp_path / "given")
    stored = Artifact.load(tmp_path / "given", stored=True, changes=tmp_path / "changes")
    assert digest(stored) == digest(artifact)
    found, states = begun(stored)
    realise_(stored, picked(found, *MIXED), states).save(tmp_path / "after")
    assert all(p.is_meta for p in stored.model.get_submodule(next(iter(tree.blocks(stored.model)))).parameters())
    expected = logits(realise_(artifact, picked(*(begun(artifact)[:1]), *MIXED), begun(alive(kind))[1]))
    assert torch.equal(logits(Artifact.load(tmp_path / "after")), expected)


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("other", ["none", "linear"])
def test_a_cache_behind_a_first_block_without_attention(alive: Tiny, kind: str, other: str) -> None:
    artifact = alive(kind)
    found, states = begun(artifact)
    model = realise_(artifact, picked(found, f"00-attention-{other}"), states).model
    with torch.no_grad():
        whole = model(input_ids=IDS).logits
        seen = model(input_ids=IDS[:, :4], use_cache=True)
        parts = [seen.logits]
        for at in range(4, IDS.shape[1]):
            seen = model(input_ids=IDS[:, at : at + 1], past_key_values=seen.past_key_values, use_cache=True)
            parts.append(seen.logits)
    close(torch.cat(parts, 1), whole)


def test_a_made_block_is_its_own(alive: Tiny) -> None:
    artifact = alive("llama")
    before = {n: t.clone() for n, t in artifact.model.state_dict().items()}
    found, states = begun(artifact)
    block: Any = module(artifact, found["00-ffn-50%"], states["00-ffn-50%"])
    assert block.self_attn.config is artifact.model.config
    for parameter in block.parameters():
        assert parameter.requires_grad
        parameter.data.zero_()
    for state in states.values():
        for tensor in state.values():
            tensor.zero_()
    own = first(artifact)
    with pytest.raises(RuntimeError, match="on the way"), swapped(artifact.model, 0, nn.Identity()):
        raise RuntimeError("on the way")
    assert first(artifact) is own
    assert all(_masks.same_bits(t, before[n]) for n, t in artifact.model.state_dict().items())


def test_foreign_states_are_refused(alive: Tiny) -> None:
    artifact = alive("llama")
    found, states = begun(artifact)
    with pytest.raises(BadModel, match=r"00-ffn-50%: mlp.gate_proj.weight is \[48, 32\] for \[32, 32\]"):
        module(artifact, found["00-ffn-50%"], states["00-ffn-75%"])
    with pytest.raises(BadModel, match=r"00-ffn-50%: .* is missing"):
        module(artifact, found["00-ffn-50%"], {})
    with pytest.raises(BadModel, match="00-ffn-50%: no such block was made"):
        realise_(artifact, picked(found, "00-ffn-50%"), {})


# -- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "bert"])
def test_masks_stay_in_their_groups(alive: Tiny, context: Callable[..., Context], tmp_path: Path, kind: str) -> None:
    artifact = alive(kind)
    masks = {}
    for name, linear in tree.block_linears(artifact.model).items():
        masks[name] = _masks.keep_n_of_m(torch.rand(linear.weight.shape), 2, 4)
        _masks.apply_(linear.weight.data, masks[name])
    artifact = artifact.after(masks=masks)
    asked = SpaceSettings(
        attention=("kv 1", "none") if kind in GROUPED else ("none",), ffn=("70%", "none"), kv="select", multiple=2
    )
    found = variants(facts_of(artifact, "2:4"), asked)
    told = statistics(artifact, found, asked, context(artifact))
    kept = {v.key: v for v in found}
    wanted = picked(kept, "00-ffn-70%", "01-attention-none", *(["00-attention-kv-1"] if kind in GROUPED else []))
    states = {v.key: initial(artifact, v, told[v.block]) for v in wanted.values()}
    down = tree.family(artifact.model).down
    for name, mask in masks_of(states["00-ffn-70%"]).items():
        assert bool((states["00-ffn-70%"][f"{name}.weight"][~mask] == 0).all())
    assert wanted[0, "ffn"].config.ffn == (88 if kind == "gpt2" else 44)  # of 89.6 or 44.8, in fours
    after = realise_(artifact, wanted, states)
    linears = tree.block_linears(after.model)
    assert set(after.masks) == set(linears)
    for name, mask in after.masks.items():
        assert mask.shape == linears[name].weight.shape
        assert bool((mask.view(len(mask), -1, 4).sum(-1) == 2).all()), name
    name = next(iter(tree.blocks(after.model)))
    columns = after.masks[f"{name}.{down}"].t().reshape(-1, 4, 32)
    given = masks[f"{name}.{down}"].t().reshape(-1, 4, 32)
    assert all(any(torch.equal(group, old) for old in given) for group in columns)  # whole groups of neighbours
    (tmp_path / "after").mkdir()
    after.save(tmp_path / "after")  # which checks that what masks prune is 0
    assert torch.equal(logits(Artifact.load(tmp_path / "after")), logits(after))
    with pytest.raises(KeyError):
        after.masks["nowhere"]


# -- the folder -------------------------------------------------------------------------------------------------------


def test_the_library_keeps_what_was_made(alive: Tiny, tmp_path: Path) -> None:
    artifact = alive("bert")
    found, states = begun(artifact)
    library = Library(tmp_path / "library")
    library.seal(digest(artifact), {"training": "abc"}, SpaceSettings().model_dump(mode="json"))
    for key in MIXED:
        library.add(found[key], states[key], {"before": 0.5, "after": 0.25})
    again = Library(tmp_path / "library")
    assert {key for key, v in found.items() if again.has(v)} == set(MIXED)
    assert again.record(found[MIXED[0]]) == {"before": 0.5, "after": 0.25}
    assert again.record(found["01-ffn-50%"]) is None
    for key in MIXED:
        state = again.state(found[key])
        assert state is not None
        assert state.keys() == states[key].keys()
        assert all(_masks.same_bits(t, states[key][n]) for n, t in state.items())
    other = dataclasses.replace(found["00-ffn-50%"], config=dataclasses.replace(found["00-ffn-50%"].config, ffn=24))
    assert not again.has(other)  # of the same name, when rounded to another multiple
    assert again.state(other) is None
    (tmp_path / "library" / "00-ffn-50%.json").unlink()  # as a killed process leaves it
    assert not again.has(found["00-ffn-50%"])
    expected = logits(realise_(alive("bert"), picked(found, *MIXED[2:]), states))
    assert torch.equal(logits(realise_(artifact, picked(found, *MIXED[2:]), again)), expected)


def test_what_was_trained_together_goes_together(alive: Tiny, tmp_path: Path) -> None:
    artifact = alive("llama")
    found, states = begun(artifact)
    library, none, half = Library(tmp_path), found["00-attention-none"], found["00-ffn-50%"]
    together = {n: t + 1 for n, t in states[half.key].items()}
    for key in ("00-attention-none", "00-attention-linear", "00-ffn-50%"):
        library.add(found[key], states[key], {})
    library.add(half, together, {}, beside=none)
    assert library.has(half, beside=none)
    assert not library.has(half, beside=found["00-attention-linear"])
    assert library.has(half, beside=found["00-attention-parent"])
    assert (tmp_path / "00-ffn-50%+attention-none.json").exists()
    for attention, expected in ((none, together), (found["00-attention-linear"], states[half.key])):
        made = realise_(alive("llama"), {(0, "attention"): attention, (0, "ffn"): half}, library)
        assert torch.equal(first(made).mlp.up_proj.weight, expected["mlp.up_proj.weight"])


def test_another_library_is_refused(alive: Tiny, tiny: Tiny, tmp_path: Path) -> None:
    library = Library(tmp_path / "library")
    with pytest.raises(BadModel, match=r"no library.json that can be read, so it is no library; make it anew$"):
        library.check("any")
    mine, other = digest(alive("llama")), digest(tiny("llama", seed=1))
    assert mine == digest(alive("llama")) != other
    library.seal(mine, {"training": "abc"}, {"kv": "pool"})
    library.seal(mine, {"training": "abc"}, {"kv": "pool"})
    library.check(mine, {"training": "abc", "calibration": "def"})
    assert library.card["space"] == {"kv": "pool"}
    for text, told in (
        ("made for another model; make a new library", (other, {"training": "abc"}, {"kv": "pool"})),
        ("made with other training data", (mine, {"training": "xyz"}, {"kv": "pool"})),
        ("made for another search space", (mine, {"training": "abc"}, {"kv": "select"})),
    ):
        with pytest.raises(BadModel, match=text) as caught:
            library.seal(*told)
        assert "\n" not in str(caught.value)
    assert files.read_json(tmp_path / "library" / "library.json")["parent"] == mine


def test_masks_and_bits_enter_the_digest(alive: Tiny) -> None:
    artifact = alive("opt")
    found = {digest(artifact)}
    linears = tree.block_linears(artifact.model)
    name = next(iter(linears))
    found.add(digest(artifact.after(masks={name: torch.ones_like(linears[name].weight, dtype=torch.bool)})))
    copied = copy.deepcopy(artifact.model)
    copied.get_parameter(f"{name}.weight").data[0, 0] += 1e-3
    found.add(digest(artifact.after(model=copied)))
    assert len(found) == 3
