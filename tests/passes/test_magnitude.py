"""Magnitude pruning on every family: planned, run, held to its promises, saved and opened again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.errors import BadSettings, BrokenPromise
from compress.facts import MaskFact
from passes._masks import fact, same_bits, sparsity_of
from passes.magnitude import Magnitude, score
from tests.conftest import CAUSAL, ENCODERS

Tiny = Callable[..., Artifact]


def magnitude(**given: Any) -> Magnitude:
    return Magnitude(Magnitude.Settings(**given))


def run(plugin: Magnitude, artifact: Artifact, folder: Path) -> tuple[Artifact, Artifact, QuietReport]:
    """Save the input, run, hold the pass to its promises; return both and what was reported."""
    before = folder / "before"
    before.mkdir(parents=True)
    artifact.save(before)
    facts = plugin.plan(tree.facts(artifact.model, artifact.task).after(masks=_facts(artifact)))
    report = QuietReport()
    after = plugin.run(artifact, Context(folder=folder, report=report))
    was = Artifact.load(before)
    plugin.ensures(was, after)
    assert set(facts.masks) == set(after.masks)
    return was, after, report


def _facts(artifact: Artifact) -> dict[str, MaskFact]:
    return {n: fact(m) for n, m in artifact.masks.items()}


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_every_family_goes_through_and_survives_the_disk(tiny: Tiny, kind: str, pattern: str, tmp_path: Path) -> None:
    was, after, _ = run(magnitude(pattern=pattern), tiny(kind), tmp_path)
    for name, linear in tree.block_linears(after.model).items():
        mask = after.masks[name]
        assert mask.shape == linear.weight.shape
        assert (~mask).sum() * 2 == mask.numel()
        if pattern == "2:4":
            assert (mask.view(-1, 4).sum(1) == 2).all()
        old = tree.block_linears(was.model)[name].weight
        assert torch.equal(linear.weight, torch.where(mask, old, 0.0))
        assert old[~mask].abs().mean() < old[mask].abs().mean()
    folder = tmp_path / "after"
    folder.mkdir()
    after.save(folder)
    again = Artifact.load(folder)
    assert again.masks.keys() == after.masks.keys()
    assert all(torch.equal(again.masks[n], m) for n, m in after.masks.items())
    state, stored = after.model.state_dict(), again.model.state_dict()
    assert all(same_bits(t, stored[n]) for n, t in state.items())
    assert tree.tied(again.model) == tree.tied(was.model)


def test_score_is_the_absolute_value() -> None:
    assert score(torch.tensor([[-2.0, 1.0]], dtype=torch.float16)).tolist() == [[2.0, 1.0]]
    assert score(torch.zeros(1, 1, dtype=torch.bfloat16)).dtype == torch.float32


def test_scope_global_prunes_exactly_the_total(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    linears = tree.block_linears(artifact.model)
    starved = "model.layers.0.mlp.up_proj"
    with torch.no_grad():
        linears[starved].weight.mul_(1e-3)
    _, after, _ = run(magnitude(scope="global", sparsity=0.6, minimum_density=0.1), artifact, tmp_path)
    total = sum(m.numel() for m in after.masks.values())
    assert sum(int((~m).sum()) for m in after.masks.values()) == round(0.6 * total)
    kept = after.masks[starved]
    assert int(kept.sum()) == -(-kept.numel() // 10)  # all of it would go, so the minimum decides
    others = [sparsity_of([m]) for n, m in after.masks.items() if n != starved]
    assert max(others) < 0.75


def test_scope_row_prunes_each_row_alike(tiny: Tiny, tmp_path: Path) -> None:
    _, after, _ = run(magnitude(scope="row", sparsity=0.25), tiny("opt"), tmp_path)
    assert all(((~m).sum(1) * 4 == m.shape[1]).all() for m in after.masks.values())


def test_a_second_pass_counts_what_the_first_pruned(tiny: Tiny, tmp_path: Path) -> None:
    _, once, _ = run(magnitude(pattern="2:4"), tiny("llama"), tmp_path / "1")
    first = dict(once.masks)
    _, twice, _ = run(magnitude(sparsity=0.75), once, tmp_path / "2")
    for name, mask in twice.masks.items():
        assert not (mask & ~first[name]).any()
        assert (~mask).sum() * 4 == mask.numel() * 3
        assert (mask.view(-1, 4).sum(1) <= 2).all()


def test_only_chosen_linears_change(tiny: Tiny, tmp_path: Path) -> None:
    was, after, report = run(magnitude(include=("mlp",), exclude=("layers.0",)), tiny("llama"), tmp_path)
    assert set(after.masks) == {f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up", "down")}
    old, new = was.model.state_dict(), after.model.state_dict()
    changed = {n.removesuffix(".weight") for n in old if not same_bits(old[n], new[n])}
    assert changed == set(after.masks)
    prunable = sum(w.weight.numel() for w in tree.block_linears(after.model).values())
    parameters = sum(p.numel() for p in after.model.parameters())
    zeros = 3 * 32 * 64 / 2
    assert f"{zeros / prunable:.2%} of the {prunable:,} weights" in report.notes[0]
    assert f"{zeros / parameters:.2%} of the {parameters:,} parameters" in report.notes[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_stay_where_the_weights_are(tiny: Tiny, tmp_path: Path) -> None:
    on_cpu = magnitude(pattern="2:4").run(tiny("llama"), Context(folder=tmp_path))
    artifact = tiny("llama")
    torch.nn.Module.to(artifact.model, "cuda")
    after = magnitude(pattern="2:4").run(artifact, Context(folder=tmp_path, device=torch.device("cuda")))
    assert {t.device.type for t in (*after.masks.values(), *after.model.parameters())} == {"cuda"}
    assert all(torch.equal(m.cpu(), on_cpu.masks[n]) for n, m in after.masks.items())


def test_the_same_bytes_twice(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("a", "b"):
        _, after, report = run(magnitude(scope="global"), tiny("qwen3"), tmp_path / name)
        (tmp_path / name / "after").mkdir()
        after.save(tmp_path / name / "after")
        (tmp_path / name / "notes").write_text("\n".join(report.notes))
    for file in ("after/compress.json", "after/model.safetensors", "after/masks.safetensors", "notes"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"pattern": "2:4", "sparsity": 0.6}, "sparsity"),
        ({"pattern": "2:4", "scope": "row"}, "scope"),
        ({"pattern": "3:5"}, "pattern"),
        ({"minimum_density": 0.1}, "minimum_density"),
        ({"scope": "global", "sparsity": 0.97}, "minimum_density"),
        ({"include": ("nowhere",)}, "include"),
        ({"exclude": ("mlp", "self_attn")}, "exclude"),
    ],
)
def test_impossible_settings_are_found_before_any_work(tiny: Tiny, given: dict[str, Any], key: str) -> None:
    artifact = tiny("llama")
    with pytest.raises(BadSettings) as caught:
        magnitude(**given).plan(tree.facts(artifact.model, artifact.task))
    assert caught.value.key == key


def test_plan_tells_the_masks(tiny: Tiny) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    planned = magnitude(pattern="2:4", include=("q_proj",)).plan(facts)
    assert planned.masks == {f"model.layers.{i}.self_attn.q_proj": MaskFact("2:4", 0.5) for i in (0, 1)}
    assert facts.masks == {}


def test_estimate_counts_more_when_all_are_scored_at_once(tiny: Tiny) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    alone, together = magnitude().estimate(facts), magnitude(scope="global").estimate(facts)
    assert together.peak_mib > alone.peak_mib > 4 * facts.parameters / 2**20
    assert alone.trainable == 0


def test_ensures_finds_each_kind_of_damage(tiny: Tiny, tmp_path: Path) -> None:
    plugin = magnitude(include=("mlp",))
    was, after, _ = run(plugin, tiny("llama"), tmp_path)
    name = "model.layers.0.mlp.up_proj"
    mask, weight = after.masks[name], tree.block_linears(after.model)[name].weight.data
    free = mask.nonzero()[0].tolist()
    cut = (~mask).nonzero()[0].tolist()

    def broken(expected: str, **changes: Any) -> None:
        with pytest.raises(BrokenPromise, match=expected):
            plugin.ensures(was, after.after(**changes))

    broken("has no mask", masks={n: m for n, m in after.masks.items() if n != name})
    more = mask.clone()
    more[tuple(cut)] = True
    broken("counts of zeros miss 0.5", masks={**after.masks, name: more})
    for index, value in ((free, weight[tuple(free)] * 1.001), (cut, torch.tensor(1e-8))):
        kept = weight[tuple(index)].clone()
        weight[tuple(index)] = value
        broken("differs from what it was")
        weight[tuple(index)] = kept
    norm = after.model.get_parameter("model.norm.weight").data
    norm[0] += 1e-6
    broken("model.norm.weight: differs")
    norm[0] = 1.0
    plugin.ensures(was, after)


def test_ensures_guards_masks_of_other_linears(tiny: Tiny, tmp_path: Path) -> None:
    _, first, _ = run(magnitude(include=("q_proj",)), tiny("llama"), tmp_path / "1")
    plugin = magnitude(include=("k_proj",))
    was, after, _ = run(plugin, first, tmp_path / "2")
    lost = {n: m for n, m in after.masks.items() if "k_proj" in n}
    with pytest.raises(BrokenPromise, match="its mask changed"):
        plugin.ensures(was, after.after(masks=lost))
