"""DSEE: where its entries lie, what is trained, how it prunes and merges, in every family and task."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress import blocks, tree
from compress.artifact import Artifact
from compress.context import QuietReport
from compress.errors import BadData, BadModel, BadSettings, BrokenPromise
from compress.facts import Facts, MaskFact
from passes import _masks
from passes._adapter import Adapter
from passes._train import heads_of, train_
from passes.dsee import Dsee, tune
from passes.dsee.plan import choose
from passes.dsee.support import support_of
from tests.conftest import CAUSAL, ENCODERS
from tests.passes.conftest import Bench, changed, state_bytes

Maker = Callable[..., Bench]


@pytest.fixture
def bench(bench_of: Callable[..., Maker]) -> Maker:
    return bench_of(dsee, windows=12)


def dsee(**given: Any) -> Dsee:
    return Dsee(Dsee.Settings(**{"steps": 3, "tune_steps": 3, "rank": 4, "entries": 8, "batch": 4, **given}))


def weights(artifact: Artifact) -> dict[str, Tensor]:
    return {n: m.weight.detach() for n, m in tree.block_linears(artifact.model).items()}


def qv(artifact: Artifact) -> set[str]:
    return {n for n in weights(artifact) if n.endswith(("q_proj", "v_proj", "query", "value", "c_attn"))}


@torch.no_grad()
def logits(artifact: Artifact) -> Tensor:
    ids = torch.randint(2, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    found: Tensor = artifact.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


# -- where the entries lie -------------------------------------------------------------------------------------------


def planted(seed: int, spike: float, noise: float = 0.01) -> tuple[Tensor, list[int]]:
    """A matrix of rank 6 with 20 spikes of the size of its own entries, and their positions."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(48, 6, generator=random) @ torch.randn(6, 64, generator=random)
    places = torch.randperm(48 * 64, generator=random)[:20].sort().values
    signs = torch.randn(20, generator=random).sign()
    weight.view(-1)[places] += spike * weight.std() * signs
    return weight + noise * torch.randn(48, 64, generator=random), places.tolist()


