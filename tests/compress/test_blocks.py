"""Blocks of unlike shapes and linears with branches: what they compute, how they are stored, and who opens them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

import compress
from compress import blocks, files, loading, tree
from compress.artifact import Artifact
from compress.blocks import BlockConfig, Branch, Branched
from compress.errors import BadModel
from compress.folders import lines
from tests.conftest import CAUSAL, ENCODERS, branched, lively, standing, uneven

Tiny = Callable[..., Artifact]
Change = Callable[[Artifact], Artifact]
KINDS = (*CAUSAL, *ENCODERS)
IDS = torch.arange(2, 24).view(2, 11)
ATOL = 2e-5  # the same sums in another order; what is in the wrong place is off by 0.02
NONE = torch.tensor([], dtype=torch.int64)


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


def zeroed(model: tf.PreTrainedModel, cuts: dict[str, blocks.Cut]) -> tf.PreTrainedModel:
    """Zero what the cut columns would add, and the bias of an output all of whose columns are cut."""
    for name, (_, columns) in cuts.items():
        if columns is not None:
            linear: Any = model.get_submodule(name)
            gone = torch.ones(linear.in_features, dtype=torch.bool)
            gone[columns] = False
            linear.weight.data[:, gone] = 0
            if linear.bias is not None and gone.all():
                linear.bias.data.zero_()
    return model


# -- in memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_computes_what_zeroing_does(tiny: Tiny, kind: str) -> None:
    model = lively(tiny(kind).model)
    dense, was = copy.deepcopy(model), blocks.of(model)
    groups = torch.tensor([1] if was[0].kv_heads == 2 else [0, 3])
    cuts = blocks.slice_(model, 0, kv_groups=groups, neurons=torch.tensor([1, 2, 40]))
    cuts |= blocks.slice_(model, 1, neurons=torch.arange(7))
    each = was[0].heads // was[0].kv_heads
    first = BlockConfig(heads=each * len(groups), kv_heads=len(groups), head_dim=was[0].head_dim, ffn=3)
    second = BlockConfig(heads=was[1].heads, kv_heads=was[1].kv_heads, head_dim=was[1].head_dim, ffn=7)
    assert blocks.of(model) == (first, second)
    assert not torch.allclose(logits(model), logits(dense), atol=0.02)
    for how in ("sdpa", "eager"):
        model.set_attn_implementation(how)
        torch.testing.assert_close(logits(model), logits(zeroed(copy.deepcopy(dense), cuts)), atol=ATOL, rtol=0)
    # What stays is told so that masks can be cut alike.
    old = {n: m.weight for n, m in tree.block_linears(dense).items()}
    new = {n: m.weight for n, m in tree.block_linears(model).items()}
    cut = blocks.cut_masks(old, cuts)
    assert cut.keys() == new.keys()
    assert all(torch.equal(cut[n], w) for n, w in new.items())
    assert all((m.out_features, m.in_features) == m.weight.shape for m in tree.block_linears(model).values())


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_part_adds_nothing(tiny: Tiny, kind: str) -> None:
    model = lively(tiny(kind).model)
    dense, was = copy.deepcopy(model), blocks.of(model)
    cuts = blocks.slice_(model, 0, kv_groups=NONE)
    cuts |= blocks.slice_(model, 1, neurons=NONE)
    torch.testing.assert_close(logits(model), logits(zeroed(dense, cuts)), atol=ATOL, rtol=0)
    width = was[0].head_dim
    assert blocks.of(model)[0] == BlockConfig(heads=0, kv_heads=0, head_dim=width, ffn=was[0].ffn)
    assert blocks.of(model)[1] == BlockConfig(heads=was[1].heads, kv_heads=was[1].kv_heads, head_dim=width, ffn=0)
    ones = {n: torch.ones(m.weight.shape) for n, m in tree.block_linears(dense).items()}
    assert blocks.cut_masks(ones, cuts).keys() == tree.block_linears(model).keys() == ones.keys() - cuts.keys()
    # Biases go with their linears, and a norm with the part that alone read it; BERT's over the residual stays.
    first, second = tree.blocks(model).values()
    table = tree.family(model)
    for block, gone in ((first, (table.core, table.qkvo[-1])), (second, (*table.up, table.down))):
        assert not [n for n, _ in block.named_parameters() if n.startswith(tuple(f"{g}." for g in gone))]
    norms = [n for b in (first, second) for n, m in b.named_modules() if "norm" in type(m).__name__.lower()]
    assert len([n for n in norms if "q_norm" not in n and "k_norm" not in n]) == (2 if table.norms else 4)
    again = blocks.slice_(model, 0, neurons=torch.arange(2))  # the part that is left can be cut on
    assert blocks.of(model)[0].ffn == 2
    assert not any("q_proj" in n or "attn" in n or "attention" in n for n in again)


def stood_in(dense: tf.PreTrainedModel, model: tf.PreTrainedModel) -> tf.PreTrainedModel:
    """Let a dense model compute what `standing` asks for: its parts run, and a product takes their outputs' place."""
    table, seen = tree.family(dense), {}
    (first, second), (here, there) = (list(tree.blocks(m).values()) for m in (dense, model))

    def see(name: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            seen[name] = (*args, *kwargs.values())[0]

        return hook

    def put(name: str, block: torch.nn.Module, inner: str) -> Callable[..., Any]:
        weight, bias = (dict(block.named_parameters()).get(f"{inner}.{part}") for part in ("weight", "bias"))
        return lambda *_: torch.nn.functional.linear(seen[name], weight, bias)  # type: ignore[arg-type]

    first.get_submodule(table.core).register_forward_pre_hook(see("a"), with_kwargs=True)
    first.get_submodule(table.qkvo[-1]).register_forward_hook(put("a", here, table.qkvo[-1]))
    second.get_submodule(table.up[0]).register_forward_pre_hook(see("f"), with_kwargs=True)
    second.get_submodule(table.down).register_forward_hook(put("f", there, table.down))
    return dense


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_stands_in(tiny: Tiny, kind: str) -> None:
    artifact = tiny(kind)
    model, dense = artifact.model, copy.deepcopy(artifact.model)
    was, table = blocks.of(dense), tree.family(dense)
    standing(artifact)
    sizes = {n: p.shape for n, p in dense.named_parameters()}
    left = {n: p for n, p in model.state_dict().items() if n not in sizes or p.shape == sizes[n]}
    dense.load_state_dict(left, strict=False)
    torch.testing.assert_close(logits(model), logits(stood_in(dense, model)), atol=ATOL, rtol=0)
    first, second = blocks.of(model)
    assert first == replace(was[0], heads=0, kv_heads=0, linear_attention=True)
    assert second == replace(was[1], ffn=0, linear_ffn=True)
    # The two linears keep their names and biases; the norms before them stay, those of queries and keys go.
    one, two = tree.blocks(model)
    gone = {f"{one}.{n}" for n in table.qkvo[:-1]} | {f"{two}.{n}" for n in table.up}
    here, there = tree.facts(model, artifact.task), tree.facts(dense, artifact.task)
    assert there.shapes.keys() - here.shapes.keys() == gone
    assert here.shapes[f"{one}.{table.qkvo[-1]}"] == here.shapes[f"{two}.{table.down}"] == (32, 32)
    assert there.biases.keys() - here.biases.keys() == {f"{n}.bias" for n in gone} & there.biases.keys()
    assert there.norms.keys() - here.norms.keys() == {n for n in there.norms if n.startswith(f"{one}.self_attn.")}
    new = {*here.shapes, *here.biases, *here.norms} - {*there.shapes, *there.biases, *there.norms}
    # Qwen2's values have biases, and the linear behind them has none to take over what they add.
    assert new == ({f"{one}.{table.qkvo[-1]}.bias"} if kind == "qwen2" else set())


def test_a_block_is_reshaped_alone(tiny: Tiny) -> None:
    model = branched(standing(tiny("llama"))).model
    table, shape = tree.family(model), blocks.of(model)[1]
    block = copy.deepcopy(list(tree.blocks(model).values())[1])
    given = {n: p.clone() for n, p in block.named_parameters()}
    wanted = replace(shape, heads=0, kv_heads=0, linear_ffn=False)
    for name in ("self_attn.o_proj", "self_attn.q_proj"):
        assert isinstance(block.get_submodule(name), Branched) == (f"{name}.a" in given)
    blocks.reshape_(block, table, shape, norm_first=True)
    assert all(torch.equal(p, given[n]) for n, p in block.named_parameters())
    blocks.reshape_(block, table, wanted, norm_first=True)
    assert tree.shape(block, table) == wanted
    assert not dict(block.named_parameters())
    for config in (shape, replace(wanted, linear_attention=True), replace(wanted, linear_ffn=True)):
        with pytest.raises(BadModel, match=r"a block without \S+ cannot have the shape BlockConfig"):
            blocks.reshape_(block, table, config, norm_first=True)


def test_the_norm_over_the_residual_of_a_post_norm_opt_stays(tiny: Tiny) -> None:
    torch.manual_seed(0)
    config = copy.deepcopy(tiny("opt").model.config)
    config.do_layer_norm_before = False
    model: Any = type(tiny("opt").model)(config)
    model.eval()
    lively(model)
    dense = copy.deepcopy(model)
    cuts = blocks.slice_(model, 0, kv_groups=NONE, neurons=NONE)
    torch.testing.assert_close(logits(model), logits(zeroed(dense, cuts)), atol=ATOL, rtol=0)
    assert len(tree.norms(model)) == len(tree.norms(dense))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kv_groups": torch.tensor([1, 0])}, "key heads must be ascending numbers below 2, got \\[1, 0\\]"),
        ({"kv_groups": torch.tensor([0, 2])}, "below 2"),
        ({"neurons": torch.tensor([-1])}, "neurons must be ascending numbers below 64"),
        ({"neurons": torch.tensor([3, 3])}, "ascending"),
        ({"neurons": torch.tensor([[3]])}, "ascending"),
    ],
)
def test_what_cannot_be_kept_is_refused(tiny: Tiny, given: dict[str, Tensor], message: str) -> None:
    model = tiny().model
    with pytest.raises(ValueError, match=message):
        blocks.slice_(model, 0, **given)
    blocks.slice_(model, 0, kv_groups=NONE)
    with pytest.raises(ValueError, match="the block has no key heads to choose from"):
        blocks.slice_(model, 0, kv_groups=torch.tensor([0]))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "ffn"), [(3, 2, 8, 4), (2, 0, 8, 4), (2, 2, 0, 4), (2, 2, 8, -1)]
)
def test_shapes_that_no_block_has(heads: int, kv_heads: int, width: int, ffn: int) -> None:
    with pytest.raises(ValueError, match="BlockConfig"):
        BlockConfig(heads=heads, kv_heads=kv_heads, head_dim=width, ffn=ffn)


