"""PERP: what it trains and what it leaves, in every family, end to end and block by block."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.errors import BadData, BadSettings, BrokenPromise, Diverged
from compress.facts import BlockConfig, Facts, MaskFact
from passes._adapter import Adapter
from passes._train import loss
from passes.perp import Perp
from tests.conftest import CAUSAL, ENCODERS
from tests.passes.conftest import Bench, changed, state_bytes

KEPT = ("mask_lora", "scale_lora", "lora_prune")


@pytest.fixture
def bench(bench_of: Callable[..., Callable[..., Bench]]) -> Callable[..., Bench]:
    return bench_of(perp, pattern="2:4")


def perp(**given: Any) -> Perp:
    return Perp(Perp.Settings(**{"steps": 4, "rank": 4, "batch": 4, **given}))


# -- what changes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_only_what_is_declared_changes_and_zeros_stay(kind: str, bench: Callable[..., Bench]) -> None:
    b = bench(kind)
    after = b.run()
    assert changed(b.before, after) <= {*tree.norms(after.model), *_norm_biases(after), *_weights(after)}
    assert changed(b.before, after) >= set(_weights(after)) | _reached(kind, set(tree.norms(after.model)))
    for name, layer in tree.block_linears(after.model).items():
        assert torch.equal(after.masks[name], b.before.masks[name])
        groups = (layer.weight.view(layer.out_features, -1, 4) != 0).sum(-1)
        assert groups.le(2).all()
    assert not [m for m in after.model.modules() if isinstance(m, Adapter)]
    assert tree.tied(after.model) == tree.tied(b.before.model)
    assert b.report.measured["trainable"] == [perp().estimate(b.facts()).trainable]


def _weights(artifact: Artifact) -> list[str]:
    return [f"{n}.weight" for n in tree.block_linears(artifact.model)]


def _norm_biases(artifact: Artifact) -> list[str]:
    norms = {n.rpartition(".")[0] for n in tree.norms(artifact.model)}
    return [n for n in tree.biases(artifact.model) if n.rpartition(".")[0] in norms]


def _reached(kind: str, names: set[str]) -> set[str]:
    return names if kind != "roberta" else set()  # its loss hardly moves in four steps


@pytest.mark.parametrize("form", KEPT)
@pytest.mark.parametrize("pattern", ["2:4", "0.7"])
def test_each_form_trains_under_the_mask(form: str, pattern: str, bench: Callable[..., Bench]) -> None:
    b = bench(pattern=pattern)
    after = b.run(train=(form,), lr=1e-2)
    assert changed(b.before, after) == set(_weights(after))
    assert after.masks.keys() == b.before.masks.keys()
    assert ("merge_jump" in b.report.measured) == (form == "lora_prune")


def test_lora_prune_reports_its_jump(bench: Callable[..., Bench]) -> None:
    b = bench(pattern="0.7")
    b.run(train=("lora_prune",), lr=3e-2, steps=12)
    (jump,) = b.report.measured["merge_jump"]
    assert 0.5 < jump["norm"] < 1  # seven entries in ten are dropped
    assert jump["loss_after"] != jump["loss_before"]
    assert "norm of lora_prune's update" in b.report.notes[-1]


def test_lora_gives_up_the_masks_of_its_linears_alone(bench: Callable[..., Bench]) -> None:
    b = bench()
    given: dict[str, Any] = {"train": ("lora",), "drop_mask": True, "include": ("mlp",), "lr": 1e-2}
    after = b.run(**given)
    mlp = {n for n in b.before.masks if ".mlp." in n}
    assert after.masks.keys() == b.before.masks.keys() - mlp
    assert perp(**given).plan(b.facts()).masks.keys() == after.masks.keys()
    linears = tree.block_linears(after.model)
    assert all(linears[n].weight.ne(0).float().mean() > 0.99 for n in mlp)
    assert changed(b.before, after) == {f"{n}.weight" for n in mlp}


def test_include_and_exclude_choose_the_linears(bench: Callable[..., Bench]) -> None:
    b = bench()
    after = b.run(train=("mask_lora",), include=("layers.1",), exclude=("q_proj",))
    assert changed(b.before, after) == {n for n in _weights(after) if ".1." in n and "q_proj" not in n}


@pytest.mark.parametrize(
    ("kind", "subset"), [("opt", "biases"), ("gpt2", "biases"), ("llama", "norms"), ("opt", "norms")]
)
def test_small_subsets_change_just_themselves(kind: str, subset: str, bench: Callable[..., Bench]) -> None:
    b = bench(kind)
    after = b.run(train=(subset,), lr=1e-2)
    names = tree.biases(after.model) if subset == "biases" else {*tree.norms(after.model), *_norm_biases(after)}
    keys = {n for n in names if n.endswith(("k_proj.bias",))}  # softmax does not feel a bias of the keys
    assert changed(b.before, after) | keys == set(names)


def test_the_untied_head_is_merged_dense(bench: Callable[..., Bench]) -> None:
    b = bench("mistral")
    after = b.run(train=("head",))
    assert changed(b.before, after) == {"lm_head.weight"}
    old, new = (dict(a.model.named_parameters())["lm_head.weight"].detach() for a in (b.before, after))
    assert torch.linalg.matrix_rank(new - old, rtol=1e-4) == 4


@pytest.mark.parametrize("kind", ["llama-tied", "opt", "qwen3"])
def test_a_tied_embedding_keeps_its_bits(kind: str, bench: Callable[..., Bench]) -> None:
    b = bench(kind)
    after = b.run()
    embedding = after.model.get_input_embeddings().weight
    assert after.model.lm_head.weight is embedding
    assert not any("embed" in n for n in changed(b.before, after))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_task_model_trains_its_classifier_whole(task: str, bench: Callable[..., Bench]) -> None:
    b = bench("bert", task=task)
    after = b.run(train=("head",), lr=1e-2, steps=12)
    assert changed(b.before, after) == {"classifier.weight", "classifier.bias"}
    curve = [value for _, value, _ in b.report.measured["loss"]]
    assert sum(curve[-4:]) < sum(curve[:4])


def test_training_lowers_the_loss(bench: Callable[..., Bench]) -> None:
    b = bench("llama")
    b.run(steps=40, lr=1e-2)
    curve = [value for _, value, _ in b.report.measured["loss"]]
    assert sum(curve[-5:]) < 0.98 * sum(curve[:5])


def test_half_precision_comes_back(bench: Callable[..., Bench]) -> None:
    b = bench()
    for parameter in b.before.model.parameters():
        parameter.data = parameter.data.bfloat16()
    after = b.run(lr=1e-2)
    assert {p.dtype for p in after.model.parameters()} == {torch.bfloat16}
    linears = tree.block_linears(after.model)
    assert all(not linears[n].weight[~m].any() for n, m in after.masks.items())


# -- counts ------------------------------------------------------------------------------------------------------------


def test_trainable_counts_follow_the_formula(bench: Callable[..., Bench]) -> None:
    facts = bench("opt").facts()

    def count(*train: str, **rest: Any) -> int:
        return perp(train=train, **rest).estimate(facts).trainable

    linears = 2 * (4 * (32 + 32) + 2 * (32 + 64))  # 2 blocks of q, k, v, out and fc1, fc2
    assert count("mask_lora") == 4 * linears
    assert count("scale_lora", rank=1) == linears
    assert count("mask_lora", include=("q_proj",)) == 4 * 2 * 64
    assert count("norms") == 5 * 2 * 32
    assert count("biases") == 2 * (4 * 32 + 64 + 32) + 5 * 32
    assert count("biases", "norms") == count("biases") + 5 * 32  # the biases of norms are in both, and count once
    assert count("norms", "mask_lora") == count("norms") + count("mask_lora")


def test_published_share_of_opt_125m() -> None:
    hidden, layers = 768, 12
    shapes: dict[str, tuple[int, int]] = {}
    norms: dict[str, int] = {}
    for i in range(layers):
        block = f"model.decoder.layers.{i}"
        shapes |= {f"{block}.self_attn.{n}": (hidden, hidden) for n in ("q_proj", "k_proj", "v_proj", "out_proj")}
        shapes |= {f"{block}.fc1": (4 * hidden, hidden), f"{block}.fc2": (hidden, 4 * hidden)}
        norms |= {f"{block}.{n}.weight": hidden for n in ("self_attn_layer_norm", "final_layer_norm")}
    norms["model.decoder.final_layer_norm.weight"] = hidden
    biases = {f"{n}.bias": out for n, (out, _) in shapes.items()}
    biases |= {n.replace(".weight", ".bias"): size for n, size in norms.items()}
    total = 125_239_296
    facts = Facts(
        family="opt", task="causal-lm", tied=True, shapes=shapes, biases=biases, norms=norms, head=None,
        parameters=total, vocabulary=50272, positions=2048,
        layout=layers * (BlockConfig(heads=12, kv_heads=12, head_dim=hidden // 12, ffn=4 * hidden),),
        masks={n: MaskFact("unstructured", 0.5) for n in shapes},
    )  # fmt: skip
    shares = {("norms",): 0.031, ("biases",): 0.082, ("biases", "norms"): 0.097, ("mask_lora",): 2.12}
    for train, percent in shares.items():
        trained = perp(train=train, rank=16).estimate(facts).trainable
        assert 100 * trained / total == pytest.approx(percent, rel=0.02)


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "key", "words"),
    [
        ("llama", {"train": ("biases",)}, "train", "'biases': the model \\(llama\\) has none; 'norms' would do"),
        ("llama-tied", {"train": ("head",)}, "train", "tied to the input embedding"),
        ("opt", {"train": ("mask_lora", "lora")}, "train", "at most one low-rank form, got mask_lora and lora"),
        ("opt", {"train": ("norms", "norms")}, "train", "each subset once"),
        ("opt", {"train": ("lora",)}, "train", "'mask_lora' keeps them, or drop_mask = true"),
        ("opt", {"drop_mask": True}, "drop_mask", "only with 'lora'"),
        ("opt", {"rank": 33}, "rank", "must be <= 32"),
        ("opt", {"include": ("nothing",)}, "include", "matches no linear"),
        ("opt", {"train": ("norms",), "include": ("fc1",)}, "include", "has none"),
        ("mistral", {"train": ("head",), "mode": "reconstruct"}, "train", "outside the blocks"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(
    kind: str, given: dict[str, Any], key: str, words: str, bench: Callable[..., Bench]
) -> None:
    with pytest.raises(BadSettings, match=words) as error:
        perp(**given).plan(bench(kind).facts())
    assert error.value.key == key
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", KEPT)
def test_a_form_under_a_mask_needs_one(form: str, bench: Callable[..., Bench]) -> None:
    dense = bench().facts().after(masks={})
    with pytest.raises(BadSettings, match="no linear has a mask"):
        perp(train=(form,)).plan(dense)
    assert perp(train=("lora",)).plan(dense).trained  # a dense model has no mask to drop


def test_an_embedding_model_has_no_loss(bench: Callable[..., Bench]) -> None:
    facts = bench().facts().after(task="embedding")
    with pytest.raises(BadSettings, match="no loss of its own"):
        perp().plan(facts)
    assert perp(mode="reconstruct").plan(facts).trained


def test_settings_say_which_data_they_read() -> None:
    assert perp().data_uses() == {"training"}
    assert perp(mode="reconstruct").data_uses() == {"calibration"}


@pytest.mark.parametrize(
    ("name", "break_", "words"),
    [
        ("embed_tokens", lambda w: w.add_(1), "changed, though it is not trained"),
        ("layers.0.mlp.up_proj", lambda w: w.add_(1), "weights that the mask prunes are not zero"),
    ],
)
def test_a_broken_promise_is_noticed(
    name: str, break_: Callable[[Tensor], Tensor], words: str, bench: Callable[..., Bench]
) -> None:
    b = bench()
    after = b.before.after(model=copy.deepcopy(b.before.model))
    perp().ensures(b.before, after)
    with torch.no_grad():
        break_(dict(after.model.named_parameters())[f"model.{name}.weight"])
    with pytest.raises(BrokenPromise, match=words):
        perp().ensures(b.before, after)


def test_a_changed_mask_is_noticed(bench: Callable[..., Bench]) -> None:
    b = bench()
    name, mask = next(iter(b.before.masks.items()))
    with pytest.raises(BrokenPromise, match="its mask changed"):
        perp().ensures(b.before, b.before.after(masks={**b.before.masks, name: torch.ones_like(mask)}))
    with pytest.raises(BrokenPromise, match="masks came or went"):
        perp().ensures(b.before, b.before.after(masks={}))


# -- resume ------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """The process ends here."""


class _Mortal(QuietReport):
    """A report under which the process ends after so many figures or bars."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def bar(self, what: str, total: int, done: int = 0) -> Any:
        self._live()
        return super().bar(what, total, done)

    def record(self, name: str, value: Any) -> None:
        self._live()
        super().record(name, value)

    def _live(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


@pytest.mark.parametrize("after", [1, 4, 8])
@pytest.mark.parametrize("mode", ["retrain", "reconstruct"])
def test_killed_and_resumed_gives_the_same_bytes(mode: str, after: int, bench: Callable[..., Bench]) -> None:
    given: dict[str, Any] = {"mode": mode, "steps": 9, "checkpoint_every": 2}
    whole = bench(folder="whole")
    wanted = state_bytes(whole.run(**given))
    b = bench(folder="killed")
    report, b.context = b.report, _with(b.context, _Mortal(after))
    with pytest.raises(Killed):
        b.run(**given)
    b.context = _with(b.context, report)
    assert state_bytes(b.run(**given)) == wanted
    assert report.measured == whole.report.measured
    assert report.notes == whole.report.notes


def _with(context: Context, report: QuietReport) -> Context:
    return Context(folder=context.folder, data=context.data, parent=context.parent, report=report)


def test_divergence_stops_and_says_where(bench: Callable[..., Bench]) -> None:
    b = bench()
    with pytest.raises(Diverged, match="at step"):
        b.run(lr=1e30, steps=8)


# -- reconstruction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "window"), [*((k, "module") for k in (*CAUSAL, *ENCODERS)), ("gpt2", "block"), ("bert", "block")]
)
def test_reconstruction_lowers_the_held_out_error(kind: str, window: str, bench: Callable[..., Bench]) -> None:
    b = bench(kind, pattern="0.6")
    b.run(mode="reconstruct", window=window, steps=8, lr=2e-3)
    records = b.report.measured["reconstruction"]
    assert len(records) == (4 if window == "module" else 2)
    assert all(best <= start for _, start, best, _ in records)
    assert sum(best for *_, best, _ in records) < 0.97 * sum(start for _, start, *_ in records)


