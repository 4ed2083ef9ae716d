"""PST: its gradients against closed forms, its schedule, its masks, and the whole pass in every family."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import QuietReport
from compress.errors import BadData, BadModel, BadSettings, BrokenPromise, CompressError
from passes import _masks
from passes._masks import Pattern, Rule
from passes._train import Group, TrainSettings, loss_on, train_
from passes.magnitude import Magnitude
from passes.perp import Perp
from passes.pst import Pst
from passes.pst.scored import Scored, masks_at, score, updated
from passes.pst.settings import PstSettings
from passes.pst.train import groups, scored
from tests.conftest import CAUSAL, ENCODERS
from tests.passes.conftest import Bench, changed, state_bytes

OUT, IN = 6, 8
NAMES = ("u", "v", "a", "b", "r", "c")


def pst(**given: Any) -> Pst:
    return Pst(PstSettings(**{"steps": 6, "rank": 4, "score_rank": 3, "batch": 4, **given}))


def layer_of(settings: PstSettings, dtype: torch.dtype = torch.float64, out: int = OUT, inputs: int = IN) -> Scored:
    """A scored linear that is anywhere but at its start, under the mask of its score."""
    random = torch.Generator().manual_seed(0)
    plain = nn.Linear(inputs, out, dtype=dtype)
    for tensor in (plain.weight, plain.bias):
        tensor.data = torch.randn(tensor.shape, generator=random, dtype=dtype)
    made = Scored(plain, None, settings, seed=0)
    for name in NAMES:
        tensor = made.get_parameter(f"pst_{name}")
        tensor.data = torch.randn(tensor.shape, generator=random, dtype=dtype)
    made.mask = _masks.keep_top(made.score(), 0.5)
    return made


def inputs_of(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(5, IN, generator=random, dtype=dtype), torch.randn(5, OUT, generator=random, dtype=dtype)


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detached", [False, True])
def test_gradients_are_the_closed_forms(detached: bool) -> None:
    given = PstSettings(rank=3, score_rank=2, beta=0.7, alpha1=1.3, alpha2=0.4, detach_magnitude=detached)
    layer, (x, grad) = layer_of(given), inputs_of()
    x.requires_grad_()
    layer(x).backward(grad)
    u, v, a, b, _, _ = (layer.get_parameter(f"pst_{n}").detach() for n in NAMES)
    dense = layer.weight.detach() + 0.7 * (u @ v)
    g = grad.t() @ x.detach()
    signal = g * dense
    inner = g * layer.mask + (0 if detached else g * dense.abs())
    expected = {
        "u": 0.7 * inner @ v.t(), "v": 0.7 * u.t() @ inner, "a": 1.3 * signal @ b.t(), "b": 1.3 * a.t() @ signal,
        "r": 0.4 * signal.sum(1), "c": 0.4 * signal.sum(0),
    }  # fmt: skip
    for name, wanted in expected.items():
        torch.testing.assert_close(layer.get_parameter(f"pst_{name}").grad, wanted)
    torch.testing.assert_close(x.grad, grad @ (layer.mask * dense))
    assert layer.weight.grad is None


@pytest.mark.parametrize("detached", [False, True])
def test_gradients_are_those_of_a_mask_that_is_its_score(detached: bool) -> None:
    """Autograd's own: What = (M + S - const(S)) * W' has dM/dS = 1, and W' in the product stands still for it."""
    given = PstSettings(rank=3, score_rank=2, beta=0.7, alpha1=1.3, alpha2=0.4, detach_magnitude=detached)
    layer, (x, grad) = layer_of(given), inputs_of()
    layer(x).backward(grad)
    leaves = {n: layer.get_parameter(f"pst_{n}").detach().requires_grad_() for n in NAMES}
    dense = updated(layer.weight.detach(), leaves["u"], leaves["v"], 0.7)
    felt = dense.detach() if detached else dense
    s = score(felt, *(leaves[n] for n in "abrc"), alpha1=1.3, alpha2=0.4)
    torch.testing.assert_close(s.detach(), layer.score())
    nn.functional.linear(x, layer.mask * dense + (s - s.detach()) * dense.detach()).backward(grad)  # type: ignore[no-untyped-call]
    for name, leaf in leaves.items():
        torch.testing.assert_close(layer.get_parameter(f"pst_{name}").grad, leaf.grad)