def four(tiny: Tiny, kind: str) -> tf.PreTrainedModel:
    """A model of four blocks."""
    torch.manual_seed(0)
    given = tiny(kind)
    config = copy.deepcopy(given.model.config)
    config.num_hidden_layers = 4
    if getattr(config, "layer_types", None):
        config.sliding_window = 4
        config.layer_types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    model: Any = type(given.model)(config)
    model.eval()
    tree.linearise_(model)
    return lively(model)


def skipped(model: tf.PreTrainedModel, indices: tuple[int, ...]) -> tf.PreTrainedModel:
    """Let blocks hand on what they are given."""
    for index in indices:
        block = list(tree.blocks(model).values())[index]
        block.register_forward_hook(lambda _, args, kwargs, __: (*args, *kwargs.values())[0], with_kwargs=True)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("indices", [(0, 2), (3,)])
def test_dropping_blocks_is_stepping_over_them(tiny: Tiny, kind: str, indices: tuple[int, ...]) -> None:
    model = four(tiny, kind)
    dense = skipped(copy.deepcopy(model), indices)
    before = {n: m.weight for n, m in tree.block_linears(model).items()}
    renamed = blocks.drop_(model, indices)
    left = [i for i in range(4) if i not in indices]
    assert torch.equal(logits(model), logits(dense))
    assert model.config.num_hidden_layers == len(tree.blocks(model)) == len(left)
    after = {n: m.weight for n, m in tree.block_linears(model).items()}
    assert set(renamed.values()) == set(after)
    assert all(after[new] is before[old] for old, new in renamed.items())
    stack = tree.family(model).blocks
    assert {o.split(f"{stack}.")[1][0]: n.split(f"{stack}.")[1][0] for o, n in renamed.items()} == {
        str(old): str(new) for new, old in enumerate(left)
    }
    if kinds := getattr(model.config, "layer_types", None):
        assert kinds == [dense.config.layer_types[i] for i in left]
    if kind in CAUSAL:
        torch.testing.assert_close(stepped(model, config=True), logits(dense), atol=ATOL, rtol=0)


