"""Blockwise local distillation: the formula, the trainings, who does them, and the library that comes out."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.data import Source
from compress.data.settings import DataSettings
from compress.errors import BadModel, BadSettings, BrokenPromise, Diverged, Unavailable, UserFault
from compress.facts import MaskFact
from passes._distillation import DistilSettings, Student, cluster, error, job, packing, processes, teach
from passes._distillation.job import Answer
from passes._layerwise import Chunk
from passes._library import Library, Variant, joined, masks_of, module, realise_, variants
from passes._masks import keep_n_of_m
from passes._train import train_
from passes.bld import Bld
from tests.conftest import CAUSAL, ENCODERS, branched, lively, uneven

Tiny = Callable[..., Artifact]
TEXT = "the quick brown fox jumps over the lazy dog; a model is pruned and retrained. "
SMALL: dict[str, Any] = {"steps": 4, "batch": 2, "multiple": 8, "lr": 5e-3, "held_out": 2}
FEW: dict[str, Any] = {**SMALL, "attention": ("parent", "linear"), "ffn": ("parent", "50%")}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Source]]:
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(TEXT * 200)
    (folder / "labels.csv").write_text("text,label\n" + "".join(f"{TEXT[: 9 + 5 * k]},{k % 2}\n" for k in range(8)))

    def make(task: str) -> dict[str, Source]:
        file, length = ("text.txt", 16) if task == "causal-lm" else ("labels.csv", 32)
        given = DataSettings(source=str(folder / file), windows=6, length=length)
        return {r: Source(given, r, task, 0, folder / r) for r in ("calibration", "training")}  # type: ignore[arg-type]

    return make


@pytest.fixture
def around(sources: Callable[[str], dict[str, Source]], tmp_path: Path) -> Callable[..., Context]:
    def make(name: str = "work", task: str = "causal-lm", **more: Any) -> Context:
        (tmp_path / name).mkdir(exist_ok=True)
        return Context(**{"folder": tmp_path / name, "data": sources(task), **more})

    return make


def bld(**given: Any) -> Bld:
    return Bld(Bld.Settings(**given))


def entries(folder: Path | None) -> dict[str, bytes]:
    """Return the bytes of all files of a library."""
    assert folder
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def ran(plugin: Bld, artifact: Artifact, context: Context) -> tuple[Artifact, Artifact]:
    """Run and hold the pass to its promises, from disk; return what it was given and what it left."""
    for name in ("before", "after"):
        (context.folder / name).mkdir()
    artifact.save(context.folder / "before")
    plugin.run(artifact, context).save(context.folder / "after")
    was, now = (Artifact.load(context.folder / name) for name in ("before", "after"))
    plugin.ensures(was, now)
    return was, now


# -- the formula --------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 3), tokens=st.integers(1, 5))
def test_the_loss_is_the_share_of_the_parents_energy_over_real_tokens(seed: int, rows: int, tokens: int) -> None:
    torch.manual_seed(seed)
    wanted, given_ = torch.randn(2, rows, tokens, 3).unbind()
    real = torch.rand(rows, tokens) < 0.7
    real[0, 0] = True
    apart, whole = error(given_, wanted, real)
    kept = [(r, t) for r in range(rows) for t in range(tokens) if real[r, t]]
    one = sum(float((given_[i] - wanted[i]).double().square().sum()) for i in kept)
    two = sum(float(wanted[i].double().square().sum()) for i in kept)
    assert float(apart / whole) == pytest.approx(one / two, rel=1e-4)
    assert float(error(wanted, wanted, real)[0]) == 0
    apart, whole = error(torch.zeros_like(wanted), wanted, real)
    assert float(apart / whole) == 1


# -- the trainings ------------------------------------------------------------------------------------------------


def taught(artifact: Artifact, context: Context, **given: Any) -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    """Teach a copy of every block, all of it, and return what came of each."""
    found: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {}

    def student(index: int, block: nn.Module) -> Student:
        def keep(trained: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
            found[str(index)] = dict(trained), dict(record)

        names = [n for n, _ in block.named_parameters()]
        return Student(key=str(index), told=f"block {index}", index=index, make=lambda: (block, names, {}), keep=keep)

    students = [student(i, b) for i, b in enumerate(tree.blocks(artifact.model).values())]
    teach(artifact, students, DistilSettings(**{**_small(), **given}), context)
    return found


def _small() -> dict[str, Any]:
    return {n: v for n, v in SMALL.items() if n in DistilSettings.model_fields}


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS, "uneven", "branched"])
def test_the_parents_own_block_is_off_by_nothing(tiny: Tiny, around: Callable[..., Context], kind: str) -> None:
    odd = {"uneven": uneven, "branched": branched}
    artifact = odd[kind](tiny("qwen2")) if kind in odd else tiny(kind)
    lively(artifact.model)
    found = taught(artifact, around(task=artifact.task))
    assert {n: (r["before"], r["after"], r["best"]) for n, (_, r) in found.items()} == dict.fromkeys("01", (0, 0, 0))
    for index, block in enumerate(tree.blocks(artifact.model).values()):
        assert all(torch.equal(found[str(index)][0][n], p) for n, p in block.named_parameters())


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_every_family_learns_and_no_variant_gets_worse(tiny: Tiny, around: Callable[..., Context], kind: str) -> None:
    artifact = tiny(kind)
    lively(artifact.model)
    before, after = ran(bld(**{**FEW, "lr": 1e-3}), artifact, around(task=artifact.task))
    library = Library(after.library or Path())
    found = [v for v in variants(tree.facts(before.model, before.task), Bld.Settings(**FEW)) if not v.parent]
    better = {v.part for v in found if (record := library.record(v) or {})["after"] < record["before"]}
    assert len(found) == 4
    assert better == {"attention", "ffn"}
    picks: dict[tuple[int, str], Variant] = {(v.block, v.part): v for v in found}
    small = realise_(before, picks, library)
    assert tree.layout(small.model) == tuple(b.config for b in [_both(found, i) for i in range(2)])


def _both(found: list[Variant], index: int) -> Variant:
    one, two = (v for v in found if v.block == index)
    return dataclasses.replace(one, config=joined(one.config, [one, two]))


def test_siblings_get_no_gradient(tiny: Tiny, around: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[str], set[str]]] = []

    def look(groups: Any, loss_of: Callable[[int], Tensor], *rest: Any, **more: Any) -> Any:
        block = next(o.cell_contents for o in loss_of.__closure__ if hasattr(o.cell_contents, "block")).block  # type: ignore[union-attr]
        loss_of(0).backward()  # type: ignore[no-untyped-call]
        with_gradient = {n for n, p in block.named_parameters() if p.grad is not None}
        seen.append((with_gradient, {n for g in groups for n in g.parameters}))
        return train_(groups, loss_of, *rest, **more)

    monkeypatch.setattr(job, "train_", look)
    artifact = tiny("llama")
    plugin = bld(**FEW)
    after = plugin.run(artifact, around())
    mlp = {f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")} | {"post_attention_layernorm.weight"}
    attention = {"self_attn.o_proj.weight", "input_layernorm.weight"}
    assert [given for given, _ in seen] == [trained for _, trained in seen]
    assert {frozenset(trained) for _, trained in seen} == {frozenset(mlp), frozenset(attention)}
    alone = entries(bld(**FEW, include=("layers.1",)).run(tiny("llama"), around("alone")).library)
    alone.pop("library.json")
    whole = entries(after.library)
    assert len(alone) == 4
    assert {n: whole[n] for n in alone} == alone


@pytest.mark.parametrize("lr", [5e-3, 3.0])
def test_the_best_state_stays_whatever_the_rate(tiny: Tiny, around: Callable[..., Context], lr: float) -> None:
    artifact = tiny("llama")
    lively(artifact.model)
    untrained = bld(**{**FEW, "steps": 0}).run(artifact, around("untrained"))
    trained = bld(**{**FEW, "lr": lr}).run(artifact, around("trained"))
    for variant in variants(tree.facts(artifact.model, "causal-lm"), Bld.Settings(**FEW)):
        if variant.parent:
            continue
        (start, first), (end, last) = (
            (library.state(variant) or {}, library.record(variant) or {})
            for library in (Library(a.library or Path()) for a in (untrained, trained))
        )
        assert first["before"] == first["after"] == last["before"] >= last["after"]
        same = all(torch.equal(start[n], end[n]) for n in start)
        assert same == (last["best"] == 0) == (last["after"] == last["before"])


def test_a_loss_that_is_no_number_names_the_block_and_the_variant(tiny: Tiny, around: Callable[..., Context]) -> None:
    with pytest.raises(Diverged, match=r"block 0, attention linear: training: .* lower lr"):
        bld(**{**FEW, "lr": 1e30}).run(tiny("llama"), around())


def test_half_precision_stays_and_gets_no_worse(tiny: Tiny, around: Callable[..., Context]) -> None:
    artifact = tiny("llama")
    lively(artifact.model)
    artifact.model.to(torch.bfloat16)  # type: ignore[arg-type]
    _, after = ran(bld(**FEW), artifact, around())
    library = Library(after.library or Path())
    for variant in library.variants():
        state, record = library.state(variant) or {}, library.record(variant) or {}
        assert {t.dtype for t in state.values()} == {torch.bfloat16}
        assert record["after"] <= record["before"]
    assert any((library.record(v) or {})["best"] for v in library.variants())


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_a_masked_model_gives_masked_blocks(tiny: Tiny, around: Callable[..., Context], pattern: str) -> None:
    artifact = tiny("llama")
    lively(artifact.model)
    masks = {}
    for name, linear in tree.block_linears(artifact.model).items():
        masks[name] = mask = keep_n_of_m(linear.weight.detach().abs(), 2, 4)
        linear.weight.data.masked_fill_(~mask, 0)
    facts = tree.facts(artifact.model, "causal-lm").after(masks=dict.fromkeys(masks, MaskFact(pattern, 0.5)))
    settings_ = {
        **SMALL,
        "attention": ("parent", "kv 1", "none"),
        "ffn": ("parent", "60%"),
        "kv": "select",
        "multiple": 2,
    }
    _, after = ran(bld(**settings_), artifact.after(masks=masks), around(facts=facts))
    library = Library(after.library or Path())
    assert len(library.variants()) == 6
    for variant in library.variants():
        state, record = library.state(variant) or {}, library.record(variant) or {}
        kept = masks_of(state)
        assert {f"{n}.weight" for n in kept} == {n for n in state if n.endswith("proj.weight")}
        for name, mask in kept.items():
            assert (state[f"{name}.weight"][~mask] == 0).all()
            assert (state[f"{name}.weight"][mask] != 0).any()
            if pattern == "2:4":
                assert (mask.view(-1, 4).sum(1) <= 2).all()
        assert (record["best"] > 0) == (record["after"] < record["before"])
    assert sum((library.record(v) or {})["best"] > 0 for v in library.variants()) >= 3


def test_variants_that_only_the_defaults_name_are_left_out_where_masks_forbid_them(
    tiny: Tiny, around: Callable[..., Context]
) -> None:
    artifact = tiny("llama")
    name = "model.layers.0.self_attn.k_proj"
    mask = torch.ones(16, 32, dtype=torch.bool)
    facts = tree.facts(artifact.model, "causal-lm").after(masks={name: MaskFact("unstructured", 0.0)})
    report = QuietReport()
    given_ = {**SMALL, "steps": 0, "ffn": ("parent",)}
    made = bld(**given_).run(artifact.after(masks={name: mask}), around(facts=facts, report=report))
    assert {v.name for v in Library(made.library or Path()).variants()} == {"kv 50%", "none"}
    assert "attention kv 25%, linear: fits no block here" in report.notes[0]
    with pytest.raises(BadSettings, match="'select' keeps them"):
        bld(**given_, kv="pool").plan(facts)
    with pytest.raises(BadSettings, match="fills the zeros"):
        bld(**given_, attention=("linear",)).plan(facts)


def test_pairs_begin_where_their_parts_ended(tiny: Tiny, around: Callable[..., Context]) -> None:
    artifact = tiny("llama")
    lively(artifact.model)
    context = around()
    _, after = ran(bld(**FEW, coupling="coupled"), artifact, context)
    library = Library(after.library or Path())
    for index in (0, 1):
        one, two = (v for v in library.variants() if v.block == index)
        pair, other = library.record(one, beside=two) or {}, library.record(two, beside=one) or {}
        assert pair == other
        assert pair["after"] < pair["before"]
        again = _off(artifact, around, library, index, [one, two])
        assert again == pytest.approx(pair["before"], rel=1e-6)
        state, together = library.state(one) or {}, library.state(one, beside=two) or {}
        assert any(not torch.equal(state[n], t) for n, t in together.items())


def _off(
    artifact: Artifact, around: Callable[..., Context], library: Library, index: int, picks: list[Variant]
) -> float:
    """Return the held-out error of parts that were trained alone, put together."""
    state = {n: t for v in picks for n, t in (library.state(v) or {}).items()}
    found: dict[str, Any] = {}
    student = Student(
        key="both", told="both", index=index, make=lambda: (module(artifact, picks, state), [], {}),
        keep=lambda _, record: found.update(record),
    )  # fmt: skip
    teach(artifact, [student], DistilSettings(**_small()), around(f"both-{index}"))
    return float(found["before"])


# -- who does them ------------------------------------------------------------------------------------------------


def alive(tiny: Tiny) -> Artifact:
    artifact = tiny("llama")
    lively(artifact.model)
    return artifact


@pytest.fixture
def serial(tiny: Tiny, around: Callable[..., Context]) -> dict[str, bytes]:
    return entries(bld(**FEW).run(alive(tiny), around("serial")).library)


FRAIL = """
import os, sys
from pathlib import Path
from passes._distillation import job, worker
marker, run = Path(sys.argv[1]), job._Training.error
def error(self, number, dtype):
    if self.job.folder.name == "01-ffn-50%":
        with marker.open("a") as file:
            file.write(".")
        if marker.stat().st_size == 5:
            os.kill(os.getpid(), 9)
    return run(self, number, dtype)