def test_under_a_mask_that_stands_still_gradients_are_those_of_finite_differences() -> None:
    layer, (x, _) = layer_of(PstSettings(rank=3, score_rank=2, beta=0.7, detach_magnitude=True)), inputs_of()
    rest = [layer.get_parameter(f"pst_{n}").detach() for n in "abrc"]

    def call(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return nn.functional.linear(x, layer._expression(layer.weight, layer.mask, u, v, *rest), layer.bias)

    assert torch.autograd.gradcheck(call, (x.requires_grad_(), layer.pst_u, layer.pst_v))


def test_nothing_of_the_weights_size_waits_for_the_backward() -> None:
    layer = layer_of(PstSettings(rank=3, score_rank=2), torch.float32, 80, 96)
    model = nn.Sequential(nn.LayerNorm(96), layer, nn.GELU())
    given = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        loss = model(torch.randn(2, 3, 96)).square().sum()
    new = [t for t in kept if t.untyped_storage().data_ptr() not in given]
    assert new
    assert max(t.numel() for t in new) < 80 * 96 / 4
    loss.backward()
    assert layer.pst_b.grad is not None


# -- schedule ----------------------------------------------------------------------------------------------------------


def test_the_sparsity_rises_along_a_cubic_between_its_corners() -> None:
    given = PstSettings(steps=100, initial_sparsity=0.2)
    assert [given.sparsity_at(t, 0.9) for t in (0, 10)] == [0.2, 0.2]
    assert given.sparsity_at(11, 0.9) == pytest.approx(0.9 - 0.7 * (59 / 60) ** 3)
    assert given.sparsity_at(40, 0.9) == pytest.approx(0.9 - 0.7 / 8)
    assert [given.sparsity_at(t, 0.9) for t in (70, 71, 100)] == [0.9, 0.9, 0.9]
    assert given.settled == 70


@examples(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 200),
    final=st.floats(0, 0.99),
    start=st.floats(0, 1),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda s: sum(s) <= 1),
)
def test_the_sparsity_never_falls_and_ends_where_it_must(
    steps: int, final: float, start: float, shares: tuple[float, float]
) -> None:
    first = start * final
    warmup, cooldown = shares
    made = PstSettings(steps=steps, initial_sparsity=first, prune_warmup=warmup, prune_cooldown=cooldown)
    rising = [made.sparsity_at(t, final) for t in range(steps + 1)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(rising))
    assert all(first - 1e-12 <= s <= final + 1e-12 for s in rising)
    assert made.settled == 0 or rising[0] == first
    assert rising[-1] == final
    assert all(s == final for s in rising[made.settled :])


# -- masks -------------------------------------------------------------------------------------------------------------


def integers(rows: int, inputs: int, seed: int, span: int = 20) -> Tensor:
    """Scores whose sums are exact, with ties."""
    return torch.randint(-span, span, (rows, inputs), generator=torch.Generator().manual_seed(seed)).float()


@examples(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    pattern=st.sampled_from(["unstructured", "2:4", "1:8"]),
    share=st.floats(0, 1, exclude_max=True),
)
def test_on_the_way_counts_are_exact_and_the_pattern_is_approached_from_within(
    seed: int, pattern: str, share: float
) -> None:
    made = Pattern.parse(pattern)
    rule = Rule(pattern=made, sparsity=made.sparsity or 0.7)
    scores = {"x": integers(5, 16, seed)}
    old = {"x": integers(5, 16, seed + 1) > -10}
    final = masks_at(rule, rule.sparsity, scores, old)["x"]
    now = masks_at(rule, share * rule.sparsity, scores, old)["x"]
    assert not (now & ~old["x"]).any()
    assert (~now).sum() == max(round(share * rule.sparsity * 80), int((~old["x"]).sum()))
    assert not (final & ~now).any()
    rule.check(old, {"x": final})


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_at_the_start_the_mask_is_that_of_the_magnitude(pattern: str) -> None:
    made = Pattern.parse(pattern)
    rule = Rule(pattern=made, sparsity=made.sparsity or 0.7)
    plain = nn.Linear(16, 5)
    layer = Scored(plain, None, PstSettings(init_std=1.0), seed=0)
    wanted = rule.masks({"x": plain.weight.detach().abs()}, {})["x"]
    assert torch.equal(masks_at(rule, rule.sparsity, {"x": layer.score()}, {})["x"], wanted)
    assert layer.pst_a.count_nonzero() == layer.pst_a.numel()  # so that B has a gradient from the first step
    assert layer.pst_u.std().item() == pytest.approx(1, rel=0.4)