def test_blocks_that_cannot_be_dropped(tiny: Tiny) -> None:
    model = tiny("gpt2").model
    for wrong in ((0, 1), (2,), (0, 0), (-1,)):
        with pytest.raises(ValueError, match=r"cannot be dropped of 2"):
            blocks.drop_(model, wrong)
    assert blocks.drop_(model, ()) == {n: n for n in tree.block_linears(model)}
    model.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(BadModel, match="ties attention to a block's place"):
        blocks.drop_(model, (0,))


def stepped(model: Any, *, config: bool) -> Tensor:
    """Return the logits of a text read in pieces with a cache."""
    cache = tf.DynamicCache(config=model.config) if config else tf.DynamicCache()
    with torch.no_grad():
        pieces = [model(IDS[:, a:b], past_key_values=cache).logits for a, b in ((0, 6), (6, 7), (7, 10), (10, 11))]
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("config", [True, False])
def test_reading_in_pieces_equals_reading_at_once(tiny: Tiny, kind: str, config: bool) -> None:
    for change in (uneven, standing):
        model = change(tiny(kind)).model  # the first block has no cache to ask how long the text is
        torch.testing.assert_close(stepped(model, config=config), logits(model), atol=ATOL, rtol=0)


@pytest.mark.parametrize("change", [uneven, standing])
def test_generate_of_transformers_counts_on(tiny: Tiny, change: Change) -> None:
    model: Any = change(tiny("llama")).model
    ids = IDS[:1]
    for _ in range(4):
        ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], dim=1)
    found = model.generate(IDS[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=1)
    assert torch.equal(found, ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [uneven, standing])
def test_a_fresh_model_takes_any_shape(tiny: Tiny, kind: str, change: Change) -> None:
    wanted = change(tiny(kind)).model
    with torch.device("meta"):
        fresh = type(wanted)(wanted.config)  # GPT-2's linears are Conv1D here, as they are stored
    blocks.shape_(fresh, blocks.of(wanted))
    stored = {n: t.shape for n, t in tree.stored_state(wanted).items()}
    assert {n: t.shape for n, t in fresh.state_dict().items()} == stored
    assert all(t.is_meta for t in fresh.parameters())
    tree.linearise_(fresh)
    assert blocks.of(fresh) == blocks.of(wanted)
    made, task = tree.facts(fresh, "embedding"), "embedding"
    assert made == tree.facts(wanted, task)  # type: ignore[arg-type]


def test_groups_may_shrink_while_queries_stay(tiny: Tiny) -> None:
    model = tiny("llama").model
    shape = BlockConfig(heads=4, kv_heads=1, head_dim=8, ffn=96)
    blocks.shape_(model, [shape, shape])
    assert blocks.of(model) == (shape, shape)
    assert logits(model).isfinite().all()
    for wrong, kind in (((shape,), "llama"), ((shape, shape), "opt")):
        with pytest.raises(BadModel, match="shape"):
            blocks.shape_(tiny(kind).model, wrong)
    with pytest.raises(BadModel, match="heads of width 8 cannot have the shape"):
        blocks.shape_(model, [BlockConfig(heads=4, kv_heads=2, head_dim=4, ffn=8)] * 2)


# -- branches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_adds_its_product(tiny: Tiny, kind: str) -> None:
    artifact = tiny(kind)
    merged, names = copy.deepcopy(artifact.model), set(tree.block_linears(artifact.model))
    plain = tree.facts(artifact.model, artifact.task)
    branched(artifact)
    assert set(tree.block_linears(artifact.model)) == names
    for name, branch in artifact.branches.items():
        merged.get_parameter(f"{name}.weight").data += branch.b @ branch.a
    torch.testing.assert_close(logits(artifact.model), logits(merged), atol=ATOL, rtol=0)
    facts = tree.facts(artifact.model, artifact.task)
    assert facts.branches == dict.fromkeys(artifact.branches, 3)
    grown = sum(3 * sum(facts.shapes[n]) for n in facts.branches)
    assert facts == plain.after(branches=facts.branches, parameters=plain.parameters + grown)


def test_a_branch_is_cut_with_its_linear(tiny: Tiny) -> None:
    artifact = branched(tiny("llama"))
    dense = copy.deepcopy(artifact.model)
    cuts = blocks.slice_(artifact.model, 0, kv_groups=torch.tensor([1]), neurons=torch.tensor([3, 8]))
    for name, (_, columns) in cuts.items():
        linear = dense.get_submodule(name)
        if columns is not None and isinstance(linear, Branched):
            gone = [i for i in range(linear.in_features) if i not in columns]
            linear.a.data[:, gone] = 0
    torch.testing.assert_close(logits(artifact.model), logits(zeroed(dense, cuts)), atol=ATOL, rtol=0)


def test_branches_that_do_not_fit(tiny: Tiny) -> None:
    model = tiny().model
    name = "model.layers.0.mlp.up_proj"
    with pytest.raises(ValueError, match=r"\[3, 5\] and \[64, 3\] does not fit a linear \[64, 32\]"):
        blocks.branch_(model, {name: Branch(torch.ones(3, 5), torch.ones(64, 3))})
    with pytest.raises(ValueError, match="does not fit"):
        blocks.branch_(model, {name: Branch(torch.ones(3, 32), torch.ones(64, 2))})
    with pytest.raises(ValueError, match="lm_head: no linear of the blocks"):
        blocks.branch_(model, {"lm_head": Branch(torch.ones(3, 32), torch.ones(384, 3))})


# -- on disk ----------------------------------------------------------------------------------------------------------


def same_model(a: Path, b: Path) -> bool:
    """Tell whether weights and configuration are byte-equal."""
    names = {p.name for p in (*a.glob("*.safetensors"), *b.glob("*.safetensors"), a / "config.json")}
    return all((a / n).read_bytes() == (b / n).read_bytes() for n in names)


def saved(artifact: Artifact, folder: Path) -> Path:
    folder.mkdir()
    artifact.save(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [uneven, branched, lambda a: branched(uneven(a)), lambda a: branched(standing(a))],
    ids=["uneven", "branched", "both", "standing"],
)
def test_what_is_saved_comes_back(
    tiny: Tiny, kind: str, change: Callable[[Artifact], Artifact], tmp_path: Path
) -> None:
    given = change(tiny(kind))
    name = next(iter(tree.block_linears(given.model)))
    mask = torch.arange(tree.block_linears(given.model)[name].weight.numel()) % 3 != 0
    mask = mask.view_as(tree.block_linears(given.model)[name].weight)
    given.model.get_parameter(f"{name}.weight").data[~mask] = 0
    given = given.after(masks={name: mask})
    folder = saved(given, tmp_path / "a")
    again = Artifact.load(folder)
    assert blocks.of(again.model) == blocks.of(given.model)
    assert again.branches.keys() == given.branches.keys()
    old, new = given.model.state_dict(), again.model.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(t, new[n]) for n, t in old.items())
    assert torch.equal(logits(again.model), logits(given.model))
    assert type(again.model) is type(given.model)
    assert torch.equal(again.masks[name], mask)
    assert loading.facts_of(str(folder), given.task) == tree.facts(given.model, given.task)
    saved(again, tmp_path / "b")
    assert same_model(folder, tmp_path / "b")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("change", [uneven, standing])
