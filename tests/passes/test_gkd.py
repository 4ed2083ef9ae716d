"""Global distillation: its loss against the formula, what it keeps, and several processes against one."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress import blocks, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.data import DataSettings, Source
from compress.errors import BadData, BadSettings, BrokenPromise, CompressError, Diverged, Unavailable
from compress.facts import Facts
from passes import _masks
from passes._train import launch, worker
from passes._train.loop import Loop
from passes.gkd import Gkd
from passes.gkd.distil import Watched, distance
from passes.gkd.settings import GkdSettings
from tests.conftest import CAUSAL, ENCODERS, lively, uneven

TASKS = [*((kind, "causal-lm") for kind in CAUSAL), *((kind, "classification") for kind in ENCODERS)]
TASKS += [("bert", "regression"), ("roberta", "embedding")]


class Killed(Exception):
    """The process ends here."""


class Bench:
    """A dense parent, an uneven child of it under masks, data, and what distillation makes of it."""

    def __init__(self, make: Callable[..., Artifact], folder: Path, kind: str = "llama", task: Any = None) -> None:
        self.parent = make(kind, task)
        lively(self.parent.model)
        child = uneven(make(kind, task, seed=1))
        self.before = child.after(masks={n: pruned_(m) for n, m in tree.block_linears(child.model).items()})
        folder.mkdir()
        self.report = QuietReport()
        self.context = Context(
            folder=folder, report=self.report, data={"training": data(folder, self.before.task)},
            parent=lambda: copy_of(self.parent),
        )  # fmt: skip

    def run(self, **given: Any) -> Artifact:
        plugin = gkd(**given)
        assert plugin.plan(self.facts()) == self.facts().after(trained=True)
        after = plugin.run(copy_of(self.before), self.context)
        plugin.ensures(self.before, after)
        return after

    def facts(self) -> Facts:
        masks = {n: _masks.fact(m) for n, m in self.before.masks.items()}
        return tree.facts(self.before.model, self.before.task).after(masks=masks)

    @property
    def divergences(self) -> list[float]:
        return [value for _, value in self.report.measured["held_out_divergence"]]


def pruned_(layer: nn.Linear) -> Tensor:
    mask = _masks.keep_top(layer.weight.detach().abs(), 0.3)
    _masks.apply_(layer.weight, mask)
    return mask


def copy_of(artifact: Artifact) -> Artifact:
    return artifact.after(model=copy.deepcopy(artifact.model))


def data(folder: Path, task: Any) -> Source:
    words = "the quick brown fox jumps over the lazy dog and a model is pruned".split()  # noqa: SIM905
    rows = [(" ".join(words[i % 7 : i % 7 + 2 + i % 5]), i % 2) for i in range(24)]
    (folder / "rows.csv").write_text("text,label\n" + "".join(f'"{t}",{c}\n' for t, c in rows))
    (folder / "text.txt").write_text(" ".join(words[(i * i + 3 * i // 5) % len(words)] for i in range(900)))
    name = "text.txt" if task == "causal-lm" else "rows.csv"
    return Source(DataSettings(source=str(folder / name), windows=20, length=12), "training", task)


def table(**given: Any) -> GkdSettings:
    return GkdSettings(**{"steps": 3, "batch": 2, "lr": 1e-3, "warmup": 0, **given})


def gkd(**given: Any) -> Gkd:
    return Gkd(table(**given))


def values(artifact: Artifact) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in artifact.model.named_parameters()}


@pytest.fixture
def bench(tiny: Callable[..., Artifact], tmp_path: Path) -> Callable[..., Bench]:
    return lambda kind="llama", task=None, folder="run": Bench(tiny, tmp_path / folder, kind, task)


# -- the loss ----------------------------------------------------------------------------------------------------------


def by_hand(ours: Any, theirs: Any, batch: Mapping[str, Tensor], given: GkdSettings) -> float:
    """Return the loss of a causal model, token by token; both models' `(hidden states, logits)`."""
    total, (rows, length) = 0.0, batch["input_ids"].shape
    real = [(b, t) for b in range(rows) for t in range(length) if batch["attention_mask"][b, t]]
    for mine, other in zip(ours[0], theirs[0], strict=True):
        cosines = [float(mine[p] @ other[p] / mine[p].norm() / other[p].norm()) for p in real]
        total += given.cosine * sum(1 - c for c in cosines) / len(cosines)
    learnt = [(b, t) for b, t in real if t + 1 < length and batch["labels"][b, t + 1] >= 0]
    kl, lm, soft = 0.0, 0.0, given.temperature
    for b, t in learnt:
        p = (theirs[1][b, t] / soft).exp() / (theirs[1][b, t] / soft).exp().sum()
        q = (ours[1][b, t] / soft).exp() / (ours[1][b, t] / soft).exp().sum()
        kl += float((p * (p.log() - q.log())).sum())
        whole = ours[1][b, t].exp()
        lm -= math.log(float(whole[batch["labels"][b, t + 1]] / whole.sum()))
    return total + (given.kl * soft**2 * kl + given.lm * lm) / len(learnt)