@pytest.mark.parametrize("rank", [6, 16])
@pytest.mark.parametrize("spike", [1.0, 3.0])
def test_planted_spikes_are_found_and_size_alone_misses_them(spike: float, rank: int) -> None:
    for seed in range(5):
        weight, places = planted(seed, spike)
        found = support_of(weight, None, "decomposition", entries=20, rank=rank, seed=0)
        assert found.tolist() == places
        largest = support_of(weight, None, "top-magnitude", entries=20, rank=rank, seed=0)
        assert len(set(largest.tolist()) & set(places)) <= 10


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["decomposition", "top-magnitude", "random"]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    share=st.floats(0, 1),
    what=st.sampled_from(["zeros", "ones", "low rank", "random"]),
    masked=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_there_are_always_as_many_entries_as_asked(
    kind: Any, rows: int, columns: int, share: float, what: str, masked: bool, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = {
        "zeros": torch.zeros(rows, columns),
        "ones": torch.ones(rows, columns),
        "low rank": torch.randn(rows, 1, generator=random) @ torch.randn(1, columns, generator=random),
        "random": torch.randn(rows, columns, generator=random),
    }[what]
    entries = max(1, round(share * rows * columns))
    mask = torch.rand(rows, columns, generator=random) < 0.5 if masked else None
    rank = 1 + seed % min(rows, columns)
    found = support_of(weight, mask, kind, entries=entries, rank=rank, seed=seed)
    assert found.dtype == torch.int64
    assert len(found) == entries
    assert (found.diff() > 0).all()
    assert not len(found) or 0 <= int(found[0]) <= int(found[-1]) < rows * columns
    if mask is not None:
        assert int(mask.view(-1)[found].sum()) == min(entries, int(mask.sum()))  # pruned places come last
    again = support_of(weight, mask, kind, entries=entries, rank=rank, seed=seed)
    assert torch.equal(found, again)


def test_size_and_chance_choose_what_they_say() -> None:
    weight = torch.tensor([[1.0, -9.0, 2.0], [8.0, 0.0, -7.0]])
    assert support_of(weight, None, "top-magnitude", entries=3, rank=1, seed=0).tolist() == [1, 3, 5]
    seen = {tuple(support_of(weight, None, "random", entries=2, rank=1, seed=s).tolist()) for s in range(40)}
    assert len(seen) > 8  # of 15 pairs


# -- what is trained -------------------------------------------------------------------------------------------------


def bert_base() -> Facts:
    with torch.device("meta"):
        return tree.facts(tf.BertForSequenceClassification(tf.BertConfig()), "classification")


@pytest.mark.parametrize("entries", [16, 64])
def test_trained_numbers_are_those_of_the_paper(entries: int) -> None:
    facts, plugin = bert_base(), Dsee(Dsee.Settings(entries=entries))
    assert plugin.estimate(facts).trainable == 589_824 + 24 * entries
    assert plugin.estimate(facts).trainable / facts.parameters == pytest.approx(0.0054, abs=1e-4)
    everything = Dsee(Dsee.Settings(entries=entries, linears="all"))
    wanted = 12 * (4 * 16 * 2 * 768 + 2 * 16 * (768 + 3072)) + 72 * entries
    assert everything.estimate(facts).trainable == wanted


@pytest.mark.parametrize("merge", ["inside", "branch"])
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_every_family_is_tuned_pruned_and_merged(kind: str, merge: str, bench: Maker) -> None:
    b = bench(kind)
    after = b.run(merge=merge)
    updated, heads = qv(after), set(heads_of(b.before))
    pruned = {f"{n}.weight" for n in weights(after)}
    assert bool(heads) == (kind in ENCODERS)
    assert changed(b.before, after) <= pruned | heads
    assert changed(b.before, after) >= pruned  # every linear lost something
    assert not [m for m in after.model.modules() if isinstance(m, Adapter)]
    assert tree.tied(after.model) == tree.tied(b.before.model)
    for name, weight in weights(after).items():
        mask = after.masks[name]
        assert int((~mask).sum()) == mask.numel() // 2
        assert not weight[~mask].any()
        was = weights(b.before)[name].masked_fill(~mask, 0)
        if name not in updated:
            assert _masks.same_bits(was, weight)
            assert torch.equal(mask, _masks.keep_top(weights(b.before)[name].abs(), 0.5))
        elif merge == "branch":
            assert 0 < int((was != weight).sum()) <= 8
        else:
            assert (was != weight).sum() > 8
    branched = {n.removesuffix(".a") for n, _ in after.model.named_parameters() if n.endswith(".a")}
    assert branched == (updated if merge == "branch" else set())
    assert (logits(after) - logits(b.before)).abs().max() > 0


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kind", ["bert", "llama-tied"])
def test_the_optimizer_holds_what_the_formula_counts_and_no_more(
    kind: str, rank: int, bench: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[dict[str, Tensor]] = []
    b = bench(kind)
    start = b.before.after(model=copy.deepcopy(b.before.model))

    def seen(groups: Any, *args: Any, **rest: Any) -> None:
        held.append({n: p for g in groups for n, p in g.parameters.items()})
        needing = {id(p) for p in start.model.parameters() if p.requires_grad}
        assert needing == {id(p) for p in held[-1].values()}
        for p in held[-1].values():
            p.data += 0.01

    monkeypatch.setattr(tune, "train_", seen)
    plugin = dsee(rank=rank, support="top-magnitude")
    plugin.run(start, b.context)
    heads = {n: dict(b.before.model.named_parameters())[n].numel() for n in heads_of(b.before)}
    parts = ["lora_a", "lora_b"] * (rank > 0) + ["lora_s"]
    assert list(held[0]) == list(held[1])
    assert set(held[0]) == {f"{n}.{part}" for n in qv(b.before) for part in parts} | set(heads)
    trained = sum(p.numel() for n, p in held[0].items() if n not in heads)
    assert trained == plugin.estimate(b.facts()).trainable
    assert b.report.measured["trainable"] == [trained + sum(heads.values())]
    assert all(p.numel() == 8 for n, p in held[0].items() if n.endswith("lora_s"))


def test_the_model_starts_as_it_was(bench: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench("bert")
    seen: list[Tensor] = []
    start = b.before.after(model=copy.deepcopy(b.before.model))

    def stop(*args: Any, **rest: Any) -> None:
        seen.append(logits(start))
        raise RuntimeError("enough")

    monkeypatch.setattr(tune, "train_", stop)
    with pytest.raises(RuntimeError, match="enough"):
        dsee(linears="all").run(start, b.context)
    assert torch.equal(seen[0], logits(b.before))


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["inside", "branch"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("linears", ["qv", "all"])
def test_sparsity_is_exact_after_the_merge(linears: str, pattern: str, merge: str, bench: Maker) -> None:
    after = bench("qwen3").run(linears=linears, pattern=pattern, merge=merge)
    for name, weight in weights(after).items():
        mask = after.masks[name]
        assert not weight[~mask].any()
        if pattern == "2:4":
            assert (mask.view(-1, 4).sum(1) == 2).all()
            assert ((weight.view(-1, 4) != 0).sum(1) <= 2).all()
        else:
            assert int(mask.sum()) == mask.numel() // 2


@pytest.mark.parametrize("mask_from", ["update", "weight", "both"])
def test_the_mask_is_drawn_from_what_is_asked(mask_from: str, bench: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    original = tune.masks_of

    def spy(artifact: Artifact, chosen: Any, adapters: Any, given: Any) -> dict[str, Tensor]:
        seen.update({n: (a.weight.detach().clone(), a.merged() - a.weight) for n, a in adapters.items()})
        return original(artifact, chosen, adapters, given)

    monkeypatch.setattr(tune, "masks_of", spy)
    after = b.run(mask_from=mask_from, sparsity=0.3)
    assert seen.keys() == qv(after)
    for name, (weight, update) in seen.items():
        score = {"update": update, "weight": weight, "both": weight + update}[mask_from].abs()
        kept, gone = score[after.masks[name]], score[~after.masks[name]]
        assert len(gone) == round(0.3 * score.numel())
        assert gone.max() <= kept.min() + 1e-7  # the sum is rounded where the score is not


def test_an_update_that_never_moved_gives_no_mask(bench: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "train_", lambda *args, **rest: None)
    b = bench()
    with pytest.raises(BadModel, match="its update at zero"):
        dsee().run(b.before.after(model=copy.deepcopy(b.before.model)), b.context)
    b.run(mask_from="weight")


@pytest.mark.parametrize("merge", ["inside", "branch"])
def test_masks_only_grow(merge: str, bench: Maker) -> None:
    b = bench(pattern="0.3")
    after = b.run(merge=merge, include=["self_attn"], sparsity=0.6)
    for name, mask in after.masks.items():
        assert not (mask & ~b.before.masks[name]).any()
        share = 0.6 if "self_attn" in name else 0.3
        assert int((~mask).sum()) == round(share * mask.numel())
        assert not weights(after)[name][~mask].any()


def test_entries_lie_where_an_earlier_mask_keeps(bench: Maker) -> None:
    b = bench(pattern="0.5")
    found = tune.supports_of(b.before, choose(dsee().settings, b.facts()), dsee().settings, b.context)
    assert found.keys() == qv(b.before)
    assert all(b.before.masks[n].view(-1)[s].all() for n, s in found.items())


# -- heads and neurons -------------------------------------------------------------------------------------------------


SLIM: dict[str, Any] = {"structured_heads": 0.5, "structured_neurons": 0.25, "multiple": 8}


@pytest.mark.parametrize("linears", ["qv", "all"])
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_every_family_becomes_smaller(kind: str, linears: str, bench: Maker, tmp_path: Path) -> None:
    b = bench(kind)
    given = {**SLIM, "linears": linears}
    planned = dsee(**given).plan(b.facts())
    after = b.run(**given)
    assert tree.facts(after.model, after.task).after(trained=True) == planned
    for was, now in zip(tree.layout(b.before.model), tree.layout(after.model), strict=True):
        assert (now.kv_heads, now.heads, now.ffn) == (was.kv_heads // 2, was.heads // 2, was.ffn * 3 // 4)
    assert not after.masks
    assert not [m for m in after.model.modules() if isinstance(m, Adapter)]
    assert {type(m) for m in tree.block_linears(after.model).values()} == {torch.nn.Linear}
    folder = tmp_path / "saved"
    folder.mkdir()
    after.save(folder)
    assert torch.equal(logits(Artifact.load(folder)), logits(after))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_what_is_removed_is_as_good_as_zeroed(kind: str, bench: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a training the cut alone speaks: heads of small rows go, as their columns of the output set to zero."""
    b = bench(kind)
    table, worth = tree.family(b.before.model), {}
    for index, (name, block) in enumerate(tree.blocks(b.before.model).items()):
        shape = tree.layout(b.before.model)[index]
        qkv = [block.get_parameter(f"{n}.weight").detach() for n in table.qkvo[:-1]]
        queries, _, values = qkv if len(qkv) == 3 else qkv[0].chunk(3)
        heads = [
            sum(float(part[h * len(part) // shape.kv_heads : (h + 1) * len(part) // shape.kv_heads].abs().sum())
                for part in (queries, values))
            for h in range(shape.kv_heads)
        ]  # fmt: skip
        worth[name] = heads
    monkeypatch.setattr(tune, "train_", lambda *args, **rest: None)
    after = b.run(**{**SLIM, "structured_neurons": 0, "mask_from": "weight"})
    for name, heads in worth.items():
        reader = b.before.model.get_parameter(f"{name}.{table.qkvo[-1]}.weight").data
        for head in sorted(range(len(heads)), key=heads.__getitem__)[: len(heads) // 2]:
            reader.view(len(reader), len(heads), -1)[:, head] = 0
    torch.testing.assert_close(logits(after), logits(b.before))


def test_gates_choose_the_neurons_and_stay_in_the_weights(bench: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench("bert", pattern="0.5")
    held: list[list[str]] = []

    def seen(groups: Any, *args: Any, **rest: Any) -> None:
        held.append([n for g in groups for n in g.parameters])
        for name, gate in [(n, p) for g in groups for n, p in g.parameters.items() if n.endswith(".gate")]:
            gate.data = torch.linspace(-2, 2, 64) if ".0." in name else torch.linspace(1, 0, 64)

    monkeypatch.setattr(tune, "train_", seen)
    after = b.run(structured_neurons=0.25, multiple=8, mask_from="weight")
    downs = [f"bert.encoder.layer.{i}.output.dense" for i in (0, 1)]
    assert [n for n in held[0] if n.endswith(".gate")] == [f"{n}.gate" for n in downs]
    assert not [n for n in held[1] if n.endswith(".gate")]
    kept = [torch.tensor([*range(24), *range(40, 64)]), torch.arange(48)]
    gates = [torch.linspace(-2, 2, 64), torch.linspace(1, 0, 64)]
    for name, rows, gate in zip(downs, kept, gates, strict=True):
        assert torch.equal(weights(after)[name], (weights(b.before)[name] * gate)[:, rows])
        assert torch.equal(after.masks[name], b.before.masks[name][:, rows])
        assert not weights(after)[name][~after.masks[name]].signbit().any()
        up = name.replace("output", "intermediate")
        assert torch.equal(weights(after)[up], weights(b.before)[up][rows])


def test_the_penalty_is_trained_on_and_not_judged_by(bench: Maker) -> None:
    losses, judged = [], []
    for penalty in (0.0, 1.0):
        b = bench("bert", folder=str(penalty))
        b.run(structured_neurons=0.25, multiple=8, penalty=penalty, held_out=0.5, tune_steps=1)
        losses.append(b.report.measured["tune_loss"][0][1])
        judged.append(b.report.measured["loss"][0][1])
    assert losses[1] - losses[0] == pytest.approx(128)  # 2 blocks of 64 gates, all 1
    assert abs(judged[1] - judged[0]) < 1


@pytest.mark.parametrize(("stage", "batch"), [("tune", 3), ("retune", 0), ("retune", 4)])
def test_a_killed_run_of_a_smaller_model_resumes_to_the_same_bytes(
    stage: str, batch: int, bench: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_after_a_kill(bench, monkeypatch, stage, batch, SLIM)


def test_half_precision_and_masks_survive_the_cut(bench: Maker) -> None:
    b = bench("llama", pattern="0.5")
    b.before.model.to(torch.bfloat16)  # type: ignore[arg-type]
    after = b.run(**SLIM)
    assert {p.dtype for p in after.model.parameters()} == {torch.bfloat16}
    assert after.masks.keys() == b.before.masks.keys()
    assert not any(weights(after)[n][~m].any() for n, m in after.masks.items())


@pytest.mark.parametrize(
    ("wrong", "key", "what"),
    [
        ({"pattern": "2:4"}, "pattern", "no mask is made"),
        ({"sparsity": 0.5}, "sparsity", "no mask is made"),
        ({"merge": "branch"}, "merge", "'inside' would do"),
        ({"exclude": ["q_proj"]}, "structured_heads", "some have none"),
        ({"structured_heads": 0.9}, "structured_heads", "would keep 0"),
        ({"structured_heads": 0, "structured_neurons": 0.01}, "structured_neurons", "nothing would be removed"),
        ({"rank": 9, "linears": "all"}, "rank", "must be <= 8"),
        ({"entries": 300}, "entries", "must be <= 256"),
    ],
)
def test_what_cannot_be_removed_is_refused(wrong: dict[str, Any], key: str, what: str, bench: Maker) -> None:
    with pytest.raises(BadSettings, match=what) as caught:
        dsee(**{**SLIM, **wrong}).plan(bench().facts())
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda m: m.model.layers[0].self_attn.k_proj.weight.data.mul_(1.01), "less rows or columns"),
        (
            lambda m: m.model.layers[0].self_attn.o_proj.weight.data.copy_(m.model.layers[1].self_attn.o_proj.weight),
            "o_proj",
        ),
        (lambda m: m.model.norm.weight.data.fill_(2), "model.norm.weight: is not what it was"),
        (lambda m: tree.replace_(m, "model.layers.0.mlp", m.model.layers[1].self_attn), "came or went"),
        (lambda m: blocks.slice_(m, 0, neurons=torch.arange(8)), "was asked for"),
    ],
)
def test_damage_to_a_smaller_model_is_seen(damage: Any, what: str, bench: Maker) -> None:
    b = bench()
    after = b.run(**SLIM)
    damage(after.model)
    with pytest.raises(BrokenPromise, match=what):
        dsee(**SLIM).ensures(b.before, after)


# -- merge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["inside", "branch"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "llama-tied"])
def test_merged_equals_unmerged_also_after_save_and_load(
    kind: str, merge: str, bench: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    original = tune.settle_

    def spy(artifact: Artifact, adapters: Any, given: Any) -> Any:
        seen.append(logits(artifact))
        return original(artifact, adapters, given)

    monkeypatch.setattr(tune, "settle_", spy)
    after = bench(kind).run(merge=merge, lr=0.02)
    assert (seen[0] - logits(after)).abs().max() <= 1e-5
    (tmp_path / "saved").mkdir()
    after.save(tmp_path / "saved")
    again = Artifact.load(tmp_path / "saved")
    assert torch.equal(logits(again), logits(after))
    assert all(torch.equal(m, after.masks[n]) for n, m in again.masks.items())


def test_half_precision_comes_out_as_it_went_in(bench: Maker) -> None:
    for merge in ("inside", "branch"):
        b = bench("llama", folder=merge)
        b.before.model.to(torch.bfloat16)  # type: ignore[arg-type]
        after = b.run(merge=merge)
        assert {p.dtype for p in after.model.parameters()} == {torch.bfloat16}
        assert all(p.requires_grad for p in after.model.parameters())


# -- tasks, best state, resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "task"),
    [("llama", "classification"), ("gpt2", "regression"), ("bert", "regression"), ("roberta", "classification")],
)
def test_task_models_train_their_classifier(kind: str, task: str, bench: Maker) -> None:
    b = bench(kind, task)
    b.before.model.config.pad_token_id = b.before.tokenizer.pad_token_id  # where a decoder's last token is told by it
    after = b.run()
    heads = set(heads_of(b.before))
    assert heads
    assert heads <= changed(b.before, after)
    assert heads == changed(b.before, after) - {f"{n}.weight" for n in weights(after)}


def test_the_best_state_on_held_out_examples_stays(bench: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench("bert")
    seen: list[tuple[str, bool, int]] = []

    def spy(*args: Any, **rest: Any) -> Any:
        done = train_(*args, **rest)
        seen.append((rest["name"], rest["validate"] is not None, rest["since"]))
        assert [s for s, _ in done.validations] == ([1, 2, 3] if rest["name"] == "tune" else [0, 1, 2, 3])
        return done

    monkeypatch.setattr(tune, "train_", spy)
    b.run(held_out=0.5)
    assert seen == [("tune", True, 1), ("retune", True, 0)]
    assert len(b.report.measured["tune_loss"]) == 3
    assert len(b.report.measured["loss"]) == 3
    with pytest.raises(BadData, match="held out"):
        bench("bert", folder="all").run(held_out=0.99)


@pytest.mark.parametrize("merge", ["inside", "branch"])
@pytest.mark.parametrize(("stage", "batch"), [("tune", 3), ("retune", 0), ("retune", 4)])
def test_a_killed_run_resumes_to_the_same_bytes(
    stage: str, batch: int, merge: str, bench: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_after_a_kill(bench, monkeypatch, stage, batch, {"merge": merge})


def same_after_a_kill(
    bench: Maker, monkeypatch: pytest.MonkeyPatch, stage: str, batch: int, given: dict[str, Any]
) -> None:
    """Kill a run at a batch of a stage, resume it, and compare with one that ran through."""
    given = {**given, "tune_steps": 5, "steps": 6, "checkpoint_every": 2}
    whole = bench("bert").run(**given)
    b = bench("bert", folder="killed")

    def killed(groups: Any, loss_of: Any, *args: Any, **rest: Any) -> Any:
        def dies(number: int) -> Tensor:
            if rest["name"] == stage and number == batch:
                raise KeyboardInterrupt
            found: Tensor = loss_of(number)
            return found

        return train_(groups, dies, *args, **rest)

    monkeypatch.setattr(tune, "train_", killed)
    with pytest.raises(KeyboardInterrupt):
        b.run(**given)
    monkeypatch.setattr(tune, "train_", train_)
    b.context = replace(b.context, report=QuietReport())
    assert state_bytes(b.run(**given)) == state_bytes(whole)
    assert state_bytes(bench("bert", folder="again").run(**given)) == state_bytes(whole)


# -- refusals and damage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "key", "what"),
    [
        ({"rank": 17, "linears": "all"}, "rank", "must be <= 16, the rank of model.layers.0.self_attn.k_proj, got 17"),
        ({"entries": 513}, "entries", r"must be <= 512, the size of .*v_proj, got 513"),
        ({"rank": 0, "entries": 0}, "entries", "nothing to train"),
        ({"rank": 0, "alpha": 4.0, "support": "random"}, "alpha", "at rank 0"),
        ({"rank": 0, "merge": "branch", "support": "random"}, "merge", "'inside' would do"),
        ({"rank": 0}, "support", "'top-magnitude' would do"),
        ({"entries": 0, "support": "random"}, "support", "leave it out"),
        ({"include": ["mlp"]}, "linears", "'all' would do"),
        ({"include": ["nothing"]}, "include", "matches no linear"),
        ({"pattern": "3:5"}, "pattern", "does not divide"),
        ({"pattern": "2:4", "sparsity": 0.3}, "sparsity", "fixes the sparsity"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], key: str, what: str, bench: Maker) -> None:
    with pytest.raises(BadSettings, match=what) as caught:
        dsee(**wrong).plan(bench().facts())
    assert caught.value.key == key


def test_an_embedding_model_has_no_loss(tiny: Callable[..., Artifact]) -> None:
    with pytest.raises(BadSettings, match="no loss"):
        dsee().plan(tree.facts(tiny("bert", "embedding").model, "embedding"))


def test_a_damaged_weight_is_refused(bench: Maker) -> None:
    b = bench()
    next(iter(weights(b.before).values()))[0, 0] = torch.nan
    with pytest.raises(BadModel, match="a weight is NaN"):
        b.run()


def test_facts_afterwards(bench: Maker) -> None:
    facts = bench().facts()
    after = dsee(pattern="2:4", include=["self_attn"]).plan(facts)
    assert after.trained
    assert set(after.masks) == {n for n in facts.shapes if "self_attn" in n}
    assert set(after.masks.values()) == {MaskFact("2:4", 0.5)}
    assert (after.branches, after.parameters) == ({}, facts.parameters)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_facts_count_branches_and_no_second_update_takes_their_linears(kind: str, bench: Maker) -> None:
    b, plugin = bench(kind), dsee(merge="branch")
    planned = plugin.plan(b.facts())
    found = tree.facts(b.run(merge="branch").model, b.before.task)
    assert found.after(masks=planned.masks, trained=True) == planned
    assert planned.branches == dict.fromkeys(qv(b.before), 4)
    with pytest.raises(BadSettings, match="has a low-rank branch") as caught:
        plugin.plan(planned)
    assert caught.value.key == "exclude"


@pytest.mark.parametrize(
    ("merge", "damage", "what"),
    [
        ("inside", lambda a: a.masks["model.layers.0.mlp.up_proj"].fill_(True), "counts of zeros"),
        ("inside", lambda a: a.model.model.layers[1].mlp.up_proj.weight.data.fill_(1), "not zero"),
        ("inside", lambda a: a.model.model.norm.weight.data.fill_(2), "changed, though it is not trained"),
        ("inside", lambda a: a.model.model.layers[0].mlp.up_proj.weight.data.mul_(1.01), "more than its zeros"),
        ("branch", lambda a: a.model.model.layers[0].self_attn.q_proj.weight.data.mul_(1.01), "more than its zeros"),
        ("branch", lambda a: tree.replace_(a.model, "model.layers.0.self_attn.q_proj", plain(a)), "came or went"),
    ],
)
def test_damage_is_seen(merge: str, damage: Any, what: str, bench: Maker) -> None:
    b = bench()
    after = b.run(merge=merge)
    damage(after)
    with pytest.raises(BrokenPromise, match=what):
        dsee(merge=merge).ensures(b.before, after)


def plain(artifact: Artifact) -> torch.nn.Linear:
    """The first query without its branch."""
    branched: Any = artifact.model.get_submodule("model.layers.0.self_attn.q_proj")
    layer = torch.nn.Linear(branched.in_features, branched.out_features, bias=False)
    layer.weight = branched.weight
    return layer