def test_blocks_left_on_disk_may_differ(tiny: Tiny, kind: str, change: Change, tmp_path: Path) -> None:
    given = branched(change(tiny(kind)))
    stored = Artifact.load(saved(given, tmp_path / "a"), stored=True)
    assert tree.facts(stored.model, given.task) == tree.facts(given.model, given.task)
    name = next(iter(tree.blocks(stored.model)))
    with stored.opened(name):
        blocks.slice_(stored.model, 0, neurons=torch.tensor([1, 2]))
    blocks.slice_(given.model, 0, neurons=torch.tensor([1, 2]))
    again = Artifact.load(saved(stored, tmp_path / "b"))
    assert blocks.of(again.model) == blocks.of(given.model)
    assert all(torch.equal(b.a, given.branches[n].a) for n, b in again.branches.items())
    assert torch.equal(logits(again.model), logits(given.model))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "opt", "bert"])
@pytest.mark.parametrize("change", [uneven, branched, standing])
def test_plain_transformers_stops(
    tiny: Tiny, kind: str, change: Callable[[Artifact], Artifact], tmp_path: Path
) -> None:
    given = change(tiny(kind))
    folder = saved(given, tmp_path / "a")
    assert files.read_json(folder / "config.json")["model_type"] == "compress"
    for maker in (tf.AutoModelForCausalLM, tf.AutoModel, tf.AutoConfig):
        with pytest.raises(ValueError, match="model type `compress`"):
            maker.from_pretrained(folder)
    with pytest.raises(StrictDataclassError, match="only compress opens this folder"):
        type(given.model).from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_an_even_slice_opens_in_plain_transformers(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    given = tiny(kind)
    free = tree.family(given.model).free_heads
    for index in range(2):
        blocks.slice_(given.model, index, kv_groups=torch.tensor([1]) if free else None, neurons=torch.arange(0, 64, 3))
    folder = saved(given, tmp_path / "a")
    assert files.read_json(folder / "config.json")["model_type"] == given.model.config.model_type
    maker: Any = tf.AutoModelForCausalLM if kind in CAUSAL else tf.AutoModelForSequenceClassification
    plain = maker.from_pretrained(folder).eval()
    # GPT-2's Conv1D sums in another order than Linear.
    torch.testing.assert_close(logits(plain), logits(given.model), atol=1e-5 if kind == "gpt2" else 0, rtol=0)
    again = Artifact.load(folder)
    assert torch.equal(logits(again.model), logits(given.model))
    assert loading.facts_of(str(folder), given.task).layout == blocks.of(given.model)
    saved(again, tmp_path / "b")
    assert same_model(folder, tmp_path / "b")


def test_even_slices_that_the_configuration_cannot_say(tiny: Tiny, tmp_path: Path) -> None:
    opt = tiny("opt")  # whose heads fill the hidden size
    made: Any = tf.LlamaForCausalLM(_six_heads(tiny)).eval()  # type: ignore[no-untyped-call]
    llama = Artifact(model=made, tokenizer=tiny().tokenizer)
    for number, artifact in enumerate((opt, llama)):  # five of six heads do not divide the hidden size
        for index in range(2):
            count = blocks.of(artifact.model)[index].kv_heads
            blocks.slice_(artifact.model, index, kv_groups=torch.arange(count - 1))
        folder = saved(artifact, tmp_path / str(number))
        assert files.read_json(folder / "config.json")["model_type"] == "compress"
        assert torch.equal(logits(Artifact.load(folder).model), logits(artifact.model))


def test_shapes_without_a_word_on_linears_still_open(tiny: Tiny, tmp_path: Path) -> None:
    given = uneven(tiny("llama"))
    folder = saved(given, tmp_path / "a")
    table = [
        {k: v for k, v in b.items() if "linear" not in k} for b in files.read_json(folder / "config.json")["blocks"]
    ]
    (folder / "compress.json").unlink()
    _config(blocks=table)(folder)
    assert torch.equal(logits(loading.open_folder(folder, "causal-lm")[0]), logits(given.model))


def _six_heads(tiny: Tiny) -> Any:
    config = copy.deepcopy(tiny().model.config)
    config.hidden_size, config.num_attention_heads, config.num_key_value_heads = 48, 6, 6
    return config


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_fewer_blocks_open_in_plain_transformers(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    given = tiny(kind)
    blocks.drop_(given.model, [0])
    plain: Any = tf.AutoModelForCausalLM.from_pretrained(saved(given, tmp_path / "a"))
    plain.eval()
    torch.testing.assert_close(logits(plain), logits(given.model), atol=1e-5, rtol=0)


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = files.read_json(folder / "config.json")
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def _rank(folder: Path) -> None:
    config = files.read_json(folder / "config.json")
    _config(branches=dict.fromkeys(config["branches"], 4))(folder)


def _narrow(folder: Path) -> None:
    table = files.read_json(folder / "config.json")["blocks"]
    _config(blocks=[table[0] | {"ffn": 5}, table[1]])(folder)


def _attend(folder: Path) -> None:
    table = files.read_json(folder / "config.json")["blocks"]
    _config(blocks=[table[0] | {"heads": 4, "kv_heads": 2}, table[1]])(folder)


def _forget(folder: Path) -> None:
    table = files.read_json(folder / "config.json")["blocks"]
    _config(blocks=[table[0], table[1] | {"heads": 0, "kv_heads": 0}], branches={})(folder)


def _cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-9])

    return change


