"""What the passes that prune in one walk share: every family, earlier masks, resuming, disk, promises, bad input."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from compress import registry, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Pass
from compress.data import DataSettings, Source
from compress.errors import BadModel, BadSettings, BrokenPromise
from compress.facts import MaskFact
from passes import _densities
from passes._layerwise import Journal
from passes._masks import fact, same_bits
from passes._oneshot import Oneshot
from passes.magnitude import Magnitude
from tests.conftest import CAUSAL, ENCODERS, state

Tiny = Callable[..., Artifact]
USES = ("wanda", "ria", "sparsegpt")
TEXT = "the quick brown fox jumps over the lazy dog; a model is pruned and no zero is lost, 1 2 3 5 8 13 21. "


def make(use: str, **given: Any) -> Oneshot:
    found: Any = registry.load("passes", use, Pass)
    made: Oneshot = found(found.Settings(batch=4, **given))
    return made


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "text.txt").write_text(TEXT * 20)
    lines = [" ".join(TEXT.split()[: 3 + i % 9]) for i in range(16)]
    (folder / "classes.csv").write_text("text,label\n" + "".join(f'"{t}",{i % 2}\n' for i, t in enumerate(lines)))
    return folder


@pytest.fixture
def run(texts: Path, tmp_path: Path) -> Callable[..., tuple[Artifact, Artifact, QuietReport]]:
    """Return a function that saves the input, plans, runs and checks; it gives both artifacts and the report."""

    def go(plugin: Pass, artifact: Artifact, name: str = "run") -> tuple[Artifact, Artifact, QuietReport]:
        before = tmp_path / name / "before"
        before.mkdir(parents=True)
        artifact.save(before)
        masks = {n: fact(artifact.masks[n]) for n in artifact.masks}
        facts = plugin.plan(tree.facts(artifact.model, artifact.task).after(masks=masks))
        report = QuietReport()
        context = context_of(artifact, texts, tmp_path / name, report)
        after = plugin.run(artifact, context)
        was = Artifact.load(before)
        plugin.ensures(was, after)
        assert set(facts.masks) == set(after.masks)
        return was, after, report

    return go


def context_of(artifact: Artifact, texts: Path, folder: Path, report: QuietReport | None = None) -> Context:
    name = "text.txt" if artifact.task == "causal-lm" else "classes.csv"
    settings = DataSettings(source=str(texts / name), windows=6, length=16)
    data = {"calibration": Source(settings, "calibration", artifact.task)}
    return Context(folder=folder, report=report or QuietReport(), data=data)


@pytest.mark.parametrize(
    ("kind", "pattern"), [*((k, "unstructured") for k in (*CAUSAL, *ENCODERS)), ("gpt2", "2:4"), ("bert", "2:4")]
)
@pytest.mark.parametrize("use", USES)
def test_every_family(tiny: Tiny, run: Any, use: str, kind: str, pattern: str, tmp_path: Path) -> None:
    was, after, report = run(make(use, pattern=pattern), tiny(kind))
    for name, linear in tree.block_linears(after.model).items():
        mask = after.masks[name]
        old, new = was.tensor(f"{name}.weight"), linear.weight.detach()
        assert (~mask).sum() * 2 == mask.numel()
        if pattern == "2:4":
            assert (mask.view(-1, 4).sum(1) == 2).all()
        elif use != "sparsegpt":
            assert (mask.sum(1) * 2 == mask.shape[1]).all()
        assert (new[~mask] == 0).all()
        if use != "sparsegpt":
            assert new.equal(old.masked_fill(~mask, 0))
    assert tree.tied(after.model) == tree.tied(was.model)
    assert [layer[0] for layer in report.measured["layers"]] == list(tree.block_linears(after.model))
    assert all(0 < layer[3] < 1 for layer in report.measured["layers"])
    (tmp_path / "after").mkdir()
    after.save(tmp_path / "after")
    again = Artifact.load(tmp_path / "after")
    assert all(same_bits(t, again.tensor(n)) for n, t in state(after).items())


VARIANTS = [
    ("wanda", {"refine": "swaps", "sequential": "linear"}),
    ("wanda", {"densities": "owl"}),
    ("ria", {"densities": "owl", "scope": "matrix"}),
    ("ria", {"pattern": "2:4", "permute": True, "refine": "swaps"}),
    ("sparsegpt", {"reference": "dense", "refine": "swaps"}),
    ("sparsegpt", {"update": "obs", "pattern": "2:4", "reference": "sparse"}),
    ("sparsegpt", {"densities": "owl", "scope": "row"}),
]


class Killed(Exception):
    """As if the process had been killed."""


def killed_at(number: int, does: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, dead at its call of that number."""
    calls = itertools.count(1)

    def call(*args: Any) -> Any:
        if next(calls) == number:
            raise Killed
        return does(*args)

    return call


