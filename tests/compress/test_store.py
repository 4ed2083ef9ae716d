"""Models that stay on disk: the same bits as in memory, a block at a time, whatever happens on the way."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from compress import files, tensors, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BrokenPromise
from compress.facts import Task
from compress.masks import KeptMasks
from passes.magnitude import Magnitude
from tests.conftest import CAUSAL, ENCODERS

Tiny = Callable[..., Artifact]


def saved(artifact: Artifact, folder: Path) -> Path:
    folder.mkdir(parents=True)
    artifact.save(folder)
    return folder


def same(a: Artifact, b: Artifact) -> None:
    """Both hold the same names, bits and masks."""
    assert a.tensor_names() == b.tensor_names()
    for name in a.tensor_names():
        assert tensors.same_bits(a.tensor(name), b.tensor(name)), name
    assert set(a.masks) == set(b.masks)
    assert all(torch.equal(m, b.masks[n]) for n, m in a.masks.items())


def inside(artifact: Artifact) -> list[torch.nn.Parameter]:
    return [p for block in tree.blocks(artifact.model).values() for p in block.parameters()]


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_what_is_outside_the_blocks_is_real_and_what_is_inside_is_read(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    folder = saved(tiny(kind), tmp_path / "a")
    whole, stored = Artifact.load(folder), Artifact.load(folder, stored=True)
    assert all(p.is_meta for p in inside(stored))
    within = {id(p) for p in inside(stored)}
    assert not any(p.is_meta for p in stored.model.parameters() if id(p) not in within)
    for (name, ours), (other, theirs) in zip(stored.model.named_buffers(), whole.model.named_buffers(), strict=True):
        assert name == other
        assert tensors.same_bits(ours, theirs)
    same(whole, stored)
    assert tree.facts(whole.model, whole.task) == tree.facts(stored.model, stored.task)
    assert tree.tied(stored.model) == tree.tied(whole.model)
    assert stored.model.config.to_dict() == whole.model.config.to_dict()
    assert not stored.model.training


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_a_pass_gives_the_same_bits_from_disk_and_from_memory(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    folder = saved(tiny(kind), tmp_path / "a")
    plugin = Magnitude(Magnitude.Settings(sparsity=0.6))
    done = []
    for stored in (False, True):
        given = Artifact.load(folder, stored=stored)
        after = plugin.run(given, Context(folder=tmp_path))
        out = saved(after, tmp_path / f"b{stored}")
        for opened in (False, True):
            plugin.ensures(Artifact.load(folder, stored=opened), Artifact.load(out, stored=not opened))
        done.append(out)
    in_memory, streamed = (Artifact.load(f) for f in done)
    same(in_memory, streamed)
    same(in_memory, Artifact.load(done[1], stored=True))
    for name in (
        "config.json",
        "tokenizer.json",
        "masks.safetensors",
        *(["generation_config.json"] * (kind in CAUSAL)),
    ):
        assert (done[0] / name).read_bytes() == (done[1] / name).read_bytes()
    loaders: Any = tf.AutoModelForCausalLM if kind in CAUSAL else tf.AutoModelForSequenceClassification
    plain, told = loaders.from_pretrained(done[1], output_loading_info=True)
    assert not any(told.values())
    tree.linearise_(plain)
    state = in_memory.model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in plain.state_dict().items())


def test_a_block_is_read_when_it_is_opened_and_only_its_changes_are_kept(tiny: Tiny, tmp_path: Path) -> None:
    given = Artifact.load(saved(tiny("gpt2"), tmp_path / "a"), stored=True, changes=tmp_path / "changes")
    name = "transformer.h.1.mlp.c_fc.weight"
    was = given.tensor(name)
    with given.opened("transformer.h.1") as block:
        weight = block.get_parameter("mlp.c_fc.weight")
        assert weight.requires_grad
        assert tensors.same_bits(weight.detach(), was)
        with given.opened("transformer.h.1") as again:  # a pass within a pass
            assert again.get_parameter("mlp.c_fc.weight") is weight
        assert not given.model.get_parameter(name).is_meta
        assert given.tensor(name).data_ptr() == weight.data_ptr()
    assert given.model.get_parameter(name).is_meta
    assert list((tmp_path / "changes").iterdir()) == []
    with given.opened("transformer.h.1") as block:
        block.get_parameter("mlp.c_fc.weight").data[2, 3] = -0.0
        block.get_parameter("ln_1.bias").data[0] = 7
    assert [p.name for p in (tmp_path / "changes").iterdir()] == ["transformer.h.1.safetensors"]
    for reader in (given, Artifact.load(saved(given, tmp_path / "b"))):
        now = reader.tensor(name)
        assert torch.copysign(torch.ones(()), now[2, 3]) == -1
        assert (now != was).sum() == (was[2, 3] != 0)
        assert reader.tensor("transformer.h.1.ln_1.bias")[0] == 7


def test_what_fails_inside_a_block_is_not_kept(tiny: Tiny, tmp_path: Path) -> None:
    given = Artifact.load(saved(tiny("llama"), tmp_path / "a"), stored=True)
    name = "model.layers.0.mlp.up_proj.weight"
    was = given.tensor(name)

    def fail() -> None:
        with given.opened("model.layers.0") as block:
            block.get_parameter("mlp.up_proj.weight").data.zero_()
            raise KeyError(name)

    with pytest.raises(KeyError):
        fail()
    assert given.model.get_parameter(name).is_meta
    assert torch.equal(given.tensor(name), was)


def test_what_an_interrupted_pass_changed_is_no_input(tiny: Tiny, tmp_path: Path) -> None:
    folder, changes = saved(tiny("llama"), tmp_path / "a"), tmp_path / "changes"
    first = Artifact.load(folder, stored=True, changes=changes)
    with first.opened("model.layers.0") as block:
        block.get_parameter("mlp.up_proj.weight").data.zero_()
    assert list(changes.iterdir())
    same(Artifact.load(folder, stored=True, changes=changes), Artifact.load(folder))


def test_a_folder_of_its_own_vanishes_with_the_store(tiny: Tiny, tmp_path: Path) -> None:
    given = Artifact.load(saved(tiny("llama"), tmp_path / "a"), stored=True)
    assert given.store
    folder = given.store.folder
    assert folder.is_dir()
    del given
    gc.collect()
    assert not folder.exists()


def test_unchanged_blocks_take_no_room_twice(tiny: Tiny, tmp_path: Path) -> None:
    first = saved(Artifact.load(saved(tiny("llama"), tmp_path / "a"), stored=True), tmp_path / "b")
    opened = Artifact.load(first, stored=True, changes=tmp_path / "changes")
    with opened.opened("model.layers.1") as block:
        block.get_parameter("mlp.up_proj.weight").data[0, 0] = 0
    second = saved(opened, tmp_path / "c")
    shards = sorted(p.name for p in second.glob("model-*.safetensors"))
    assert shards == sorted(p.name for p in first.glob("model-*.safetensors"))
    inodes = [(first / n).stat().st_ino == (second / n).stat().st_ino for n in shards]
    assert inodes == [False, True, False]  # what is outside the blocks, the first block, the changed one
    assert files.digests(first)[shards[1]] == files.digests(second)[shards[1]]
    third = saved(Artifact.load(second, stored=True), tmp_path / "d")
    assert files.digests(third) == files.digests(second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_widened_block_by_block(tiny: Tiny, dtype: torch.dtype, tmp_path: Path) -> None:
    given = tiny("qwen2")
    given.model.to(dtype=dtype)  # type: ignore[call-arg]
    given.model.save_pretrained(tmp_path / "a", max_shard_size="10KB")
    given.tokenizer.save_pretrained(tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 3
    for wanted in (torch.float32, None):
        whole, stored = (Artifact.of(tmp_path / "a", "causal-lm", stored=s, dtype=wanted) for s in (False, True))
        assert {stored.tensor(n).dtype for n in stored.tensor_names()} == {wanted or dtype}
        same(whole, stored)
        folder = saved(stored, tmp_path / f"b{wanted}")
        same(Artifact.load(folder), whole)
        config = [files.read_json(saved(a, tmp_path / f"{wanted}{i}") / "config.json") for i, a in enumerate([whole])]
        assert config == [files.read_json(folder / "config.json")]


@pytest.mark.parametrize(("kind", "task"), [("gpt2", "embedding"), ("bert", "embedding"), ("llama", "embedding")])
def test_names_with_and_without_the_prefix_of_the_base(tiny: Tiny, kind: str, task: Task, tmp_path: Path) -> None:
    """A bare model's file opens as a task model and the other way round; old names of norms too."""
    full = saved(tiny(kind), tmp_path / "full")
    same(Artifact.of(full, task), Artifact.of(full, task, stored=True))
    weights = load_file(full / "model.safetensors")
    prefix = f"{tree.family(tiny(kind).model).backbone}."
    bare = {n.removeprefix(prefix).replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in weights.items()}
    save_file(bare, full / "model.safetensors", {"format": "pt"})
    other = tiny(kind).task
    same(Artifact.of(full, other), Artifact.of(full, other, stored=True))


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_tied_tensors_under_either_name(tiny: Tiny, kept: str, tmp_path: Path) -> None:
    folder = saved(tiny("llama-tied"), tmp_path / "a")
    weights = load_file(folder / "model.safetensors")
    weights[kept] = weights.pop("model.embed_tokens.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stored = Artifact.of(folder, "causal-lm", stored=True)
    same(Artifact.of(folder, "causal-lm"), stored)
    assert tree.tied(stored.model)
    assert tree.tied(Artifact.load(saved(stored, tmp_path / "b")).model)


def test_tensors_that_should_be_tied_and_differ_stay_apart(tiny: Tiny, tmp_path: Path) -> None:
    folder = saved(tiny("llama-tied"), tmp_path / "a")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stored = Artifact.of(folder, "causal-lm", stored=True)
    same(Artifact.of(folder, "causal-lm"), stored)
    assert not tree.tied(stored.model)


def test_a_task_head_that_is_missing_starts_at_random_with_a_warning(tiny: Tiny, tmp_path: Path) -> None:
    folder = saved(tiny("llama"), tmp_path / "a")
    with pytest.warns(UserWarning, match=r"score\.weight are not in it and start at random"):
        stored = Artifact.of(folder, "classification", stored=True, labels=3)
    head = stored.tensor("score.weight")
    assert head.shape == (3, 32)
    assert 0.01 < head.std() < 0.03
    whole = Artifact.load(folder)
    names = [n for n in stored.tensor_names() if n != "score.weight"]
    assert all(tensors.same_bits(stored.tensor(n), whole.tensor(n)) for n in names)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bert"])
def test_the_model_is_called_block_by_block(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    folder = saved(tiny(kind), tmp_path / "a")
    whole, stored = Artifact.load(folder), Artifact.load(folder, stored=True)
    ids, most = torch.arange(2, 20).view(2, 9), 0

    def count(*_: object) -> None:
        nonlocal most
        most = max(most, sum(any(not p.is_meta for p in b.parameters()) for b in tree.blocks(stored.model).values()))

    for linear in tree.block_linears(stored.model).values():
        linear.register_forward_hook(count)
    with torch.inference_mode(), stored.called():
        logits = stored.model(ids).logits
    assert torch.equal(logits, whole.model(ids).logits)
    assert most == 1
    assert all(p.is_meta for p in inside(stored))
    with stored.opened(next(iter(tree.blocks(stored.model)))) as block:
        # what inference read is left behind
        next(block.parameters()).sum().backward()  # type: ignore[no-untyped-call]
    assert not any(b._forward_hooks or b._forward_pre_hooks for b in tree.blocks(stored.model).values())


def test_masks_are_packed_as_they_are_set_and_read_on_access(tiny: Tiny, tmp_path: Path) -> None:
    folder = saved(tiny("llama"), tmp_path / "a")
    given = Magnitude(Magnitude.Settings(include=("q_proj",))).run(Artifact.load(folder), Context(folder=tmp_path))
    opened = Artifact.load(saved(given, tmp_path / "b"), stored=True)
    masks = opened.new_masks()
    assert set(masks) == set(given.masks)
    name, other = "model.layers.0.mlp.up_proj", next(iter(given.masks))
    mask = torch.rand(64, 32) < 0.5
    masks[name], masks[other] = mask, torch.zeros(64, 32, dtype=torch.bool)[: given.masks[other].shape[0]]
    assert set(masks) == {*given.masks, name}
    assert torch.equal(masks[name], mask)
    assert not masks[other].any()
    assert torch.equal(opened.masks[other], given.masks[other])
    masks[name][0] = True  # a copy, as each access gives one
    assert torch.equal(masks[name], mask)
    odd = KeptMasks(tmp_path / "kept")
    odd["x"] = torch.tensor([[True, False, True], [False, False, True]])
    assert odd["x"].tolist() == [[True, False, True], [False, False, True]]
    del odd["x"]
    assert dict(odd) == {}


def test_a_weight_under_its_mask_is_found_on_disk_too(tiny: Tiny, tmp_path: Path) -> None:
    given = Artifact.load(saved(tiny("llama"), tmp_path / "a"), stored=True)
    name = "model.layers.0.mlp.up_proj"
    masks = given.new_masks()
    masks[name] = torch.zeros(64, 32, dtype=torch.bool)
    with pytest.raises(BrokenPromise, match=f"{name}: weights that the mask prunes are not zero"):
        saved(given.after(masks=masks), tmp_path / "b")


def test_facts_of_what_is_in_memory_at_once(tiny: Tiny) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    assert tree.held(facts) == facts.parameters
    block = sum(p.numel() for p in next(iter(tree.blocks(tiny("llama").model).values())).parameters())
    assert tree.held(facts.after(stored=True)) == facts.parameters - block
