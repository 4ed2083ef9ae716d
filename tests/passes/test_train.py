"""The training loop: against torch's own, killed and resumed to the same bytes, stopped where it diverges."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from benchmarks._passes import context_of
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.errors import BadData, Diverged, Tampered
from passes._train import (
    Group,
    TaskSettings,
    Trained,
    TrainSettings,
    batches_of,
    divergence,
    draw,
    frozen,
    lr_factor,
    recomputed,
    split_of,
    train_,
)

LINE = torch.linspace(-1, 1, 8)


class Killed(Exception):
    """The process ends here."""


class Problem:
    """Eight points, a net that fits them, and the loss of the i-th batch, with what may go wrong in it."""

    def __init__(self, folder: Path, report: QuietReport | None = None) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 1))
        self.report = report or QuietReport()
        self.context = Context(folder=folder, report=self.report)
        self.asked: list[int] = []
        self.factor: Callable[[int], float] = lambda number: 1.0

    def loss_of(self, number: int) -> Tensor:
        self.asked.append(number)
        x = LINE[draw(number, len(LINE), 4, 0)].unsqueeze(1)
        loss: Tensor = (self.net(x) - x.sin()).square().mean() * self.factor(number)
        return loss

    def groups(self) -> list[Group]:
        named = dict(self.net.named_parameters())
        return [
            Group({n: p for n, p in named.items() if "weight" in n}, 1e-2),
            Group({n: p for n, p in named.items() if "bias" in n}, 1e-3, 0.1),
        ]

    def train(self, **changes: Any) -> Trained:
        known = {"validate", "every", "since", "name", "curve"}
        given = {"steps": 20, "checkpoint_every": 4, **{n: v for n, v in changes.items() if n not in known}}
        rest = {n: v for n, v in changes.items() if n in known}
        return train_(self.groups(), self.loss_of, TrainSettings(**given), self.context, **rest)

    @property
    def bytes(self) -> bytes:
        return b"".join(p.detach().numpy().tobytes() for p in self.net.parameters())


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def kill_at(problem: Problem, number: int) -> None:
    def factor(at: int) -> float:
        if at == number:
            raise Killed
        return 1.0

    problem.factor = factor


# -- schedule and order ------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_then_falls() -> None:
    linear = [lr_factor(s, 10, 0.2, "linear") for s in range(10)]
    assert linear == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    cosine = [lr_factor(s, 5, 0, "cosine") for s in range(5)]
    assert cosine == pytest.approx([1, 0.904508, 0.654508, 0.345492, 0.095492], abs=1e-6)
    assert [lr_factor(s, 3, 0, "constant") for s in range(3)] == [1, 1, 1]


@examples(max_examples=50, deadline=None)
@given(
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_no_step_is_without_a_learning_rate(steps: int, warmup: float, schedule: Any) -> None:
    factors = [lr_factor(s, steps, warmup, schedule) for s in range(steps)]
    assert all(0 < f <= 1 for f in factors)


@examples(max_examples=50, deadline=None)
@given(count=st.integers(1, 20), batch=st.integers(1, 25), seed=st.integers(0, 2**40), epochs=st.integers(1, 3))
def test_every_epoch_draws_each_example_once(count: int, batch: int, seed: int, epochs: int) -> None:
    size = min(batch, count)
    batches = [draw(i, count, batch, seed) for i in range(-(-epochs * count // size))]
    assert all(len(b) == size for b in batches)
    drawn = [i for b in batches for i in b]
    for epoch in range(epochs):
        assert Counter(drawn[epoch * count : (epoch + 1) * count]) == Counter(range(count))


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = [draw(e, 50, 50, seed) for e, seed in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(o) for o in orders}) == 3
    assert draw(0, 50, 50, 0) == orders[0]


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_trainings_of_one_chain_read_the_text_in_orders_of_their_own(
    tiny: Callable[..., Artifact], tmp_path: Path
) -> None:
    """The second does not begin with what the first has read; each reads all before it reads anything again."""
    artifact, windows = tiny("llama"), torch.arange(32).view(16, 2)
    firsts = []
    for turn in range(3):
        batch_of = batches_of(artifact, TrainSettings(batch=4), context_of(tmp_path, turn=turn, training=windows))
        firsts.append(batch_of(0)["input_ids"].tolist())
        assert sorted(row for i in range(4) for row in batch_of(i)["input_ids"].tolist()) == windows.tolist()
    assert firsts[0] != firsts[1] != firsts[2] != firsts[0]


def test_steps_are_those_of_adamw_written_out(tmp_path: Path) -> None:
    ours, twin = Problem(tmp_path), Problem(tmp_path)
    ours.net.eval()
    twin.net.eval()
    done = ours.train(steps=6, accumulation=2, warmup=0, clip=0.05, weight_decay=0.3)
    assert ours.asked == list(range(12))
    groups = [
        {"params": list(g.parameters.values()), "lr": g.lr, "weight_decay": g.weight_decay} for g in twin.groups()
    ]
    optimizer = torch.optim.AdamW(groups)
    curve = []
    for step in range(6):
        for group, peak in zip(optimizer.param_groups, (1e-2, 1e-3), strict=True):
            group["lr"] = peak * (6 - step) / 6
        optimizer.zero_grad()
        loss = (twin.loss_of(2 * step) + twin.loss_of(2 * step + 1)) / 2
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(twin.net.parameters(), 0.05)
        assert norm > 0.05
        optimizer.step()
        curve.append(loss.item())
    assert done.curve == pytest.approx(curve, rel=1e-5)
    for a, b in zip(ours.net.parameters(), twin.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    recorded = ours.report.measured["loss"]
    assert [r[0] for r in recorded] == list(range(6))
    assert [r[2] for r in recorded] == pytest.approx([1e-2 * (6 - s) / 6 for s in range(6)])


@pytest.mark.parametrize("killed", [1, 7, 8, 9, 19])
def test_killed_and_resumed_gives_the_same_bytes(killed: int, tmp_path: Path) -> None:
    whole = Problem(tmp_path / "whole")
    whole.context.folder.mkdir()
    curve = whole.train().curve
    folder = tmp_path / "killed"
    folder.mkdir()
    first = Problem(folder)
    kill_at(first, killed)
    with pytest.raises(Killed):
        first.train()
    second = Problem(folder)
    assert second.train().curve == curve
    assert second.bytes == whole.bytes
    assert second.report.measured == whole.report.measured
    assert min(second.asked) == (killed - 1) // 4 * 4  # from the last checkpoint, not from the start


def test_killed_and_resumed_keeps_the_best_state(tmp_path: Path) -> None:
    def run(folder: Path, killed: int | None = None) -> tuple[bytes, Trained]:
        folder.mkdir(exist_ok=True)
        problem = Problem(folder)
        if killed is not None:
            kill_at(problem, killed)
        done = problem.train(validate=lambda: (flat(problem.net) - target).norm().item(), every=3)
        return problem.bytes, done

    early = Problem(tmp_path)
    kill_at(early, 6)
    with pytest.raises(Killed):
        early.train()
    target = flat(early.net)  # so that the state at step 6 is the best there is
    whole, done = run(tmp_path / "whole")
    assert (whole, done.best) == (early.bytes, 6)
    assert len(done.curve) == 15  # three validations without a better value end it
    with pytest.raises(Killed):
        run(tmp_path / "killed", 10)
    assert run(tmp_path / "killed") == (whole, done)


def test_the_best_state_stays(tmp_path: Path) -> None:
    problem = Problem(tmp_path)
    values = iter([3.0, 2.0, 1.0, 4.0, 1.5, 9.0])
    states: list[bytes] = []

    def validate() -> float:
        states.append(problem.bytes)
        return next(values)

    done = problem.train(validate=validate, every=2, steps=10)
    assert done.best == 4
    assert done.validations == [(0, 3.0), (2, 2.0), (4, 1.0), (6, 4.0), (8, 1.5), (10, 9.0)]
    assert problem.bytes == states[2]


def test_nothing_counts_before_its_step(tmp_path: Path) -> None:
    problem = Problem(tmp_path)
    values = iter([3.0, 2.0, 2.5, 2.6, 2.7])
    done = problem.train(validate=lambda: next(values), every=2, since=7, steps=40)
    assert [step for step, _ in done.validations] == [8, 10, 12, 14, 16]
    assert (done.best, len(done.curve)) == (10, 16)  # and no lack of patience before

    problem = Problem(tmp_path / "late")
    problem.context.folder.mkdir()
    assert problem.train(validate=lambda: 1.0, since=20).validations == [(20, 1.0)]  # the last state counts anyhow


def test_a_loss_that_rises_before_its_step_is_no_runaway(tmp_path: Path) -> None:
    problem = Problem(tmp_path)
    problem.factor = lambda number: 1.0 if number < 20 else 50.0
    assert len(problem.train(steps=60, since=20).curve) == 60
    problem = Problem(tmp_path / "again")
    problem.context.folder.mkdir()
    problem.factor = lambda number: 1.0 if number < 35 else 50.0
    with pytest.raises(Diverged, match="the loss rose from"):
        problem.train(steps=60, since=20)


def test_a_checkpoint_holds_what_is_trained_and_no_more(tmp_path: Path) -> None:
    problem = Problem(tmp_path)
    problem.train(steps=6)
    with safe_open(tmp_path / "train.safetensors", framework="pt") as file:
        names = set(file.keys())
        state = json.loads(file.metadata()["state"])
    trained = [n for n, _ in problem.net.named_parameters()]
    assert names == {f"{kind}.{n}" for n in trained for kind in ("now", "exp_avg", "exp_avg_sq", "step")}
    assert len(state["curve"]) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["train.safetensors"]


def test_a_checkpoint_of_other_tensors_is_refused(tmp_path: Path) -> None:
    Problem(tmp_path).train(steps=2)
    other = Problem(tmp_path)
    other.net[0] = nn.Linear(1, 7)
    other.net[3] = nn.Linear(7, 1)
    with pytest.raises(Tampered, match="other tensors"):
        other.train(steps=2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_the_last_good_state(bad: float, tmp_path: Path) -> None:
    problem = Problem(tmp_path)
    problem.factor = lambda number: bad if number == 10 else 1.0
    with pytest.raises(
        Diverged, match=r"train: the loss is (nan|inf) at step 11 of 20; the state after step 8 is kept"
    ):
        problem.train()
    twin = Problem(tmp_path / "twin")
    twin.context.folder.mkdir()
    kill_at(twin, 8)
    with pytest.raises(Killed):
        twin.train()
    assert problem.bytes == twin.bytes
    mended = Problem(tmp_path)
    mended.train()  # what is on disk is good to go on from
    assert mended.asked[0] == 8


def test_a_first_loss_that_is_no_number_changes_nothing(tmp_path: Path) -> None:
    problem = Problem(tmp_path)
    before = problem.bytes
    problem.factor = lambda number: float("nan")
    with pytest.raises(Diverged, match="at step 1 of 20; the state is as it was before"):
        problem.train()
    assert problem.bytes == before
    assert not list(tmp_path.iterdir())


def test_a_gradient_that_is_no_number_stops(tmp_path: Path) -> None:
    problem = Problem(tmp_path)
    bias = dict(problem.net.named_parameters())["0.bias"]
    with torch.no_grad():
        bias.zero_()

    def loss_of(number: int) -> Tensor:
        return bias.abs().sqrt().sum()  # its slope at 0 is infinite

    with pytest.raises(Diverged, match="the gradient's norm is"):
        train_(problem.groups(), loss_of, TrainSettings(steps=3), problem.context)


def test_a_loss_that_runs_away_stops(tmp_path: Path) -> None:
    problem = Problem(tmp_path)
    problem.factor = lambda number: 1.0 if number < 20 else 50.0
    with pytest.raises(Diverged, match="the loss rose from"):
        problem.train(steps=60)


def test_a_last_update_that_is_no_number_stops(tmp_path: Path) -> None:
    problem = Problem(tmp_path)
    groups = [Group(dict(problem.net.named_parameters()), 3e38)]
    with pytest.raises(Diverged, match="the last update is not finite"):
        train_(groups, problem.loss_of, TrainSettings(steps=1, weight_decay=0, warmup=0), problem.context)


# -- surroundings ------------------------------------------------------------------------------------------------------


def test_recomputed_blocks_give_the_same_gradients(tiny: Callable[..., Artifact]) -> None:
    gradients = []
    for wanted in (False, True):
        model = tiny("opt").model
        blocks = list(model.model.decoder.layers)
        kept: list[Tensor] = []
        with recomputed(blocks, wanted):
            with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):  # type: ignore[misc]
                loss = model(input_ids=torch.arange(2, 18).view(2, 8)).logits.square().mean()
            loss.backward()
        assert "forward" not in vars(blocks[0])
        gradients.append((len(kept), [p.grad for p in model.parameters() if p.grad is not None]))
    assert gradients[1][0] < gradients[0][0] / 2
    assert gradients[0][1]
    assert all(torch.equal(a, b) for a, b in zip(gradients[0][1], gradients[1][1], strict=True))


def test_frozen_gives_back_every_precision(tiny: Callable[..., Artifact]) -> None:
    model = tiny("llama-tied").model.bfloat16().train()
    with frozen(model, TrainSettings(), torch.device("cpu")):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight


# -- the distance to a parent ------------------------------------------------------------------------------------------


def test_divergence_is_the_sum_over_counted_tokens_written_out() -> None:
    random = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, 5, 7, generator=random, dtype=torch.float64).float() for _ in range(2))
    counted = torch.rand(2, 5, generator=random) < 0.5
    p, q = (t.double().softmax(-1)[counted] for t in (theirs, ours))
    wanted = (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(divergence(ours, theirs, "causal-lm", counted).double(), wanted, rtol=1e-5, atol=0)
    assert divergence(ours, ours, "causal-lm", counted).abs() < 1e-6
    ours[~counted] = torch.nan
    assert divergence(ours, theirs, "causal-lm", counted).isfinite()


def test_divergence_of_classes_values_and_embeddings() -> None:
    random = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(3, 4, generator=random) for _ in range(2))
    p, q = theirs.softmax(-1), ours.softmax(-1)
    torch.testing.assert_close(divergence(ours, theirs, "classification"), (p * (p / q).log()).sum(-1).mean())
    torch.testing.assert_close(divergence(ours, theirs, "regression"), (ours - theirs).square().mean())
    hidden, real = torch.stack([ours, theirs]).view(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
    wrong = divergence(2 * hidden, hidden, "embedding", real)
    torch.testing.assert_close(wrong, torch.tensor(1.0))


@examples(max_examples=20, deadline=None)
@given(st.integers(2, 400), st.floats(0.01, 0.9), st.integers(1, 200), st.integers(1, 16))
def test_a_look_takes_what_is_trained_on_between_looks(count: int, share: float, steps: int, batch: int) -> None:
    context = context_of(Path(), training=torch.arange(count * 4).view(count, 4) % 32)
    artifact = SimpleNamespace(task="causal-lm", tokenizer=None)
    given = TaskSettings(steps=steps, batch=batch, held_out=share)
    if not (left := count - max(round(share * count), 1)):
        with pytest.raises(BadData, match="leaves none to train on"):
            split_of(artifact, given, context)  # type: ignore[arg-type]
        return
    rows, judges = split_of(artifact, given, context)  # type: ignore[arg-type]
    assert len(rows) == left
    assert not set(rows) & set(judges)
    assert len(judges) == min(count - left, max(-(-steps // 10) * batch, 64))
    assert set(judges) <= set(range(count))