@pytest.mark.parametrize(("use", "given"), VARIANTS)
def test_a_killed_run_resumes_to_the_same_bytes_and_words(
    tiny: Tiny, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str, given: dict[str, Any]
) -> None:
    found = []
    for name, kill in (("whole", 0), ("killed", 3)):
        (tmp_path / name).mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(Oneshot, "_change_", killed_at(kill, Oneshot._change_))
            for attempt in range(2 if kill else 1):
                artifact, report = tiny("qwen2"), QuietReport()
                context = context_of(artifact, texts, tmp_path / name, report)
                try:
                    after = make(use, **given).run(artifact, context)
                except Killed:
                    assert attempt == 0
        found.append((state(after), dict(after.masks), report.notes, report.measured["layers"]))
    whole, killed = found
    assert all(same_bits(t, killed[0][n]) for n, t in whole[0].items())
    assert all(m.equal(killed[1][n]) for n, m in whole[1].items())
    assert whole[2:] == killed[2:]


@pytest.mark.parametrize(("use", "given"), VARIANTS)
def test_weights_on_disk_end_as_weights_in_memory(
    tiny: Tiny, texts: Path, tmp_path: Path, use: str, given: dict[str, Any]
) -> None:
    dense = tmp_path / "dense"
    dense.mkdir()
    tiny("gpt2").save(dense)
    found = []
    for stored in (False, True):
        (tmp_path / str(stored)).mkdir()
        artifact = Artifact.load(dense, stored=stored)
        plugin = make(use, **given)
        after = plugin.run(artifact, context_of(artifact, texts, tmp_path / str(stored)))
        plugin.ensures(Artifact.load(dense, stored=True), after)
        if stored:
            assert all(p.is_meta for n, p in after.model.named_parameters() if ".h." in n)
        found.append((state(after), {n: after.masks[n] for n in after.masks}))
    assert all(same_bits(t, found[1][0][n]) for n, t in found[0][0].items())
    assert all(m.equal(found[1][1][n]) for n, m in found[0][1].items())


@pytest.mark.parametrize(
    ("use", "given"),
    [("wanda", {}), ("ria", {"scope": "matrix"}), ("sparsegpt", {}), ("sparsegpt", {"refine": "swaps"}),
     ("wanda", {"refine": "swaps"}), ("wanda", {"densities": "owl"})],
)  # fmt: skip
def test_an_earlier_mask_stays_and_counts(tiny: Tiny, run: Any, use: str, given: dict[str, Any]) -> None:
    _, once, _ = run(Magnitude(Magnitude.Settings(pattern="2:4")), tiny("llama"), "first")
    first = {n: once.masks[n] for n in once.masks}
    _, twice, _ = run(make(use, sparsity=0.75, **given), once, "second")
    pruned = size = 0
    for name in twice.masks:
        mask = twice.masks[name]
        assert not (mask & ~first[name]).any()
        assert (mask.view(-1, 4).sum(1) <= 2).all()
        pruned, size = pruned + int((~mask).sum()), size + mask.numel()
        if "densities" not in given:
            assert (~mask).sum() * 4 == mask.numel() * 3
    assert pruned / size == pytest.approx(0.75, abs=5e-3)


def test_owl_prunes_blocks_apart_and_all_together_as_asked(tiny: Tiny, run: Any) -> None:
    artifact = tiny("llama")
    with torch.no_grad():
        for name, linear in tree.block_linears(artifact.model).items():
            if "layers.1." in name:
                linear.weight[:, 0] *= 30  # outliers
    _, after, report = run(make("wanda", densities="owl", sparsity=0.6, owl_lambda=0.1), artifact)
    blocks = [[after.masks[n] for n in after.masks if f"layers.{i}." in n] for i in (0, 1)]
    shares = [sum(int((~m).sum()) for m in b) / sum(m.numel() for m in b) for b in blocks]
    assert shares == pytest.approx([0.7, 0.5], abs=0.01)
    assert sum(shares) / 2 == pytest.approx(0.6, abs=0.001)
    assert any(n.startswith("sparsity of the blocks: 70.") and n.endswith("%") for n in report.notes)