@examples(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), shift=st.integers(-50, 50), which=st.sampled_from(["pst_r", "pst_c"]))
def test_a_constant_on_all_rows_or_columns_moves_no_mask(seed: int, shift: int, which: str) -> None:
    plain = nn.Linear(8, 4)
    plain.weight.data = integers(4, 8, seed)
    layer = Scored(plain, None, PstSettings(rank=2, score_rank=2), seed=0)
    random = torch.Generator().manual_seed(seed)
    for name in ("pst_a", "pst_b", "pst_r", "pst_c"):
        tensor = layer.get_parameter(name)
        tensor.data = torch.randint(-5, 5, tensor.shape, generator=random).float()
    before = layer.score()
    layer.get_parameter(which).data += shift
    assert not torch.equal(layer.score(), before) or shift == 0
    for pattern in (Pattern(), Pattern(2, 4)):
        rule = Rule(pattern=pattern, sparsity=0.5)
        found = (masks_at(rule, 0.5, {"x": s}, {})["x"] for s in (before, layer.score()))
        assert torch.equal(*found)


def test_rows_and_columns_move_the_mask_where_they_differ() -> None:
    layer = Scored(nn.Linear(8, 4), None, PstSettings(rank=2, score_rank=2), seed=0)
    layer.pst_c.data[5] = 10
    layer.pst_r.data[2] = -10
    mask = _masks.keep_top(layer.score(), 0.5)
    assert mask[:, 5].sum() >= 3
    assert not mask[2, [0, 1, 2, 3, 4, 6, 7]].any()


# -- the whole pass ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(bench_of: Callable[..., Callable[..., Bench]]) -> Callable[..., Bench]:
    return bench_of(pst, windows=24)