def _pickled(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_narrow, r"is \[32, 3\] where the configuration asks for \[32, 5\]"),
        (_attend, r"is missing \(5 tensors in all\)"),
        (_forget, "for which the configuration has no place"),
        (_config(blocks=[]), "0 shapes of blocks for a model of 2 blocks"),
        (_config(blocks=[{"heads": 3}]), "not what compress writes"),
        (_config(blocks=None), "not what compress writes"),
        (_config(parent_type="mamba"), "mamba"),
        (_config(branches={}), "is there and not in the configuration"),
        (_config(branches={"model.layers.7.mlp.up_proj": 3}), "has a branch and is no linear of the blocks"),
        (_rank, r"is \[\d+, 3\] where the configuration asks for|is \[3, \d+\] where the configuration asks for"),
        (lambda f: (f / "branches.safetensors").unlink(), "is missing"),
        (_cut("branches.safetensors"), "truncated"),
        (_cut("model.safetensors"), "truncated"),
        (_pickled, "a pickle"),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_a_folder_that_is_not_whole_is_refused(
    tiny: Tiny, change: Callable[[Path], None], message: str, stored: bool, tmp_path: Path
) -> None:
    folder = saved(branched(uneven(tiny("llama"))), tmp_path / "a")
    change(folder)
    with pytest.raises(BadModel, match=message) as caught:
        (loading.open_stored if stored else loading.open_folder)(folder, "causal-lm")
    assert "\n" not in str(caught.value)


def test_show_tells_the_blocks(tiny: Tiny, tmp_path: Path) -> None:
    folder = saved(branched(uneven(tiny("llama"))), tmp_path / "a")
    about = compress.show(folder)
    assert BlockConfig(**about["blocks"][0]) == BlockConfig(heads=0, kv_heads=0, head_dim=8, ffn=3)
    told = "\n".join(lines(about))
    assert "block 0: no attention, 3 neurons" in told
    assert "block 1: 2 query heads on 1 key heads of width 8, no neurons" in told
    assert "4 branches, rank 3 to 3" in told
    other = "\n".join(lines(compress.show(saved(standing(tiny("llama")), tmp_path / "c"))))
    assert "block 0: a linear for attention, 64 neurons" in other
    assert "block 1: 4 query heads on 2 key heads of width 8, a linear for neurons" in other
    (folder / "compress.json").unlink()
    shown = "\n".join(lines(compress.show(folder)))
    assert "model_type: llama" in shown
    assert "block 0: no attention" in shown
    assert not compress.show(saved(tiny("llama"), tmp_path / "b")).keys() & {"blocks", "branches"}