def test_ensures_holds_owl_to_its_mean(tiny: Tiny, run: Any) -> None:
    plugin = make("wanda", densities="owl")
    was, after, _ = run(plugin, tiny("llama"))
    name = "model.layers.1.mlp.down_proj"
    for index, expected in ((0, "counts of zeros miss"), (slice(None), "all linears together lost")):
        mask = after.masks[name].clone()
        mask[index] = torch.arange(mask.shape[1]) < 3
        after.tensor(f"{name}.weight").masked_fill_(~mask, 0)
        with pytest.raises(BrokenPromise, match=expected):
            plugin.ensures(was, after.after(masks={**after.masks, name: mask}))


def test_a_look_at_the_inputs_resumes_where_it_was(
    tiny: Tiny, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, context = tiny("llama"), context_of(tiny("llama"), texts, tmp_path)
    names, settings = list(tree.block_linears(artifact.model)), make("wanda").settings
    with monkeypatch.context() as patch:
        patch.setattr("passes._densities.save", killed_at(2, save))
        with pytest.raises(Killed):
            _densities.squares(artifact, names, settings, context)
    found = _densities.squares(artifact, names, settings, context)
    (tmp_path / "whole").mkdir()
    whole = _densities.squares(artifact, names, settings, context_of(artifact, texts, tmp_path / "whole"))
    assert list(found) == list(whole) == names
    assert all(same_bits(square, found[n]) and (square > 0).any() for n, square in whole.items())
    assert all(same_bits(t, tiny("llama").tensor(n)) for n, t in state(artifact).items())


@pytest.mark.parametrize("use", USES)
def test_inputs_that_are_always_zero_are_noted(tiny: Tiny, run: Any, use: str) -> None:
    artifact = tiny("opt")
    name = "model.decoder.layers.1.fc2"
    with torch.no_grad():
        tree.block_linears(artifact.model)["model.decoder.layers.1.fc1"].weight.zero_()
        tree.block_linears(artifact.model)["model.decoder.layers.1.fc1"].bias.fill_(-1)
    _, after, report = run(make(use, exclude=("fc1",)), artifact)
    assert f"{name}: nothing but zeros is read, so that nothing tells weights apart" in report.notes
    assert (~after.masks[name]).sum() * 2 == after.masks[name].numel()


@pytest.mark.parametrize("use", USES)
def test_values_that_are_not_finite_are_told_by_name(tiny: Tiny, run: Any, use: str) -> None:
    artifact = tiny("llama")
    with torch.no_grad():
        artifact.model.get_parameter("model.layers.0.post_attention_layernorm.weight")[3] = torch.nan
    with pytest.raises(BadModel, match=r"model.layers.0.mlp.gate_proj: reads values that are NaN"):
        run(make(use), artifact)
    artifact = tiny("llama")
    with torch.no_grad():
        artifact.model.get_parameter("model.layers.1.self_attn.o_proj.weight")[0, 0] = torch.nan
    with pytest.raises(BadModel, match=r"model.layers.1.self_attn.o_proj: "):
        run(make(use, sequential="linear"), artifact, "again")


class Told(Oneshot):
    """Attempts that are made up: zeroing what comes last is better than zeroing everything."""

    scope = "matrix"

    def attempts(self, inputs: Any, tasks: Any, note: Any) -> Any:
        for task in tasks:
            mask = torch.zeros_like(task.old)
            mask.view(-1)[: mask.numel() // 2] = True
            note(f"{task.layer.name}: looked at")
            yield [
                Oneshot.refined(self, task.weight, mask, task)[0],
                type("Worse", (), {"what": "nonsense", "weight": -task.weight * mask, "mask": mask})(),
            ]

    def saliency(self, weight: Tensor, square: Tensor) -> Tensor:
        return weight

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        return self.prune(artifact, context)


def test_what_is_better_on_held_out_windows_stays_and_is_told(
    tiny: Tiny, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", killed_at(7, Journal.save))
        with pytest.raises(Killed):
            Told(make("wanda", sequential="linear").settings).run(
                tiny("llama"), context_of(tiny("llama"), texts, tmp_path)
            )
    artifact, report = tiny("llama"), QuietReport()
    old = state(artifact)
    after = Told(make("wanda", sequential="linear").settings).run(
        artifact, context_of(artifact, texts, tmp_path, report)
    )
    for name in after.masks:
        assert after.tensor(f"{name}.weight").equal(old[f"{name}.weight"].masked_fill(~after.masks[name], 0))
    found = [n for n in report.notes if n.startswith("nonsense did worse than plain zeroing on held-out windows")]
    assert len(found) == 1
    assert "in 14 of 14 linears: model.layers.0.self_attn.q_proj" in found[0]
    assert report.notes.count("model.layers.1.self_attn.q_proj: looked at") == 1
    name, first, last, kept, what = report.measured["layers"][0]
    assert (kept, what) == (first, "plain zeroing")
    assert last > first
    assert json.loads((tmp_path / "journal.json").read_text())[name]["errors"] == [first, last]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"pattern": "2:4", "sparsity": 0.6}, "sparsity"),
        ({"pattern": "3:5"}, "pattern"),
        ({"pattern": "2:4", "densities": "owl"}, "densities"),
        ({"owl_lambda": 0.1}, "owl_lambda"),
        ({"refine_cycles": 3}, "refine_cycles"),
        ({"include": ("nowhere",)}, "include"),
        ({"sparsity": 0.9999}, "sparsity"),
    ],
)
def test_impossible_settings_are_found_before_any_work(tiny: Tiny, use: str, given: dict[str, Any], key: str) -> None:
    with pytest.raises(BadSettings) as caught:
        make(use, **given).plan(tree.facts(tiny("llama").model, "causal-lm"))
    assert caught.value.key == key


