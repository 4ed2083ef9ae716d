"""Recovery: what each method trains and what it leaves, in every family, against formulas and brute force."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import QuietReport
from compress.data import Source
from compress.errors import BadData, BadModel, BadSettings, BrokenPromise
from compress.facts import Facts
from passes import _masks
from passes._train import Group, classifier, frozen, loss_on, split_on, train_
from passes.recover import Recover, train
from passes.recover.borrowed import Adaptive
from passes.recover.chosen import choose
from passes.recover.settings import KEEPING, Method, RecoverSettings
from passes.recover.support import best, squared_gradients
from passes.recover.train import attach_
from tests.conftest import CAUSAL, ENCODERS
from tests.passes.conftest import Bench, changed, state_bytes

METHODS: tuple[Method, ...] = get_args(Method)
SUPPORTS = ("squared-gradients", "top-magnitude", "lottery")


@pytest.fixture
def bench(bench_of: Callable[..., Callable[..., Bench]]) -> Callable[..., Bench]:
    return bench_of(recover, pattern="2:4")


def table(**given: Any) -> RecoverSettings:
    given = {"steps": 3, "batch": 2, "lr": 1e-2, **given}
    ranked = given.get("method") in ("mask_lora", "lora", "hira", "adalora")
    searched = given.get("method", "sparse_delta") == "sparse_delta" and "support" not in given
    small = {"rank": 4} if ranked else {"probes": 2} if searched else {}
    return RecoverSettings(**small | given)


def recover(**given: Any) -> Recover:
    return Recover(table(**given))


def pattern_of(method: str) -> str | None:
    return None if method in ("lora", "adalora") else "2:4"


def logits(artifact: Artifact) -> Tensor:
    with torch.no_grad():
        found: Tensor = artifact.model(torch.arange(2, 18).view(2, 8)).logits
    return found


def weights_of(artifact: Artifact) -> set[str]:
    return {f"{n}.weight" for n in tree.block_linears(artifact.model)}


def declared(method: str, artifact: Artifact) -> set[str]:
    """Return what a method may change, written out."""
    model = artifact.model
    weights, every = weights_of(artifact), {n for n, _ in model.named_parameters(remove_duplicate=False)}
    biases = {n.removesuffix("weight") + "bias" for n in weights} & every
    modules = {n.rpartition(".")[0] for n in tree.norms(model)}
    norms = {n for n in every if n.rpartition(".")[0] in modules}
    down = tree.family(model).down
    inputs = {n for n in biases if n.endswith(f"{down}.bias") and "attention" not in n}
    outside = {n for n in every if n.startswith("classifier")}
    of = {
        "full": every, "scale_bias_norm": weights | biases | norms, "ia3": weights | (biases - inputs),
        "ln_tuning": norms,
    }  # fmt: skip
    return of.get(method, weights) | outside


# -- what changes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_declared_is_trained_and_changes(
    method: str, kind: str, bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(kind, pattern=pattern_of(method))
    sizes = watch(b, monkeypatch)
    after = b.run(method=method)
    assert changed(b.before, after) <= declared(method, after)
    if method not in ("sparse_delta", "ln_tuning", "adalora"):  # these may leave linears as they are
        assert changed(b.before, after) >= weights_of(after)
    assert after.masks is b.before.masks
    for name, mask in after.masks.items():
        layer = tree.block_linears(after.model)[name]
        assert (layer.weight.view(layer.out_features, -1, 4) != 0).sum(-1).le(2).all()
        assert _masks.same_bits(layer.weight[~mask], torch.zeros(int((~mask).sum())))  # not -0 either
    assert [type(m) for m in after.model.modules()] == [type(m) for m in b.before.model.modules()]
    assert not vars(after.model).keys() - vars(b.before.model).keys()
    assert tree.tied(after.model) == tree.tied(b.before.model)
    pruned = sum(int((~m).sum()) for m in after.masks.values()) if method == "full" else 0
    assert b.report.measured["trainable"] == [sum(sizes) - pruned]


def watch(b: Bench, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """See that a method starts as the model it is put into and merges as it trained; return the sizes it trains."""
    sizes: list[int] = []

    def attached(artifact: Artifact, *rest: Any) -> train.Attached:
        start = logits(artifact)
        found = attach_(artifact, *rest)
        assert torch.equal(logits(artifact), start)
        wanted = {id(p) for p in artifact.model.parameters() if p.requires_grad}
        assert {id(p) for p in found.parameters.values()} == wanted
        sizes.extend(p.numel() for p in found.parameters.values())
        merge_ = found.merge_

        def merged_() -> None:
            unmerged = logits(artifact)
            assert not torch.equal(unmerged, start)
            merge_()
            torch.testing.assert_close(logits(artifact), unmerged, rtol=0, atol=1e-5)

        found.merge_ = merged_
        return found

    monkeypatch.setattr(train, "attach_", attached)
    return sizes


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss(method: str, bench: Callable[..., Bench]) -> None:
    b = bench(pattern=pattern_of(method))
    after = b.run(method=method, steps=20, lr=3e-2)

    def whole_loss(artifact: Artifact) -> float:
        loss_of = loss_on(artifact, table(batch=16), b.context)
        with torch.no_grad():
            return float(loss_of(0))

    assert whole_loss(after) < 0.998 * whole_loss(b.before)  # of all windows: nothing here is chance


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("method", ["mask_lora", "ln_tuning"])
def test_a_task_model_trains_its_classifier_whole(method: str, task: str, bench: Callable[..., Bench]) -> None:
    b = bench("bert", task=task)
    after = b.run(method=method, steps=6)
    assert changed(b.before, after) >= {"classifier.weight", "classifier.bias"} == set(classifier(after.model))
    assert "the classifier" in b.report.notes[0]


@pytest.mark.parametrize("given", [{"method": "hira"}, {"method": "sparse_delta", "share": 1}, {"method": "full"}])
def test_include_and_exclude_choose_the_linears(given: dict[str, Any], bench: Callable[..., Bench]) -> None:
    b = bench("opt")
    after = b.run(**given, include=("layers.1",), exclude=("fc1",))
    kept = {n for n in weights_of(after) if ".1." in n and "fc1" not in n}
    assert changed(b.before, after) & weights_of(after) == kept
    if given["method"] == "full":
        assert changed(b.before, after) >= {"lm_head.weight", "model.decoder.embed_tokens.weight"}
    else:
        assert changed(b.before, after) == kept


def test_linears_without_biases_get_none(bench: Callable[..., Bench]) -> None:
    b = bench("llama")
    b.run(method="scale_bias_norm")
    assert "the chosen linears have no bias and get none" in b.report.notes[1]
    b = bench("opt", folder="opt")
    after = b.run(method="scale_bias_norm", bias=False)
    assert not changed(b.before, after) & {f"{n}.bias" for n in tree.block_linears(after.model)}
    assert len(b.report.notes) == 1


@pytest.mark.parametrize("precision", ["auto", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_comes_back(
    method: str, precision: str, bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(pattern=pattern_of(method))
    b.before.model.bfloat16()
    if precision == "bf16":  # as on a GPU, where the model stays as it is and what is trained alone is held in fp32
        monkeypatch.setattr(type(b.before.model), "float", lambda model: model)
    after = b.run(method=method, precision=precision)
    assert {p.dtype for p in after.model.parameters()} == {torch.bfloat16}
    assert changed(b.before, after) or method == "ln_tuning"  # whose steps are below the precision at 1
    assert all(p.requires_grad and p.grad is None for p in after.model.parameters())


# -- sparse deltas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("pattern", ["2:4", "0.7", None])
def test_a_sparse_delta_changes_so_many_surviving_weights(
    support: str, pattern: str | None, bench: Callable[..., Bench]
) -> None:
    b = bench("opt", pattern=pattern)
    after = b.run(method="sparse_delta", support=support, share=0.1)
    old, new = tree.block_linears(b.before.model), tree.block_linears(after.model)
    moved = {n: old[n].weight != new[n].weight for n in old}
    surviving = sum(int(b.before.masks[n].sum()) if pattern else old[n].weight.numel() for n in old)
    wanted = round(0.1 * surviving)
    (counts,) = b.report.measured["support"]
    assert sum(counts.values()) == wanted == b.report.measured["trainable"][0]
    assert 0.95 * wanted < sum(int(m.sum()) for m in moved.values()) <= wanted
    assert all(int(m.sum()) <= counts.get(n, 0) for n, m in moved.items())


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=3),
    share=st.floats(0.01, 1),
    levels=st.integers(1, 4),
    seed=st.integers(0, 2**20),
)
def test_the_support_is_the_best_of_all_that_survives(
    shapes: list[tuple[int, int]], share: float, levels: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = {str(i): torch.randint(levels, s, generator=random).float() for i, s in enumerate(shapes)}
    masks = {n: torch.rand(s.shape, generator=random) < 0.6 for n, s in scores.items()}
    masks["0"][0, 0] = True
    found = best(scores, masks, table(share=share))
    alive = torch.cat([scores[n][m] for n, m in masks.items()])
    count = max(round(share * len(alive)), 1)
    assert sum(len(at) for at in found.values()) == count
    assert all(masks[n].view(-1)[at].all() and (at.diff() > 0).all() for n, at in found.items())
    values = torch.cat([scores[n].view(-1)[at] for n, at in found.items()]).sort(descending=True).values
    assert torch.equal(values, alive.sort(descending=True).values[:count])


def test_squared_gradients_against_one_loss_after_the_other(bench: Callable[..., Bench]) -> None:
    b = bench("qwen2")
    given = table(probes=3, share=0.02)
    loss_of = loss_on(b.before, given, b.context)
    names = list(tree.block_linears(b.before.model))
    weights: dict[str, Any] = {n: b.before.model.get_submodule(n).weight for n in names}
    wanted = {n: torch.zeros_like(w) for n, w in weights.items()}
    for number in range(3):
        for name, gradient in zip(names, torch.autograd.grad(loss_of(number), list(weights.values())), strict=True):
            wanted[name] += gradient**2
    with frozen(b.before.model, given, torch.device("cpu")):
        found = squared_gradients(weights, loss_of, given, b.context)
        assert not any(p.requires_grad or p.grad is not None for p in b.before.model.parameters())
    for name in names:
        torch.testing.assert_close(found[name], wanted[name])
    after = b.run(method="sparse_delta", probes=3, share=0.02)
    ranked = sorted(((float(v), n, i) for n in names for i, v in enumerate(wanted[n][b.before.masks[n]])), reverse=True)
    count = round(0.02 * len(ranked))
    top = {(n, i) for _, n, i in ranked[:count]}
    moved = {
        (n, i)
        for n, w in tree.block_linears(after.model).items()
        for i, m in enumerate((w.weight != weights[n])[b.before.masks[n]])
        if m
    }
    assert moved <= top
    assert len(moved) > 0.95 * count


def test_the_lottery_keeps_what_moved_most_and_starts_again(bench: Callable[..., Bench]) -> None:
    b = bench(folder="lottery")
    after = b.run(method="sparse_delta", support="lottery", share=0.05)
    twin = bench(folder="twin")
    dense = twin.copy()
    given = table()
    weights: dict[str, Any] = {n: m.weight for n, m in tree.block_linears(dense.model).items()}
    with frozen(dense.model, given, torch.device("cpu")):
        for weight in weights.values():
            weight.requires_grad_(True)
        groups = [Group(weights, given.lr, masks=dense.masks)]
        train_(groups, loss_on(dense, given, twin.context), given, twin.context)
    old = {n: m.weight for n, m in tree.block_linears(b.before.model).items()}
    moved = torch.cat([(weights[n] - old[n]).abs().flatten() for n in old])
    changes = torch.cat([
        (m.weight != old[n]).flatten() for n, m in tree.block_linears(after.model).items()
    ])  # fmt: skip
    count = b.report.measured["trainable"][0]
    assert set(changes.nonzero().flatten().tolist()) <= set(moved.topk(count).indices.tolist())
    losses = [value for _, value in b.report.measured["lottery_loss"]]
    assert losses == [value for _, value, _ in twin.report.measured["loss"]]
    assert b.report.measured["loss"][0][1] == losses[0]  # the second phase starts where the first one did
    assert not (b.context.folder / "lottery.safetensors").exists()


def test_masked_gradients_leave_moments_and_zeros_alone(bench: Callable[..., Bench]) -> None:
    b = bench("gpt2", pattern="0.7")
    b.run(method="full", weight_decay=0.1, checkpoint_every=2)
    with safe_open(b.context.folder / "train.safetensors", framework="pt") as file:
        for name, mask in b.before.masks.items():
            for kind in ("now", "exp_avg", "exp_avg_sq"):
                tensor = file.get_tensor(f"{kind}.{name}.weight")
                assert not tensor[~mask].any()
                assert tensor[mask].ne(0).float().mean() > 0.9


# -- AdaLoRA -----------------------------------------------------------------------------------------------------------


def test_adalora_ends_at_its_budget_and_tells_its_ranks(bench: Callable[..., Bench]) -> None:
    b = bench(pattern=None)
    after = b.run(method="adalora", rank=2, steps=12)
    (ranks,) = b.report.measured["ranks"]
    linears = tree.block_linears(after.model)
    assert ranks.keys() == linears.keys()
    assert 0 < sum(ranks.values()) <= 2 * len(linears)
    assert len(set(ranks.values())) > 1
    for name, layer in linears.items():
        update = layer.weight - tree.block_linears(b.before.model)[name].weight
        assert int(torch.linalg.matrix_rank(update.detach(), rtol=1e-4)) == ranks[name]
    assert f"adalora leaves {sum(ranks.values())} ranks of {3 * len(linears)}, a budget of 28" in b.report.notes[1]


def test_the_pull_towards_orthogonal_factors(bench: Callable[..., Bench]) -> None:
    b = bench(pattern=None)
    given = table(method="adalora", orthogonality=0.3)
    found = Adaptive(b.before.model, choose(given, b.facts()), given, 0)
    distances = []
    for name, p in found.parameters.items():
        if "lora_E" in name:
            assert not p.any()
        else:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            distances.append((gram - torch.eye(6)).square().sum().sqrt())
    assert len(distances) == 2 * len(tree.block_linears(b.before.model)) or distances
    torch.testing.assert_close(found.penalty(), 0.3 * sum(distances) / len(distances))


def test_the_pull_moves_the_factors_and_not_the_curve(bench: Callable[..., Bench]) -> None:
    curves = []
    for weight in (0.0, 5.0):
        b = bench(folder=str(weight), pattern=None)
        b.run(method="adalora", orthogonality=weight)
        curves.append([value for _, value, _ in b.report.measured["loss"]])
    with torch.no_grad():
        first = float(loss_on(b.before, table(), b.context)(0))
    assert curves[0][0] == curves[1][0] == pytest.approx(first, rel=1e-5)
    assert curves[0][2] != curves[1][2]


def test_a_budget_that_is_not_met_is_noticed(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(pattern=None)
    monkeypatch.setattr(Adaptive, "ranks", _spoiled(Adaptive.ranks))
    with pytest.raises(BrokenPromise, match=r"ranks are left of a budget of 4 a linear"):
        b.run(method="adalora")


def _spoiled(ranks: Callable[[Adaptive], dict[str, int]]) -> Callable[[Adaptive], dict[str, int]]:
    def spoiled(self: Adaptive) -> dict[str, int]:
        self.config.rank_pattern = {n: [True] * len(k) for n, k in self.config.rank_pattern.items()}
        return ranks(self)

    return spoiled


# -- counts ------------------------------------------------------------------------------------------------------------


def test_trainable_counts_follow_the_formula(bench: Callable[..., Bench]) -> None:
    sparse, dense = bench("opt").facts(), bench("opt", folder="dense", pattern=None).facts()

    def count(method: str, facts: Facts = sparse, **rest: Any) -> int:
        return recover(method=method, **rest).estimate(facts).trainable

    shapes = 2 * [(32, 32)] * 4 + 2 * [(64, 32), (32, 64)]  # 2 blocks of q, k, v, out and fc1, fc2
    weights, both = sum(o * i for o, i in shapes), sum(o + i for o, i in shapes)
    norms = 5 * 2 * 32
    assert count("mask_lora") == count("hira") == count("lora", dense) == 4 * both
    assert count("adalora", dense) == 6 * (both + len(shapes))
    assert count("sparse_delta", share=0.1) == round(0.1 * weights / 2)
    assert count("sparse_delta", dense, share=0.1) == round(0.1 * weights)
    assert count("ln_tuning") == norms
    assert count("scale_bias_norm", bias=False) == sum(i for _, i in shapes) + norms
    assert count("scale_bias_norm") == sum(i for _, i in shapes) + norms + sum(o for o, _ in shapes)
    assert count("ia3") == sum(o for o, _ in shapes) + 2 * (64 - 32)  # fc2 has its inputs scaled
    assert count("full") == sparse.parameters - weights // 2
    assert count("full", dense) == dense.parameters
    assert count("full", include=("fc1",)) == sparse.parameters - weights + 2 * 64 * 32 // 2 - 2 * (5 * 32)


def test_a_search_costs_more(bench: Callable[..., Bench]) -> None:
    facts = bench().facts()
    costs = {s: recover(support=s, steps=200).estimate(facts) for s in SUPPORTS}
    assert costs["lottery"].seconds > costs["squared-gradients"].seconds > costs["top-magnitude"].seconds
    assert costs["lottery"].peak_mib > costs["top-magnitude"].peak_mib > recover(method="ia3").estimate(facts).peak_mib


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "key", "words"),
    [
        ("opt", {"method": "lora"}, "method", r"'lora' fills the zeros of 12 pruned linears, .*; 'sparse_delta', "),
        ("opt", {"method": "adalora"}, "method", r"'adalora' fills the zeros .* 'mask_lora', .* keep them"),
        ("opt", {"method": "hira", "rank": 33}, "rank", "must leave no more than 32"),
        ("opt", {"method": "full", "rank": 4}, "rank", "only with method 'mask_lora' or .*, got method 'full'"),
        ("opt", {"method": "hira", "alpha": 4}, "alpha", "only with method 'mask_lora' or 'lora' or 'adalora'"),
        ("opt", {"method": "ia3", "share": 0.1}, "share", "only with method 'sparse_delta'"),
        ("opt", {"method": "ia3", "bias": False}, "bias", "only with method 'scale_bias_norm'"),
        ("opt", {"support": "lottery", "probes": 4}, "probes", "only with support 'squared-gradients', got 'lottery'"),
        ("opt", {"include": ("nothing",)}, "include", "matches no linear"),
        ("opt", {"method": "ln_tuning", "exclude": ("fc1",)}, "exclude", "'ln_tuning' trains none"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(
    kind: str, given: dict[str, Any], key: str, words: str, bench: Callable[..., Bench]
) -> None:
    with pytest.raises(BadSettings, match=words) as error:
        recover(**given).plan(bench(kind).facts())
    assert error.value.key == key
    assert "\n" not in str(error.value)


def test_what_a_dense_model_cannot_have(bench: Callable[..., Bench]) -> None:
    dense = bench(pattern=None).facts()
    with pytest.raises(BadSettings, match=r"no chosen linear has a mask, .* 'lora' would do"):
        recover(method="mask_lora").plan(dense)
    with pytest.raises(BadSettings, match="needs 2 steps or more"):
        recover(method="adalora", steps=1).plan(dense)
    with pytest.raises(BadSettings, match="got 22, which starts with 33"):
        recover(method="adalora", rank=22).plan(dense)
    with pytest.raises(BadSettings, match="no loss of its own"):
        recover().plan(dense.after(task="embedding"))


def test_a_dense_part_of_a_pruned_model_may_have_any_method(bench: Callable[..., Bench]) -> None:
    for method in ("lora", "adalora"):
        b = bench(folder=method)
        b.before = b.before.after(masks={n: m for n, m in b.before.masks.items() if "mlp" not in n})
        after = b.run(method=method, include=("mlp",))
        assert changed(b.before, after) <= {n for n in weights_of(after) if "mlp" in n}
    with pytest.raises(BadSettings, match="fills the zeros of 8 pruned linears"):
        recover(method="lora").plan(b.facts())


def test_methods_are_either_keeping_or_refused() -> None:
    assert {*KEEPING, "lora", "adalora"} == set(METHODS)


@pytest.mark.parametrize("method", ["mask_lora", "scale_bias_norm", "hira"])
def test_a_linear_that_computes_more_is_refused(method: str, bench: Callable[..., Bench]) -> None:
    class More(nn.Linear):
        pass

    b = bench()
    name = next(iter(tree.block_linears(b.before.model)))
    b.before.model.get_submodule(name).__class__ = More
    with pytest.raises(BadModel, match=f"{name}: is a More, and '{method}' merges into plain linears alone"):
        b.run(method=method)


def test_a_zero_that_came_back_stops_the_run(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    name = next(iter(b.before.masks))

    def spoiled(artifact: Artifact, *rest: Any) -> train.Attached:
        found = attach_(artifact, *rest)
        merge_ = found.merge_

        def filled_() -> None:
            merge_()
            tree.block_linears(artifact.model)[name].weight.data.add_(1e-3)

        found.merge_ = filled_
        return found

    monkeypatch.setattr(train, "attach_", spoiled)
    with pytest.raises(BrokenPromise, match=f"{name}: weights that the mask prunes are not zero"):
        b.run(method="ia3")


@pytest.mark.parametrize(
    ("name", "method", "words"),
    [
        ("embed_tokens", "ia3", "changed, though it is not trained"),
        ("norm", "hira", "changed, though it is not trained"),
        ("layers.0.mlp.up_proj", "full", "weights that the mask prunes are not zero"),
        ("layers.0.mlp.up_proj", "sparse_delta", "weights changed where a sparse delta has"),
    ],
)
def test_a_broken_promise_is_noticed(name: str, method: str, words: str, bench: Callable[..., Bench]) -> None:
    b = bench()
    after = b.copy()
    recover(method=method).ensures(b.before, after)
    weight = dict(after.model.named_parameters())[f"model.{name}.weight"]
    with torch.no_grad():
        if method == "sparse_delta":
            weight.mul_(1.5)
        else:
            weight.add_(1)
    with pytest.raises(BrokenPromise, match=words):
        recover(method=method).ensures(b.before, after)


def test_a_loss_that_is_no_number_makes_no_support(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.before.model.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises(BadModel, match="a score is NaN"):
        b.run()


# -- the held-out share ------------------------------------------------------------------------------------------------


def test_the_best_state_on_what_is_held_out_stays(bench: Callable[..., Bench]) -> None:
    b = bench()
    after = b.run(method="full", held_out=0.25, lr=0.3, steps=20, schedule="constant")  # far too fast
    seen = b.report.measured["held_out_loss"]
    assert [s for s, _ in seen[:3]] == [0, 2, 4]
    lowest = min(v for _, v in seen)
    step = next(s for s, v in seen if v == lowest)
    assert f"the state after step {step} is the best" in b.report.notes[1]
    _, judge = split_on(after, table(held_out=0.25), b.context)
    assert judge is not None
    with torch.no_grad():
        assert judge() == pytest.approx(lowest, rel=1e-4)


def test_ranks_are_judged_when_they_stand(bench: Callable[..., Bench]) -> None:
    b = bench(pattern=None)
    b.run(method="adalora", held_out=0.25, steps=12, rank=2)
    assert [s for s, _ in b.report.measured["held_out_loss"]] == [9, 10, 11, 12]
    assert sum(b.report.measured["ranks"][0].values()) <= 28


def test_a_held_out_share_that_leaves_nothing_is_told(bench: Callable[..., Bench]) -> None:
    with pytest.raises(BadData, match="leaves none to train on"):
        bench().run(held_out=0.999)


def test_what_is_held_out_is_not_trained_on(bench: Callable[..., Bench]) -> None:
    b = bench()
    source, asked = b.context.data["training"], list[list[int]]()
    examples = source.examples(b.before.tokenizer)
    plain = examples.batch

    class Asked:
        def __len__(self) -> int:
            return len(examples)

        def batch(self, rows: list[int]) -> Any:
            asked.append(rows)
            return plain(rows)

    b.context.data["training"] = cast(Source, SimpleNamespace(examples=lambda tokenizer: Asked()))
    loss_of, judge = split_on(b.before, table(held_out=0.25), b.context)
    assert judge is not None
    with torch.no_grad():
        judge()
    held = {i for rows in asked for i in rows}
    asked.clear()
    for number in range(12):
        loss_of(number)
    seen = {i for rows in asked for i in rows}
    assert len(held) == round(0.25 * len(examples))
    assert not held & seen
    assert len(held | seen) == len(examples)


def test_labelled_examples_are_held_out_by_default() -> None:
    assert table().held_out_of("causal-lm") == 0
    assert table().held_out_of("classification") == 0.1
    assert table(held_out=0).held_out_of("classification") == 0


# -- resume ------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """The process ends here."""


class Mortal(QuietReport):
    """A report under which the process ends after so many steps of any bar."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Any]:
        yield self

    def show(self, text: str) -> None:
        """Show nothing."""

    def advance(self, amount: int = 1) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


CASES: tuple[dict[str, Any], ...] = (
    *({"method": m} for m in METHODS),
    {"support": "lottery"},
    {"method": "adalora", "held_out": 0.25},
    {"method": "hira", "held_out": 0.25},
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_killed_and_resumed_gives_the_same_bytes(case: dict[str, Any], bench: Callable[..., Bench]) -> None:
    pattern = pattern_of(case.get("method", ""))
    given = {**case, "steps": 9, "checkpoint_every": 2}
    whole = bench(folder="whole", pattern=pattern)
    wanted = state_bytes(whole.run(**given))
    b = bench(folder="killed", pattern=pattern)
    kind, b.context = b.context, dataclasses.replace(b.context, report=Mortal(3))
    for left in (5, 8):  # the lottery's last death is in its second phase
        with pytest.raises(Killed):
            b.run(**given)
        b.context = dataclasses.replace(kind, report=Mortal(left))
    if "lottery" in case.values():
        with pytest.raises(Killed):
            b.run(**given)
    b.context = kind
    assert state_bytes(b.run(**given)) == wanted
    assert b.report.measured == whole.report.measured
    assert b.report.notes == whole.report.notes