job._Training.error = error
worker.main()
"""


def test_workers_give_the_same_bytes_though_one_is_killed(
    tiny: Tiny,
    around: Callable[..., Context],
    serial: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-c", FRAIL, str(tmp_path / "marker")))
    context = around("parallel", workers=2)
    found = bld(**FEW, checkpoint_every=1).run(alive(tiny), context)
    assert entries(found.library) == serial
    report = context.report
    assert isinstance(report, QuietReport)
    deaths = report.measured["deaths"]
    assert len(deaths) == 1
    assert "block 1, ffn 50%: the process that trained it died (killed by SIGKILL)" in deaths[0]


def test_a_worker_that_always_dies_is_named(
    tiny: Tiny, around: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = "import sys; sys.stdin.readline(); sys.exit('no room left')"
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-c", dies))
    given = {**FEW, "attention": ("parent",)}
    with pytest.raises(UserFault, match=r"block \d, ffn 50%: .* died 3 times \(exit status 1, no room left\); fewer"):
        bld(**given).run(tiny("llama"), around(workers=2))


class _Stops(QuietReport):
    """A report whose bar is interrupted after some trainings."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Any]:
        with super().bar(what, total, done) as bar:
            yield self if what == "distillation" else bar

    def advance(self, amount: int = 1) -> None:
        self.after -= amount
        if not self.after:
            raise KeyboardInterrupt

    def show(self, text: str) -> None:
        """Show nothing."""