@torch.no_grad()
def logits(artifact: Artifact) -> Tensor:
    ids = torch.randint(2, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    found: Tensor = artifact.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_every_family_is_pruned_and_survives_the_disk(
    kind: str, pattern: str, bench: Callable[..., Bench], tmp_path: Path
) -> None:
    b = bench(kind)
    after = b.run(pattern=pattern, sparsity=None if pattern == "2:4" else 0.7)
    linears = tree.block_linears(after.model)
    assert all(type(m) is not Scored for m in after.model.modules())
    for name, mask in after.masks.items():
        assert (~mask).sum() == (mask.numel() // 2 if pattern == "2:4" else round(0.7 * mask.numel()))
        assert not linears[name].weight[~mask].any()
        assert not linears[name].weight[~mask].signbit().any()
    head = {n for n in after.model.state_dict() if n.startswith("classifier")}
    assert changed(b.before, after) == {f"{n}.weight" for n in linears} | head
    assert bool(head) == (kind in ENCODERS)
    assert tree.tied(after.model) == tree.tied(b.before.model)
    folder = tmp_path / "after"
    folder.mkdir()
    after.save(folder)
    again = Artifact.load(folder)
    assert state_bytes(again) == state_bytes(after)
    assert torch.equal(logits(again), logits(after))


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_attaching_changes_nothing_and_merging_neither(kind: str, tiny: Callable[..., Artifact]) -> None:
    artifact = tiny(kind)
    for plain in tree.block_linears(artifact.model).values():
        plain.weight.data *= 8  # or else BERT's logits hardly feel them
    names = list(tree.block_linears(artifact.model))
    before, state = logits(artifact), list(artifact.model.state_dict())
    random = torch.Generator().manual_seed(1)
    with scored(artifact, names, PstSettings(rank=4, score_rank=4), 0) as layers:
        assert (logits(artifact) - before).abs().max() <= 1e-6
        for layer in layers.values():
            for tensor in (layer.get_parameter(f"pst_{n}") for n in NAMES):
                tensor.data += 0.05 * torch.randn(tensor.shape, generator=random)
            layer.mask = _masks.keep_top(layer.score(), 0.5)
        unmerged = logits(artifact)
    assert (unmerged - before).abs().max() > 1e-4
    assert (logits(artifact) - unmerged).abs().max() <= 1e-5
    assert list(artifact.model.state_dict()) == state


def test_a_regression_is_learnt_and_a_validation_waits_for_the_final_sparsity(bench: Callable[..., Bench]) -> None:
    b = bench("bert", task="regression")
    b.run(sparsity=0.5, steps=30, lr=1e-2)
    validated = b.report.measured["held_out_loss"]
    assert min(step for step, _ in validated) == 21
    best, _ = min(validated, key=lambda found: found[1])
    assert f"the state after step {best} of 30 is the best on what is held out" in b.report.notes[1]
    curve = [value for _, value, _ in b.report.measured["loss"]]
    assert sum(curve[-5:]) < sum(curve[:5])


def test_running_text_is_not_held_out_unless_asked(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.run()
    assert "held_out_loss" not in b.report.measured
    b = bench(folder="asked")
    b.run(held_out=0.25)
    assert [step for step, _ in b.report.measured["held_out_loss"]] == [4, 5, 6]


def test_earlier_masks_count_and_hold(bench: Callable[..., Bench]) -> None:
    b = bench()
    old = {}
    for name, layer in tree.block_linears(b.before.model).items():
        if "mlp" in name:
            old[name] = _masks.keep_n_of_m(layer.weight.detach().abs(), 2, 4)
            _masks.apply_(layer.weight, old[name])
    b.before = b.before.after(masks=old)
    after = b.run(sparsity=0.6, lr=1e-2)
    for name, mask in after.masks.items():
        assert (~mask).sum() == round(0.6 * mask.numel())
        assert name not in old or not (mask & ~old[name]).any()
    kept = bench(folder="kept")
    kept.before = b.before
    same = kept.run(sparsity=0.3, exclude=("down_proj",))
    for name, mask in same.masks.items():
        assert torch.equal(mask, old[name]) if name in old else (~mask).sum() == round(0.3 * mask.numel())
    assert not {n for n in changed(b.before, same) if "down_proj" in n}


def test_a_step_too_small_to_count_leaves_magnitude_pruning(bench: Callable[..., Bench]) -> None:
    b = bench("opt")
    after = b.run(sparsity=0.6, lr=1e-30, steps=2)
    for name, layer in tree.block_linears(b.before.model).items():
        wanted = _masks.keep_top(layer.weight.detach().abs(), 0.6)
        assert torch.equal(after.masks[name], wanted)
        assert torch.equal(tree.block_linears(after.model)[name].weight, layer.weight * wanted)


def test_scores_find_what_the_magnitude_does_not_see(bench: Callable[..., Bench]) -> None:
    """A model that has learnt, with half its channels turned down by 8 in the norms and up in the weights after them.

    It computes what it did, but the magnitude now keeps these channels before all others.
    """
    b = bench()
    model: Any = b.before.model
    plan = TrainSettings(steps=120, batch=16)
    train_([Group(dict(model.named_parameters()), 1e-2)], loss_on(b.before, plan, b.context), plan, b.context)
    before = loss_of(b, b.before)
    for block in model.model.layers:
        readers = [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]
        for norm, linears in (
            (block.input_layernorm, readers),
            (block.post_attention_layernorm, [block.mlp.gate_proj, block.mlp.up_proj]),
        ):
            norm.weight.data[:16] /= 8
            for linear in linears:
                linear.weight.data[:, :16] *= 8
    assert loss_of(b, b.before) == pytest.approx(before, rel=1e-4)
    chosen: dict[str, Any] = {"include": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")}
    steps: dict[str, Any] = {"steps": 60, "batch": 16, "lr": 1e-2}
    ours = loss_of(b, b.run(sparsity=0.7, score_lr=3, name="ours", **chosen, **steps))
    blind = loss_of(b, b.run(sparsity=0.7, alpha1=0, alpha2=0, name="blind", **chosen, **steps))
    start = b.before.after(model=copy.deepcopy(model))
    pruned = Magnitude(Magnitude.Settings(sparsity=0.7, **chosen)).run(start, b.at("pruned"))
    perp = Perp(Perp.Settings(train=("mask_lora",), rank=4, **chosen, **steps))
    assert loss_of(b, pruned) > 8 * before
    assert ours < 0.75 * loss_of(b, perp.run(pruned, b.at("perp")))  # as many steps under the mask of magnitude
    assert ours < 0.6 * blind  # and under one that may follow the magnitude, but has no scores


@torch.no_grad()
def loss_of(bench: Bench, artifact: Artifact) -> float:
    return float(loss_on(artifact, TrainSettings(batch=24), bench.context)(0))


def test_half_precision_comes_back(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.before.model.bfloat16()
    after = b.run(lr=1e-2)
    assert {p.dtype for p in after.model.parameters()} == {torch.bfloat16}
    assert all(not tree.block_linears(after.model)[n].weight[~m].any() for n, m in after.masks.items())


# -- what is trained ---------------------------------------------------------------------------------------------------


def test_the_published_count_of_bert_base(bench: Callable[..., Bench]) -> None:
    hidden, shapes = 768, dict[str, tuple[int, int]]()
    for i in range(12):
        shapes |= {f"bert.encoder.layer.{i}.{n}": (hidden, hidden) for n in ("query", "key", "value", "dense")}
        shapes[f"bert.encoder.layer.{i}.up"] = (4 * hidden, hidden)
        shapes[f"bert.encoder.layer.{i}.down"] = (hidden, 4 * hidden)
    facts = bench("bert").facts().after(shapes=shapes, parameters=109_483_778)
    trained = pst(rank=8, score_rank=8).estimate(facts).trainable
    assert trained == 2_820_096
    scored = sum(math.prod(s) for s in shapes.values())
    assert trained / scored == pytest.approx(0.033, abs=5e-4)
    assert trained / (facts.parameters + scored) == pytest.approx(0.0145, abs=5e-5)
    assert pst(rank=3, score_rank=1).estimate(facts).trainable == trained * 5 // 17


def test_what_is_trained_is_told_and_nothing_else_has_a_gradient(bench: Callable[..., Bench]) -> None:
    b = bench("bert")
    b.run()
    linears = 2 * (4 * (32 + 32) + 2 * (32 + 64)) * (4 + 3 + 1)
    head = 2 * 32 + 2
    assert b.report.measured["trainable"] == [linears + head]
    parameters = sum(p.numel() for p in b.before.model.parameters())
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    (shares,) = b.report.measured["trainable_share"]
    assert shares["of_model"] == (linears + head) / parameters
    assert shares["of_movement_pruning"] == linears / (parameters + weights)
    assert f"{shares['of_movement_pruning']:.3%} of what movement pruning trains" in b.report.notes[0]
    model = b.before.model.requires_grad_(False)
    with scored(b.before, list(tree.block_linears(model)), pst().settings, 0) as layers:
        found = groups(b.before, layers, pst(score_lr=0.1, lr=1e-2).settings)
        assert [g.lr for g in found] == [1e-2, pytest.approx(1e-3), 1e-2]
        held = {id(p) for g in found for p in g.parameters.values()}
        assert held == {id(p) for p in model.parameters() if p.requires_grad}
        assert sum(p.numel() for g in found for p in g.parameters.values()) == linears + head


# -- resume ------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """The process ends here."""


class Mortal(QuietReport):
    """A report under which the process ends after so many losses."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def record(self, name: str, value: Any) -> None:
        self.left -= name == "loss"
        if self.left < 0:
            raise Killed
        super().record(name, value)


@pytest.mark.parametrize(
    "given",
    [
        {"refresh": 3, "checkpoint_every": 2, "held_out": 0.25},
        {"refresh": 4, "checkpoint_every": 3, "pattern": "2:4", "accumulation": 2},
    ],
    ids=["held-out", "2:4"],
)
def test_killed_at_any_step_and_resumed_gives_the_same_bytes(
    given: dict[str, Any], bench: Callable[..., Bench]
) -> None:
    given = {"steps": 7, "lr": 1e-2, "batch": 2, "include": ("mlp",), **given}
    whole = bench(folder="whole")
    wanted = state_bytes(whole.run(**given))
    for killed in range(7):
        b = bench(folder=f"killed-{killed}")
        with pytest.raises(Killed):
            b.run(Mortal(killed), **given)
        assert state_bytes(b.run(**given)) == wanted, f"killed at step {killed}"
        assert b.report.measured == whole.report.measured
        assert b.report.notes == whole.report.notes


def test_how_often_a_run_is_saved_changes_nothing(bench: Callable[..., Bench]) -> None:
    found = [state_bytes(bench(folder=str(n)).run(steps=9, lr=1e-2, refresh=2, checkpoint_every=n)) for n in (1, 3, 50)]
    assert found[0] == found[1] == found[2]
    assert state_bytes(bench(folder="other").run(steps=9, lr=1e-2, refresh=3)) != found[0]


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"rank": 33}, "rank", "must be <= 32, the rank of model.layers.0.self_attn.q_proj, got 33"),
        ({"score_rank": 33}, "score_rank", "got 33; lower it or exclude"),
        ({"sparsity": 0.5, "initial_sparsity": 0.6}, "initial_sparsity", "must be <= 0.5"),
        ({"pattern": "2:4", "initial_sparsity": 0.6}, "initial_sparsity", "must be <= 0.5"),
        ({"prune_warmup": 0.8}, "prune_cooldown", "must be <= 0.2"),
        ({"pattern": "3:5"}, "pattern", "does not divide"),
        ({"pattern": "2:4", "sparsity": 0.6}, "sparsity", "fixes the sparsity"),
        ({"include": ("nothing",)}, "include", "matches no linear"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(
    given: dict[str, Any], key: str, words: str, bench: Callable[..., Bench]
) -> None:
    with pytest.raises(BadSettings, match=words) as error:
        pst(**given).plan(bench().facts())
    assert error.value.key == key
    assert "\n" not in str(error.value)


def test_models_and_data_that_cannot_be_trained_are_told(bench: Callable[..., Bench]) -> None:
    facts = bench().facts()
    with pytest.raises(BadSettings, match="low-rank branch from an earlier pass"):
        pst().plan(facts.after(branches={next(iter(facts.shapes)): 4}))
    with pytest.raises(BadSettings, match="embedding model has no loss"):
        pst().plan(bench().facts().after(task="embedding"))
    with pytest.raises(BadData, match=r"a share of 0\.98 held out of 24 examples leaves none"):
        bench("bert").run(held_out=0.98)
    b = bench(folder="nan")
    tree.block_linears(b.before.model)["model.layers.0.mlp.up_proj"].weight.data[0, 0] = torch.nan
    with pytest.raises(BadModel, match="up_proj: a score is NaN"):
        b.run()
    with pytest.raises(CompressError, match="takes no scores"), scored(b.before, ["model.norm"], pst().settings, 0):
        pass


def test_ensures_finds_each_kind_of_damage(bench: Callable[..., Bench]) -> None:
    b = bench("bert")
    after, plugin = b.run(include=("intermediate",)), pst(include=("intermediate",))
    name = "bert.encoder.layer.0.intermediate.dense"
    mask, state = after.masks[name], after.model.state_dict()

    def broken(expected: str, **changes: Any) -> None:
        with pytest.raises(BrokenPromise, match=expected):
            plugin.ensures(b.before, after.after(**changes))

    broken("has no mask", masks={n: m for n, m in after.masks.items() if n != name})
    broken("counts of zeros miss 0.5", masks={**after.masks, name: torch.ones_like(mask)})
    broken("came or went", masks={**after.masks, "bert.encoder.layer.0.output.dense": torch.ones(32, 64).bool()})
    row, column = (int(i) for i in (~mask).nonzero()[0])
    for tensor, words in ((f"{name}.weight", "not zero"), ("bert.embeddings.word_embeddings.weight", "changed")):
        kept = state[tensor][row, column].clone()
        state[tensor][row, column] = 1e-8
        broken(words)
        state[tensor][row, column] = kept
    plugin.ensures(b.before, after)