@pytest.mark.parametrize("inputs", ["sparse", "dense"])
@pytest.mark.parametrize("window", ["module", "block"])
def test_reconstruction_brings_a_block_nearer_to_the_parents(
    inputs: str, window: str, bench: Callable[..., Bench]
) -> None:
    b = bench("opt", pattern="0.6", windows=32)
    after = b.run(mode="reconstruct", window=window, inputs=inputs, steps=20, lr=1e-2)
    assert first_block_error(b.dense(), after) < 0.9 * first_block_error(b.dense(), b.before)


@torch.no_grad()
def first_block_error(dense: Artifact, artifact: Artifact) -> float:
    """Squared error of the first block's output, on tokens that no run has seen, without any of our machinery."""
    ids = torch.randint(2, 300, (4, 12), generator=torch.Generator().manual_seed(5))
    states = [a.model(input_ids=ids, output_hidden_states=True).hidden_states for a in (dense, artifact)]
    return float((states[0][1] - states[1][1]).square().mean())


def test_reconstruction_leaves_other_blocks_alone(bench: Callable[..., Bench]) -> None:
    b = bench()
    after = b.run(mode="reconstruct", train=("mask_lora",), include=("layers.0",), steps=12, lr=1e-2)
    assert changed(b.before, after) == {n for n in _weights(after) if ".layers.0." in n}