def seen(model: Any, batch: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return what the two blocks of a llama gave, read where the next one and the last norm take it, and the logits."""
    read: list[Tensor] = []
    readers = (model.model.layers[1], model.model.norm)
    hooks = [m.register_forward_pre_hook(lambda module, args: read.append(args[0])) for m in readers]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for hook in hooks:
        hook.remove()
    return read, logits.double()


@pytest.mark.parametrize(
    "given",
    [{}, {"kl": 0.0}, {"cosine": 0.0}, {"cosine": 0.5, "kl": 2.0, "lm": 0.3, "temperature": 3.0}, {"layers": "last"}],
)
@torch.no_grad()
def test_the_loss_is_the_formula(given: dict[str, Any], bench: Callable[..., Bench]) -> None:
    b = bench()
    examples = b.context.data["training"].examples(b.before.tokenizer)
    batch = examples.batch([0, 1, 2])
    batch["attention_mask"][1, 9:] = 0
    batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)
    ours, theirs = (seen(a.model, batch) for a in (b.before, b.parent))
    settings = table(**given)
    if settings.layers == "last":
        ours, theirs = ((s[0][-1:], s[1]) for s in (ours, theirs))
    hidden = list(zip(ours[0], theirs[0], strict=True))
    found = distance((ours[1].float(), theirs[1].float()), hidden, batch, "causal-lm", settings)
    expected = by_hand(ours, theirs, batch, settings)
    assert expected > 0.05
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("given", [{}, {"layers": "last", "lm": 0.5}])
def test_the_first_loss_of_a_training_is_that_of_the_first_batch(
    given: dict[str, Any], bench: Callable[..., Bench]
) -> None:
    """So the right blocks are matched, and the right batch is taken."""
    b = bench()
    b.run(**given, steps=1, batch=20, held_out=0)
    examples = b.context.data["training"].examples(b.before.tokenizer)
    batch = examples.batch(range(len(examples)))
    with torch.no_grad():
        ours, theirs = (seen(a.model, batch) for a in (b.before, b.parent))
    if "layers" in given:
        ours, theirs = ((s[0][-1:], s[1]) for s in (ours, theirs))
    assert b.report.measured["loss"][0][1] == pytest.approx(by_hand(ours, theirs, batch, table(**given)), rel=1e-4)


@pytest.mark.parametrize(("kind", "task"), TASKS)
def test_a_child_that_is_its_parent_is_at_no_distance_and_stays(
    kind: str, task: str, tiny: Callable[..., Artifact], tmp_path: Path
) -> None:
    b = Bench(tiny, tmp_path / "run", kind, task)
    b.before = copy_of(b.parent)
    after = b.run(steps=1, recompute=True)
    assert b.report.measured["loss"][0][1] == pytest.approx(0, abs=1e-6)
    assert b.divergences[0] == pytest.approx(0, abs=1e-6)
    assert max(float((v - values(b.before)[n]).abs().max()) for n, v in values(after).items()) <= 1.1e-3  # one step


# -- what training does and leaves -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "task"), TASKS)
def test_it_comes_nearer_and_keeps_shapes_and_zeros(kind: str, task: str, bench: Callable[..., Bench]) -> None:
    b = bench(kind, task)
    after = b.run(steps=12, lr=3e-3)
    assert min(b.divergences) < 0.98 * b.divergences[0]
    assert tree.layout(after.model) == tree.layout(b.before.model)
    assert tree.tied(after.model) == tree.tied(b.before.model)
    moved = [n for n, v in values(after).items() if not torch.equal(v, values(b.before)[n])]
    assert len(moved) > 0.8 * len(values(after))
    for name, mask in after.masks.items():
        weight = tree.block_linears(after.model)[name].weight
        assert _masks.same_bits(weight[~mask], torch.zeros(int((~mask).sum())))
        assert not torch.equal(weight[mask], tree.block_linears(b.before.model)[name].weight[mask])


def test_what_is_excluded_keeps_its_bits(bench: Callable[..., Bench]) -> None:
    b = bench()
    after = b.run(exclude=("layers.1",))
    moved = {n for n, v in values(after).items() if not torch.equal(v, values(b.before)[n])}
    linears = {n for n in values(after) if n.removesuffix(".weight") in tree.block_linears(after.model)}
    assert moved & linears == {n for n in linears if ".0." in n}
    assert moved >= {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}
    assert (
        f"trains {sum(values(after)[n].numel() for n in values(after).keys() - linears | moved):,} of"
        in (b.report.notes[0])
    )


def test_the_best_state_on_what_is_held_out_stays(bench: Callable[..., Bench]) -> None:
    b = bench()
    after = b.run(steps=20, lr=0.3, schedule="constant")  # far too fast
    best = min(range(len(b.divergences)), key=b.divergences.__getitem__)
    assert best < len(b.divergences) - 1
    again = Bench.__new__(Bench)
    again.__dict__.update(b.__dict__ | {"before": after, "report": QuietReport()})
    again.context = Context(
        folder=b.context.folder.parent, report=again.report, data=b.context.data, parent=b.context.parent
    )
    again.run(steps=1)
    assert again.divergences[0] == pytest.approx(b.divergences[best])


def test_without_its_blocks_only_the_last_is_matched_and_that_is_told(bench: Callable[..., Bench]) -> None:
    b = bench()
    child = copy_of(b.parent)
    blocks.drop_(child.model, [0])
    b.before = child
    b.run()
    assert "1 blocks and its parent 2" in b.report.notes[1]
    assert "only what the last blocks give is matched" in b.report.notes[1]
    twin = bench(folder="twin")
    twin.before = child
    twin.run(layers="last")
    assert twin.report.measured == b.report.measured
    assert len(twin.report.notes) == len(b.report.notes) - 1


def test_pairs_are_taken_once() -> None:
    watched = Watched([(nn.Identity(), nn.Identity())])
    watched.note(0, 0, nn.Identity(), (), torch.ones(1))
    watched.note(1, 0, nn.Identity(), (), (torch.zeros(1), None))
    assert [tuple(map(float, pair)) for pair in watched.take()] == [(1.0, 0.0)]
    with pytest.raises(KeyError):
        watched.take()


@contextmanager
def killed_at(step: int, report: QuietReport) -> Iterator[None]:
    record = report.record

    def recorded(name: str, value: Any) -> None:
        if name == "loss" and value[0] == step:
            raise Killed
        record(name, value)

    report.record = recorded  # type: ignore[method-assign]
    with pytest.raises(Killed):
        yield
    del report.record


def test_killed_and_resumed_gives_the_same_bytes(bench: Callable[..., Bench]) -> None:
    whole = bench().run(steps=8, checkpoint_every=3)
    b = bench(folder="killed")
    with killed_at(5, b.report):
        b.run(steps=8, checkpoint_every=3)
    b.report.measured.clear()
    after = b.run(steps=8, checkpoint_every=3)
    assert all(torch.equal(v, values(whole)[n]) for n, v in values(after).items())


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "task", "key"),
    [
        ({"cosine": 0, "kl": 0, "lm": 1.0}, "causal-lm", "kl"),
        ({"temperature": 2.0}, "regression", "temperature"),
        ({"lm": 1.0}, "embedding", "lm"),
        ({"sharding": "fsdp"}, "causal-lm", "sharding"),
        ({"include": ("nothing",)}, "causal-lm", "include"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    given: dict[str, Any], task: str, key: str, bench: Callable[..., Bench]
) -> None:
    facts = bench().facts().after(task=task)
    with pytest.raises(BadSettings) as error:
        gkd(**given).plan(facts)
    assert error.value.key == key


def test_it_needs_a_parent_and_data(bench: Callable[..., Bench]) -> None:
    b = bench()
    alone = Context(folder=b.context.folder, data=b.context.data)
    with pytest.raises(BadSettings, match="needs the dense parent"):
        gkd().run(copy_of(b.before), alone)
    with pytest.raises(BadData, match="leaves none to train on"):
        b.run(held_out=0.99)


def test_damage_is_found(bench: Callable[..., Bench]) -> None:
    b = bench()
    plugin = gkd(exclude=("layers.1",))
    name, mask = next(iter(b.before.masks.items()))
    after = copy_of(b.before)
    tree.block_linears(after.model)[name].weight.data[~mask] = 1
    with pytest.raises(BrokenPromise, match="not zero"):
        plugin.ensures(b.before, after)
    after = copy_of(b.before)
    frozen = next(n for n in tree.block_linears(after.model) if ".1." in n)
    tree.block_linears(after.model)[frozen].weight.data *= 2
    with pytest.raises(BrokenPromise, match="is not trained"):
        plugin.ensures(b.before, after)


def test_more_processes_and_a_parent_cost_more(bench: Callable[..., Bench]) -> None:
    facts = bench().facts()
    one, two, shared = (gkd(**g).estimate(facts) for g in ({}, {"processes": 2}, {"processes": 2, "sharding": "fsdp"}))
    pruned = sum(int((~m).sum()) for m in bench(folder="other").before.masks.values())
    assert one.trainable == facts.parameters - pruned
    assert two.peak_mib == pytest.approx(2 * one.peak_mib)
    assert shared.peak_mib == one.peak_mib
    assert two.disk_mib > one.disk_mib
    assert one.seconds > 0


# -- several processes -------------------------------------------------------------------------------------------------


class Forked:
    """Processes of a team that are copies of this one, which has the libraries loaded, not the launcher's."""

    def __init__(self) -> None:
        self.ends_at: float = math.inf  # seconds after which the one that started them is gone
        self.dies_at: int | None = None  # the step in which the second of them dies
        self.statuses: list[int] = []

    def __call__(self, count: int, context: Context) -> tuple[CompressError | None, int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        (context.folder / launch.LOG).touch()
        reads, held = os.pipe()
        children = []
        for rank in map(str, range(count)):
            if not (child := os.fork()):
                torch.set_num_threads(1)  # the threads of a pool are not forked, and would be waited for
                signal.alarm(120)  # dies of it rather than keep the tests waiting
                os.dup2(reads, 0)
                os.close(held)
                given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
                os.environ |= {**given, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
                if rank == "1" and self.dies_at is not None:
                    Loop.advance = dying(Loop.advance, self.dies_at)  # type: ignore[method-assign]
                with (context.folder / f"said-{rank}").open("w", encoding="utf-8") as sys.stdout:
                    status = worker.main(context.folder)
                os._exit(status)
            children.append(child)
        if self.ends_at < math.inf:
            time.sleep(self.ends_at)
            os.close(held)
        self.statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if self.ends_at == math.inf:
            os.close(held)
        os.close(reads)
        said = (context.folder / "said-0").read_text(encoding="utf-8")
        return launch.hear(said.splitlines(), context.report), max(self.statuses)


def dying(advance: Callable[..., None], at: int) -> Callable[..., None]:
    def advanced(loop: Loop, *given: Any) -> None:
        if loop.step == at:
            os._exit(1)
        advance(loop, *given)

    return advanced


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Forked:
    made = Forked()
    monkeypatch.setattr(launch, "_start", made)
    return made


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
@pytest.mark.parametrize("kind", ["llama-tied", "bert"])
def test_two_processes_are_one_with_twice_the_batches(
    kind: str, sharding: str, bench: Callable[..., Bench], forked: Forked
) -> None:
    one, two = bench(kind), bench(kind, folder="two")
    alone = one.run(accumulation=4, weight_decay=0.1, clip=0.1)
    given: dict[str, Any] = {"processes": 2, "accumulation": 2, "weight_decay": 0.1, "clip": 0.1}
    together = two.run(**given, sharding=sharding, recompute=sharding == "fsdp")
    assert forked.statuses == [0, 0]
    for name, value in values(alone).items():
        torch.testing.assert_close(values(together)[name], value, rtol=1e-4, atol=2e-6)
    curves = [[v for _, v, _ in b.report.measured["loss"]] for b in (one, two)]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert two.divergences == pytest.approx(one.divergences, rel=1e-4)
    assert two.report.notes == one.report.notes
    assert not list(two.context.folder.glob("given*"))


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_team_that_was_killed_resumes_to_the_same_bytes(
    sharding: str, bench: Callable[..., Bench], forked: Forked
) -> None:
    given: dict[str, Any] = {"processes": 2, "sharding": sharding, "steps": 4, "checkpoint_every": 2}
    whole = bench().run(**given)
    b = bench(folder="killed")
    forked.dies_at = 3
    with pytest.raises(CompressError, match="a process that trains died"):
        b.run(**given)
    assert (b.context.folder / "given").is_dir()
    forked.dies_at = None
    b.report.measured.clear()
    after = b.run(**given)
    assert [step for step, *_ in b.report.measured["loss"]] == [0, 1, 2, 3]
    assert (b.context.folder / "said-0").read_text(encoding="utf-8").count(
        "advance"
    ) == 2  # of the checkpoint's step on
    assert all(torch.equal(v, values(whole)[n]) for n, v in values(after).items())


def test_what_a_process_finds_wrong_is_told_as_one_line(bench: Callable[..., Bench], forked: Forked) -> None:
    b = bench()
    with pytest.raises(Diverged, match=r"train: .* a lower lr") as error:
        b.run(processes=2, steps=3, lr=1e30)
    assert "\n" not in str(error.value)
    assert forked.statuses == [1, 1]


def test_what_is_our_fault_is_one_line_and_a_traceback_in_the_log(
    bench: Callable[..., Bench], forked: Forked, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def breaks(*_: Any) -> None:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(Loop, "advance", breaks)
    with pytest.raises(CompressError) as error:
        bench().run(processes=2)
    assert re.fullmatch(r"gkd: a process that .* died: RuntimeError: no such kernel; .*\.log has all", str(error.value))
    assert forked.statuses == [1, 1]
    assert "Traceback" in capfd.readouterr().err  # which is the log of what the launcher starts


def test_processes_end_with_the_one_that_started_them(bench: Callable[..., Bench], forked: Forked) -> None:
    forked.ends_at = 4.0
    started = time.monotonic()
    with pytest.raises(CompressError, match="a process that trains died"):
        bench().run(processes=2, steps=100_000)
    assert forked.statuses == [1, 1]
    assert time.monotonic() - started < 20


def test_the_launcher_starts_what_the_tests_before_forked(bench: Callable[..., Bench]) -> None:
    one, two = bench(), bench(folder="two")
    alone, together = one.run(steps=1, accumulation=2), two.run(steps=1, processes=2)
    for name, value in values(alone).items():
        torch.testing.assert_close(values(together)[name], value, rtol=1e-4, atol=2e-6)
    assert two.report.notes == one.report.notes


def test_there_is_a_gpu_for_each_process(bench: Callable[..., Bench]) -> None:
    b = bench()
    context = dataclasses.replace(b.context, device=torch.device("cuda"))
    with pytest.raises(Unavailable, match="one for each"):
        launch.launch_("gkd", table(processes=torch.cuda.device_count() + 1), b.before, context)