@pytest.mark.parametrize("trained", [1, 2, 3])
def test_a_killed_run_resumes_at_the_next_training(
    tiny: Tiny, around: Callable[..., Context], serial: dict[str, bytes], trained: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        bld(**FEW).run(alive(tiny), around(report=_Stops(trained)))
    counted = _Stops(100)
    assert entries(bld(**FEW).run(alive(tiny), around(report=counted)).library) == serial
    assert counted.after == 100 - (4 - trained)


@pytest.mark.parametrize("call", [1, 13, 21])
def test_a_training_goes_on_in_its_midst(
    tiny: Tiny, around: Callable[..., Context], serial: dict[str, bytes], call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, whole = iter(range(1, 1000)), job.error

    def stops(*given: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return whole(*given)

    plugin = bld(**FEW, checkpoint_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(job, "error", stops)
        with pytest.raises(KeyboardInterrupt):
            plugin.run(alive(tiny), around())
    assert entries(plugin.run(alive(tiny), around()).library) == serial


def frail(folder: Path) -> Answer:
    """Answer, but for one job die in its midst the first time."""
    if folder.name == "01-ffn-50%" and not (folder / "marker").exists():
        (folder / "marker").touch()
        os.kill(os.getpid(), 9)
    return job.answer(folder)


def test_ray_gives_the_same_bytes_though_a_worker_is_killed(
    tiny: Tiny, around: Callable[..., Context], serial: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed; pip install compress-engine[ray]")
    monkeypatch.setattr(cluster, "answer", frail)
    report = QuietReport()
    found = bld(**FEW).run(alive(tiny), around("ray", workers=2, cluster="ray", report=report))
    assert entries(found.library) == serial
    assert ["block 1, ffn 50%" in death for death in report.measured["deaths"]] == [True]


def test_a_worker_that_cannot_see_the_run_folder_says_so(tmp_path: Path) -> None:
    told = job.answer(tmp_path / "elsewhere")
    assert told
    assert isinstance(job.fault(told), Unavailable)
    assert "all machines of a cluster see" in told["text"]


def test_ray_that_is_not_installed_is_asked_for(
    tiny: Tiny, around: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable, match=r"pip install compress-engine\[ray\]"):
        bld(**FEW).run(tiny("llama"), around(cluster="ray"))


def test_processes_share_the_gpus_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    shared = [processes.environment(k, torch.device("cuda"), 3) for k in range(3)]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in shared] == ["4", "7", "4"]
    assert {e["OMP_NUM_THREADS"] for e in shared} == {"3"}
    assert processes.environment(1, torch.device("cuda:0"), 1)["CUDA_VISIBLE_DEVICES"] == "4,7"


def test_calls_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    one, mask = torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool)
    call = ((one,), {"mask": mask, "pair": (one, None), "flag": True, "deep": {"x": [1, 2.5, "y"]}})
    pack = [Chunk(calls=(call, call), real=mask, held_out=h) for h in (False, True)]
    packing.pack(tmp_path, pack)
    found = packing.Packed(tmp_path, 1, torch.device("cpu"))
    assert (found.training, found.held_out) == ([0], [1])
    args, kwargs = found.call(1, torch.float64)
    assert torch.equal(args[0], one.double())
    assert torch.equal(kwargs.pop("mask"), mask)
    assert torch.equal(kwargs.pop("pair")[0], one.double())
    assert kwargs == {"flag": True, "deep": {"x": (1, 2.5, "y")}}
    assert torch.equal(found.real(0), mask)
    with pytest.raises(BadModel, match="called with a set"):
        packing.pack(tmp_path / "other", [Chunk(calls=(((), {"x": {1}}),), real=mask, held_out=False)])


# -- the pass -----------------------------------------------------------------------------------------------------


def test_weights_on_disk_give_the_same_library(tiny: Tiny, around: Callable[..., Context], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    tiny("gpt2").save(tmp_path / "model")
    plugin = bld(**FEW)
    memory, disk = (
        plugin.run(Artifact.load(tmp_path / "model", stored=stored), around(str(stored))) for stored in (False, True)
    )
    assert entries(memory.library) == entries(disk.library)
    assert next(iter(tree.block_linears(disk.model).values())).weight.is_meta
    plugin.ensures(Artifact.load(tmp_path / "model", stored=True), disk)


def test_plan_tells_of_the_library_and_finds_impossible_variants(tiny: Tiny) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    assert bld(**FEW).plan(facts) == facts.after(library=True)
    for given_ in ({"attention": ("kv 3",)}, {"attention": ("parent",), "ffn": ("parent",)}, {"include": ("nowhere",)}):
        with pytest.raises(BadSettings):
            bld(**given_).plan(facts)
    with pytest.raises(BadSettings, match="serves one query head"):
        bld(attention=("kv 50%",)).plan(tree.facts(tiny("gpt2").model, "causal-lm"))


def test_estimate_grows_with_what_is_trained(tiny: Tiny) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    alone, coupled, longer = (
        bld(**{**FEW, **more}).estimate(facts) for more in ({}, {"coupling": "coupled"}, {"steps": 400})
    )
    assert coupled.trainable > alone.trainable > 0
    assert coupled.disk_mib > alone.disk_mib > 4 * facts.parameters / 2**20
    assert min(coupled.seconds, longer.seconds) > alone.seconds
    assert bld(**{**FEW, "ffn": ("parent", "none"), "attention": ("parent",)}).estimate(facts).trainable == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [1, 2])
def test_blocks_are_trained_where_the_model_is(tiny: Tiny, around: Callable[..., Context], workers: int) -> None:
    artifact = alive(tiny)
    artifact.to_(torch.device("cuda"))
    made = bld(**FEW).run(artifact, around(device=torch.device("cuda"), workers=workers))
    library = Library(made.library or Path())
    assert sum((library.record(v) or {})["best"] > 0 for v in library.variants()) >= 3


def test_ensures_finds_each_kind_of_damage(tiny: Tiny, around: Callable[..., Context]) -> None:
    plugin = bld(**FEW)
    was, now = ran(plugin, tiny("llama"), around())
    library = Library(now.library or Path())
    variant = library.variants()[0]
    state, record = library.state(variant) or {}, library.record(variant) or {}
    name = next(iter(state))

    def broken(expected: str, after: Artifact = now) -> None:
        with pytest.raises(BrokenPromise, match=expected):
            plugin.ensures(was, after)

    broken("without a library", now.after(library=None))
    broken("NaN", _with(now, library, variant, {**state, name: state[name] * torch.nan}, record))
    broken("began with", _with(now, library, variant, state, {**record, "after": record["before"] * 1.01}))
    mask = torch.zeros_like(state[name], dtype=torch.bool)
    broken("prunes are not zero", _with(now, library, variant, {**state, f"{name[:-7]}.mask": mask}, record))
    _with(now, library, variant, state, record)
    plugin.ensures(was, now)
    for path in library.folder.glob(f"{variant.key}.*"):
        path.unlink()
    broken(f"{variant.key}: is not in the library")
    _with(now, library, variant, state, record)
    weight = now.model.get_parameter("model.norm.weight").data
    weight[0] += 1
    broken("model.norm.weight: differs")
    weight[0] -= 1
    library.folder.joinpath("library.json").write_text('{"parent": "another", "data": {}, "space": {}}')
    broken("made for another model")


def _with(artifact: Artifact, library: Library, variant: Variant, state: Any, record: Any) -> Artifact:
    library.add(variant, state, record)
    return artifact