def test_reconstruction_leaves_norms_outside_the_blocks_alone(bench: Callable[..., Bench]) -> None:
    b = bench("opt")
    after = b.run(mode="reconstruct", train=("norms",), steps=12, lr=1e-2)
    moved = changed(b.before, after)
    assert moved
    assert all(".layers." in n for n in moved)


def test_reconstruction_tells_what_the_merge_of_lora_prune_spoils(bench: Callable[..., Bench]) -> None:
    b = bench("llama", pattern="0.9", windows=24)
    b.run(mode="reconstruct", train=("lora_prune",), rank=16, steps=40, lr=1e-2)
    worse = [w for w, before, after, _ in b.report.measured["reconstruction"] if after > before]
    assert worse
    assert [n.partition(": ")[0] for n in b.report.notes if "the merge raised the held-out error" in n] == worse


def test_reconstruction_of_what_is_whole_changes_nothing(bench: Callable[..., Bench]) -> None:
    b = bench("llama")
    b.before = b.dense().after(masks={n: torch.ones_like(m) for n, m in b.before.masks.items()})
    assert not changed(b.before, b.run(mode="reconstruct", steps=40, lr=1e-2))


def test_reconstruction_drops_nothing_by_dropout(bench: Callable[..., Bench]) -> None:
    b = bench("gpt2")  # its configuration has dropout 0.1
    dense = b.dense()
    b.before = dense.after(masks={n: torch.ones_like(m) for n, m in b.before.masks.items()})
    b.run(mode="reconstruct", steps=2)
    assert all(start == 0 for _, start, *_ in b.report.measured["reconstruction"])


def test_reconstruction_needs_the_parent_and_two_windows(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.context = Context(folder=b.context.folder, data=b.context.data)
    with pytest.raises(BadSettings, match="needs the dense parent"):
        b.run(mode="reconstruct")
    with pytest.raises(BadData, match="needs 2 windows or more, one to judge by, got 1"):
        bench(windows=1, folder="one").run(mode="reconstruct")
    with pytest.raises(BadSettings, match="nothing to reconstruct"):
        perp(mode="reconstruct").plan(b.facts().after(masks={}))


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_loss_is_that_of_transformers(bench: Callable[..., Bench]) -> None:
    b = bench()
    ids = torch.randint(2, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(ids % 3 == 0, -100)
    found = b.before.model(input_ids=ids, labels=labels)
    torch.testing.assert_close(loss(found.logits, labels, "causal-lm"), found.loss)
    assert loss(found.logits, torch.full_like(ids, -100), "causal-lm") == 0  # nothing to learn is no NaN


def test_every_form_is_on_the_card() -> None:
    import passes.perp as module

    assert all(form in (module.__doc__ or "") for form in (*KEPT, "lora"))