def test_only_updates_see_what_the_linears_before_them_lost() -> None:
    given = {use: make(use).settings for use in USES}
    assert {use: (s.sequential, s.reference) for use, s in given.items()} == {
        "wanda": ("block", "sparse"), "ria": ("block", "sparse"), "sparsegpt": ("linear", "dense"),
    }  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_plan_tells_the_masks_and_estimate_the_cost(tiny: Tiny, use: str) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    planned = make(use, pattern="2:4", include=("q_proj",)).plan(facts)
    assert planned == facts.after(masks={f"model.layers.{i}.self_attn.q_proj": MaskFact("2:4", 0.5) for i in (0, 1)})
    plain, swaps = (make(use, refine=r).estimate(facts) for r in ("none", "swaps"))
    assert swaps.seconds > plain.seconds > 0
    assert plain.peak_mib > 4 * facts.parameters / 2**20
    assert plain.trainable == 0


@pytest.mark.parametrize("use", USES)
def test_ensures_finds_each_kind_of_damage(tiny: Tiny, run: Any, use: str) -> None:
    plugin = make(use, include=("mlp",))
    was, after, _ = run(plugin, tiny("llama"))
    name = "model.layers.0.mlp.up_proj"
    mask, weight = after.masks[name], after.tensor(f"{name}.weight")
    cut, free = tuple((~mask).nonzero()[0].tolist()), tuple(mask.nonzero()[0].tolist())

    def broken(expected: str, **changes: Any) -> None:
        with pytest.raises(BrokenPromise, match=expected):
            plugin.ensures(was, after.after(**changes))

    broken("has no mask", masks={n: after.masks[n] for n in after.masks if n != name})
    more = mask.clone()
    more[cut] = True
    broken("counts of zeros miss 0.5", masks={**after.masks, name: more})
    weight[cut] = 1e-8
    broken("differs from what it was")
    weight[cut] = 0.0
    if use != "sparsegpt":
        kept = weight[free].clone()
        weight[free] *= 1.001
        broken("differs from what it was")
        weight[free] = kept
    other: nn.Linear = after.model.get_submodule("model.layers.0.self_attn.q_proj")
    other.weight.data[0, 0] += 1e-6
    broken("q_proj.weight: differs")
    other.weight.data[0, 0] = was.tensor("model.layers.0.self_attn.q_proj.weight")[0, 0]
    plugin.ensures(was, after)
