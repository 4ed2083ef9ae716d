"""Bits by sensitivity: scores against full forwards, the choice against brute force, the budget against itself."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

import compress
from compress import grids, registry, settings, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Pass
from compress.data import Examples, Source
from compress.data.settings import DataSettings
from compress.errors import BadData, BadModel, BadSettings, BrokenPromise, UserFault
from compress.evaluate.scorers import ModelScorer
from compress.facts import GridFact, Planned, Task
from passes import _densities, _masks, _quant
from passes._layerwise import LayerwiseSettings
from passes._quant import mixed
from passes._sensitivity import Change, Judge, Kind, Swap, check, distances, scores
from passes._train import draw
from tests.conftest import CAUSAL, ENCODERS, VOCABULARY, branched, lively, uneven

TASKS: list[tuple[str, Task]] = [
    *((kind, "causal-lm") for kind in CAUSAL),
    *((kind, "classification") for kind in ENCODERS),
    ("bert", "regression"),
    ("roberta", "embedding"),
    ("llama", "classification"),
]
REFUSED = {("lm", "embedding"), *(("task", task) for task in ("causal-lm", "regression", "embedding"))}


class Rows:
    """Calibration rows of unlike lengths."""

    def __init__(self, lengths: Sequence[int] = (9, 5, 7, 9, 3, 8)) -> None:
        random = torch.Generator().manual_seed(1)
        self.made = Examples(
            tokens=torch.randint(2, VOCABULARY, (sum(lengths),), generator=random), lengths=torch.tensor(lengths), pad=1
        )

    def labelled(self, task: Task) -> Rows:
        """Return the rows with labels for a task: the tokens themselves, classes or numbers."""
        labels: dict[str, Tensor] = {
            "causal-lm": self.made.tokens,
            "classification": torch.arange(len(self.made)) % 2,
            "regression": torch.arange(len(self.made)) / 4,
        }
        self.made = dataclasses.replace(self.made, labels=labels.get(task), by_token=task == "causal-lm")
        return self

    def examples(self, tokenizer: Any) -> Examples:
        return self.made


def context_of(folder: Path, **changes: Any) -> Context:
    given: dict[str, Any] = {"folder": folder, "data": {"calibration": Rows()}, **changes}
    return Context(**given)


def rtn(**given: Any) -> Any:
    found = registry.load("passes", "rtn", Pass)
    return found(found.Settings(**{"group_size": 8, **given}))


def pruner(use: str, **given: Any) -> Any:
    found = registry.load("passes", use, Pass)
    return found(found.Settings(**given))


def halved(name: str, *names: str) -> Change:
    """Return a change that is no small one, and of a number format of its own."""
    return Change(key=f"{name} halved", names=(name, *names), made=lambda _, weight: weight.double() / 2)


def distance(task: Task, given: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the distance of outputs by its formula: `[rows, n]` each, of all rows."""
    p, q = torch.cat(list(given)).double(), torch.cat(list(found)).double()
    if task in ("causal-lm", "classification"):
        p, q = p.softmax(-1), q.softmax(-1)
        return float((p * (p / q).log()).sum(-1).mean())
    return float((p - q).square().sum() / p.square().sum())


def outputs(artifact: Artifact, rows: Examples) -> list[Tensor]:
    """Return what a full forward gives, row by row, so that nothing is padded."""
    scorer, found = ModelScorer(artifact.model), []
    for index in range(len(rows)):
        batch = rows.batch([index])
        causal = artifact.task == "causal-lm"
        found.append(scorer.logits(batch)[0] if causal else scorer.outputs(batch, artifact.task == "embedding"))
    return found


# Scores.


@pytest.mark.parametrize(("kind", "task"), TASKS)
def test_scores_are_those_of_full_forwards(
    kind: str, task: Task, tiny: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = tiny(kind, task)
    lively(artifact.model)
    linears = tree.block_linears(artifact.model)
    chosen = [n for i, n in enumerate(linears) if i % 3 == 0]
    state = {n: t.clone() for n, t in artifact.model.state_dict().items()}
    found = distances(artifact, [halved(n) for n in chosen], 6, context_of(tmp_path), tmp_path / "journal.json")
    assert all(torch.equal(t, state[n]) for n, t in artifact.model.state_dict().items()), "the model changed"
    rows = Rows().examples(None)
    given = outputs(artifact, rows)
    for name in chosen:
        linears[name].weight.data /= 2
        expected = distance(task, given, outputs(artifact, rows))
        linears[name].weight.data *= 2
        assert found[f"{name} halved"] == pytest.approx(expected, rel=1e-3, abs=1e-9)
        assert expected > 0


@pytest.mark.parametrize(("kind", "task"), TASKS)
def test_what_does_not_change_scores_0(kind: str, task: Task, tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = tiny(kind, task)
    every = [Change(key=n, names=(n,), made=lambda _, w: w.clone()) for n in tree.block_linears(artifact.model)]
    found = distances(artifact, every, 3, context_of(tmp_path), tmp_path / "journal.json")
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(("kind", "task"), TASKS)
@pytest.mark.parametrize("formula", ["kl", "lm", "hidden", "task"])
def test_modules_in_a_blocks_place_by_every_formula(
    formula: Kind, kind: str, task: Task, tiny: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact, rows = tiny(kind, task), Rows().labelled(task)
    lively(artifact.model)
    if (formula, task) in REFUSED:
        with pytest.raises(BadSettings, match="'kl' would do"):
            check(formula, task)
        return
    check(formula, task)
    name, block = next(iter(tree.blocks(artifact.model).items()))
    other = copy.deepcopy(block)
    for parameter in other.parameters():
        parameter.data *= 1.5
    swap = Swap(key="other", block=name, made=lambda: other)
    context = context_of(tmp_path, data={"calibration": rows})
    found = scores(artifact, [swap], 6, context, tmp_path / "journal.json", kind=formula)["other"]
    again = scores(artifact, [swap], 6, context, tmp_path / "journal.json", kind=formula)["other"]
    assert again == found
    low, high = found.interval()
    assert low <= found.mean <= high
    order = draw(0, 6, 6, 0)
    given = [_judged(artifact, rows.made, i, formula) for i in order]
    tree.replace_(artifact.model, name, other)
    changed = [_judged(artifact, rows.made, i, formula) for i in order]
    assert len(found.sums) == len(found.weights) == 6
    for row, (was, now) in enumerate(zip(given, changed, strict=True)):
        labels = rows.made.batch([order[row]])["labels"][0] if rows.made.labels is not None else None
        total, weight = _formula(formula, task, was, now, labels)
        assert found.sums[row] == pytest.approx(total, rel=1e-3, abs=1e-6)
        assert found.weights[row] == pytest.approx(weight, rel=1e-4)


def _judged(artifact: Artifact, rows: Examples, row: int, formula: Kind) -> Tensor:
    """Return what a full forward of one row gives, by token or as one row, float64 [items, outputs]."""
    if formula == "hidden":
        with torch.no_grad():
            found: Tensor = tree.backbone(artifact.model)(input_ids=rows.batch([row])["input_ids"]).last_hidden_state
        return found[0].double()
    batch, scorer = rows.batch([row]), ModelScorer(artifact.model)
    causal = artifact.task == "causal-lm"
    return (scorer.logits(batch)[0] if causal else scorer.outputs(batch, artifact.task == "embedding")).double()


def _formula(formula: Kind, task: Task, was: Tensor, now: Tensor, labels: Any) -> tuple[float, float]:
    """Return the sum of one row and what it is a share of, as written."""
    if formula == "hidden":
        cosines = (was * now).sum(-1) / (was.norm(dim=-1) * now.norm(dim=-1))
        return float((1 - cosines).sum()), len(was)
    if formula == "task":
        return float(int(was.argmax() == labels)) - float(int(now.argmax() == labels)), 1
    if formula == "lm" and task == "regression":
        return float((now.squeeze() - labels) ** 2 - (was.squeeze() - labels) ** 2), 1
    if formula == "lm":
        logs = [t[:-1].log_softmax(-1) if task == "causal-lm" else t.log_softmax(-1) for t in (was, now)]
        wanted = labels[1:] if task == "causal-lm" else labels.view(1)
        losses = [-log[torch.arange(len(wanted)), wanted].sum() for log in logs]
        return float(losses[1] - losses[0]), len(wanted)
    if task in ("causal-lm", "classification"):
        p, q = was.log_softmax(-1), now.log_softmax(-1)
        return float((p.exp() * (p - q)).sum()), len(was)
    return float((was - now).square().sum()), float(was.square().sum())


def test_labels_that_are_missing(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = tiny("llama")
    name, block = next(iter(tree.blocks(artifact.model).items()))
    swap = Swap(key="other", block=name, made=lambda: block)
    with pytest.raises(BadData, match="holds no labels, which score = 'lm' needs"):
        scores(artifact, [swap], 2, context_of(tmp_path), tmp_path / "journal.json", kind="lm")


@pytest.mark.parametrize("shape", [uneven, branched])
def test_odd_blocks(shape: Callable[[Artifact], Artifact], tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = shape(tiny("llama"))
    name = list(tree.block_linears(artifact.model))[1]
    rows = Rows().examples(None)
    found = distances(artifact, [halved(name)], 6, context_of(tmp_path), tmp_path / "journal.json")
    given = outputs(artifact, rows)
    artifact.model.get_parameter(f"{name}.weight").data /= 2
    assert found[f"{name} halved"] == pytest.approx(distance("causal-lm", given, outputs(artifact, rows)), rel=1e-3)


def test_few_rows_are_drawn_by_seed(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = tiny("llama")
    name = next(iter(tree.block_linears(artifact.model)))

    def score(seed: int, windows: int) -> float:
        journal = tmp_path / f"{seed}-{windows}-{len(list(tmp_path.iterdir()))}.json"
        return distances(artifact, [halved(name)], windows, context_of(tmp_path, seed=seed), journal)[f"{name} halved"]

    assert score(0, 2) == score(0, 2)
    assert score(0, 2) != score(1, 2)
    assert score(0, 6) == pytest.approx(score(1, 99), rel=1e-6)  # all there are


def test_weights_on_disk_score_the_same(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    tiny("gpt2").save(tmp_path / "a")
    found = []
    for stored in (False, True):
        artifact = Artifact.load(tmp_path / "a", stored=stored)
        changes = [halved(n) for n in tree.block_linears(artifact.model)]
        found.append(distances(artifact, changes, 4, context_of(tmp_path), tmp_path / f"{stored}.json"))
    assert found[0] == found[1]


def test_logits_in_pieces(tiny: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifact = tiny("llama")
    change = [halved(next(iter(tree.block_linears(artifact.model))))]
    whole = distances(artifact, change, 6, context_of(tmp_path), tmp_path / "a.json")
    monkeypatch.setattr(Judge, "_at_once", lambda self: 2)
    pieces = distances(artifact, change, 6, context_of(tmp_path), tmp_path / "b.json")
    assert pieces == pytest.approx(whole, rel=1e-9)


def test_outputs_that_are_no_numbers(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = tiny("llama")
    name = list(tree.block_linears(artifact.model))[3]
    broken = Change(key=f"{name} in 2 bits", names=(name,), made=lambda _, w: w * torch.nan)
    with pytest.raises(BadModel, match=f"{name} in 2 bits: the outputs"):
        distances(artifact, [broken], 2, context_of(tmp_path), tmp_path / "journal.json")


class Dies(QuietReport):
    """A report of a run that is killed after so many steps of its bar."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.done = steps, 0

    def bar(self, what: str, total: int, done: int = 0) -> Any:
        outer = super().bar(what, total, done)
        assert 0 <= done <= total
        self.done = done

        class Bar:
            def __enter__(bar) -> Any:  # noqa: N805 (self is the report)
                outer.__enter__()
                return bar

            def __exit__(bar, *error: Any) -> None:  # noqa: N805
                outer.__exit__(*error)

            def advance(bar, amount: int = 1) -> None:  # noqa: N805
                self.steps -= amount
                if self.steps < 0:
                    raise KeyboardInterrupt

        return Bar()


def test_a_killed_run_goes_on_where_it_was(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    plugin = rtn(average_bits=3)
    once = plugin.resolved(tiny("llama"), context_of(tmp_path / "once"))
    blocks, first = 2, 7 * 4 * 2  # the first block's changes pass two blocks
    with pytest.raises(KeyboardInterrupt):
        plugin.resolved(tiny("llama"), context_of(tmp_path / "twice", report=Dies(first)))
    again = Dies(10**6)
    assert plugin.resolved(tiny("llama"), context_of(tmp_path / "twice", report=again)) == once
    assert again.done == first
    assert 10**6 - again.steps == 7 * 4 * (blocks - 1), "what was judged is not judged again"
    journals = [next((tmp_path / n).glob("sensitivity-*.json")).read_bytes() for n in ("once", "twice")]
    assert journals[0] == journals[1]
    empty = Dies(0)
    assert plugin.resolved(tiny("llama"), context_of(tmp_path / "twice", report=empty)) == once


# The choice.


@st.composite
def problems(draw: Any) -> tuple[dict[str, dict[int, float]], dict[str, int], int]:
    units = [f"unit {i}" for i in range(draw(st.integers(1, 5)))]
    weights = {u: draw(st.integers(1, 9)) for u in units}
    bits = draw(st.lists(st.sampled_from((2, 3, 4, 8)), min_size=1, max_size=4, unique=True))
    score = st.floats(-7, 1).map(lambda x: 10**x) | st.just(0.0)
    scores = {u: {b: draw(score) for b in bits} for u in units}
    least = min(bits) * sum(weights.values())
    return scores, weights, draw(st.integers(least, least + 6 * sum(weights.values())))


@given(problems())
@hypothesis.settings(max_examples=50, deadline=None)
def test_the_choice_is_the_best_of_all(problem: tuple[dict[str, dict[int, float]], dict[str, int], int]) -> None:
    scores, weights, budget = problem

    def total(picks: Sequence[int]) -> float:
        return sum(row[b] for row, b in zip(scores.values(), picks, strict=True))

    def bits(picks: Sequence[int]) -> int:
        return sum(b * n for b, n in zip(picks, weights.values(), strict=True))

    picks = list(mixed.cheapest(scores, weights, budget).values())
    assert bits(picks) <= budget
    best = min(total(each) for each in itertools.product(*scores.values()) if bits(each) <= budget)
    assert total(picks) == pytest.approx(best, rel=1e-8, abs=1e-12)


# Quantizers.


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("given", [{"average_bits": 3}, {"average_bits": 3.1, "choose": "block"}])
def test_the_mean_is_kept_and_used(
    kind: str, given: dict[str, Any], tiny: Callable[..., Artifact], tmp_path: Path
) -> None:
    plugin, before = rtn(**given), tiny(kind)
    facts = plugin.plan(tree.facts(before.model, before.task))
    assert all({p.bits for p in f.possible} == {2, 3, 4, 8} for f in facts.grids.values())
    context = context_of(tmp_path)
    after = plugin.run(tiny(kind), context)
    plugin.ensures(before, after)
    found = grids.facts(after.grids)
    assert facts.admits(found)
    sizes = {n: m.weight.numel() for n, m in tree.block_linears(after.model).items()}
    bits = sum(f.bits * sizes[n] for n, f in found.items())
    assert bits <= given["average_bits"] * sum(sizes.values())
    if "choose" in given:
        assert all(
            len({f.bits for n, f in found.items() if n.startswith(f"{b}.")}) == 1 for b in tree.blocks(after.model)
        )
    assert isinstance(context.report, QuietReport)
    assert context.report.notes[0].startswith("chose bits with a mean of ")
    assert len(context.report.measured["bits"]) == (2 if "choose" in given else len(sizes))
    scores = {p: c.score for c in plugin.candidates(before, context) for p in [(c.layer, c.choice.get("bits"))]}
    for layer, chosen, score in context.report.measured["bits"]:
        assert scores[layer, chosen] == score
        size = sum(n for name, n in sizes.items() if f"{name}.".startswith(f"{layer}."))
        better = [b for b in (2, 3, 4, 8) if scores[layer, b] < score * (1 - 1e-6)]
        assert all(bits + (b - chosen) * size > given["average_bits"] * sum(sizes.values()) for b in better)


def test_patterns_and_masks_hold(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    def masked() -> Artifact:
        artifact = tiny("llama")
        linears = tree.block_linears(artifact.model)
        masks = {n: torch.arange(m.weight.numel()).view_as(m.weight) % 4 < 2 for n, m in linears.items()}
        for name, mask in masks.items():
            linears[name].weight.data[~mask] = 0
        return artifact.after(masks=masks)

    plugin = rtn(average_bits=4.5, choices=(2, 4), exclude=("k_proj",), layers={"down_proj": 8, "o_proj": "float"})
    after = plugin.run(masked(), context_of(tmp_path))
    plugin.ensures(masked(), after)
    found = grids.facts(after.grids)
    assert not any("k_proj" in n or "o_proj" in n for n in found)
    assert {f.bits for n, f in found.items() if "down_proj" in n} == {8}
    open_ = [f.bits for n, f in found.items() if "down_proj" not in n]
    assert set(open_) == {2, 4}
    sizes = {n: after.grids[n].codes.numel() for n in found}
    assert sum(f.bits * sizes[n] for n, f in found.items()) <= 4.5 * sum(sizes.values())  # the fixed 8 count


def test_more_bits_than_allowed_are_seen(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    plugin, artifact = rtn(average_bits=2.5), tiny("llama")
    after = plugin.run(tiny("llama"), context_of(tmp_path))
    name = next(n for n, f in grids.facts(after.grids).items() if f.bits < 8)
    fact = GridFact(bits=8, group_size=8)
    weight = artifact.tensor(f"{name}.weight")
    wider = _quant.grid(weight, _quant.span(weight, fact), fact)
    after.model.get_parameter(f"{name}.weight").data.copy_(wider.dequantized())
    with pytest.raises(BrokenPromise, match=r"bits in the mean, and were to have 2.5 at most"):
        plugin.ensures(artifact, after.after(grids={**after.grids, name: wider}))


@pytest.mark.parametrize(
    ("given", "key", "what"),
    [
        ({"average_bits": 3, "bits": 4}, "bits", "leave one of them out"),
        ({"choices": (2, 4)}, "choices", "only with average_bits"),
        ({"choose": "block"}, "choose", "only with average_bits"),
        ({"choose_windows": 3}, "choose_windows", "only with average_bits"),
        ({"average_bits": 2.5, "choices": (3, 4)}, "average_bits", "3 can be reached"),
        ({"average_bits": 2.1, "layers": {"down_proj": 8}}, "average_bits", "can be reached"),
        ({"average_bits": 8, "activation": "dynamic"}, "activation", "integer inputs go with 8 bits"),
        ({"average_bits": 3, "group_size": 33}, "group_size", "fewer than a group of 33"),
    ],
)
def test_faults_come_before_any_work(given: dict[str, Any], key: str, what: str, tiny: Callable[..., Artifact]) -> None:
    with pytest.raises(BadSettings, match=what) as caught:
        rtn(**given).plan(tree.facts(tiny("llama").model, "causal-lm"))
    assert caught.value.key == key


def test_the_mean_that_is_told_can_be_reached(tiny: Callable[..., Artifact]) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    with pytest.raises(BadSettings) as caught:
        rtn(average_bits=2.1, layers={"v_proj": 8}).plan(facts)
    told = float(str(caught.value).split("; ")[1].split()[0])
    rtn(average_bits=told, layers={"v_proj": 8}).plan(facts)
    with pytest.raises(BadSettings):
        rtn(average_bits=told - 2e-4, layers={"v_proj": 8}).plan(facts)


def test_a_pipeline_is_checked_and_runs(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    tiny("llama").save(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a model is quantized, and not all of it alike. " * 200)
    text = f"[model]\nsource = '{tmp_path / 'model'}'\n"
    for role in ("calibration", "evaluation"):
        text += f"[data.{role}]\nsource = '{tmp_path / 'text.txt'}'\nlength = 16\nwindows = 4\n"
    text += "[[pass]]\nuse = 'rtn'\ngroup_size = 8\n{}\n[[export]]\nuse = 'safetensors'\nformat = 'float'\n"
    path = tmp_path / "pipeline.toml"
    path.write_text(text.format("average_bits = 2.5\nchoices = [3, 4]"))
    with pytest.raises(UserFault, match=r"average_bits \(rtn\): no choice of bits has so low a mean, got 2.5; 3 can"):
        settings.check(path)
    path.write_text(text.format("average_bits = 2.5\nchoices = [2, 4]"))
    facts = settings.check(path)[-1]
    assert all({p.bits for p in f.possible} == {2, 4} for f in facts.grids.values())
    done = compress.run(path, folder=tmp_path / "run", quiet=True)
    assert facts.admits(grids.facts(done.artifact.grids))
    assert done.artifact.lineage[-1].notes[0].startswith("chose bits with a mean of 2.5")
    assert len(done.steps[-1].measured["bits"]) == len(facts.grids)
    assert compress.run(path, folder=tmp_path / "run", quiet=True).steps[-1].cached


def test_data_are_read_only_where_bits_are_chosen(tiny: Callable[..., Artifact]) -> None:
    assert rtn().data_uses() == frozenset()
    assert rtn(average_bits=3).data_uses() == {"calibration"}
    facts = tree.facts(tiny("llama").model, "causal-lm")
    assert rtn(average_bits=3).estimate(facts).seconds > rtn().estimate(facts).seconds


@pytest.mark.parametrize("choose", ["layer", "block"])
def test_candidates_are_what_a_choice_is_made_of(choose: str, tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = tiny("llama")
    plugin = rtn(choices=(4, 2), choose=choose, layers={"v_proj": 8}, symmetric=False)
    found = plugin.candidates(artifact, context_of(tmp_path))
    layers = {c.layer for c in found}
    values = {n for n in tree.block_linears(artifact.model) if "v_proj" in n}
    blocks = set(tree.blocks(artifact.model))
    assert layers == (blocks | values if choose == "block" else set(tree.block_linears(artifact.model)))
    for layer in layers:
        own = [c for c in found if c.layer == layer]
        assert [dict(c.choice) for c in own] == [
            {},
            *([{"bits": 8}] if layer in values else [{"bits": 2}, {"bits": 4}]),
        ]
        assert own[0].score == 0
        assert all(c.score > 0 for c in own[1:])
        assert own[0].costs["bytes"] > own[-1].costs["bytes"] >= own[1].costs["bytes"]
    name = "model.layers.1.mlp.up_proj"
    if choose == "layer":  # 64 rows of 32 inputs: 4 groups, each a scale of 4 bytes and a zero
        two = next(c for c in found if c.layer == name and c.choice == {"bits": 2})
        assert two.costs["bytes"] == _quant.size((64, 32), GridFact(bits=2, group_size=8, zero=True))
        assert two.costs["bytes"] > 64 * (32 * 2 // 8 + 4 * 4)


def test_other_passes_have_no_candidates(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    found = registry.load("passes", "smoothquant", Pass)
    assert list(found(found.Settings()).candidates(tiny("llama"), context_of(tmp_path))) == []


# Parts of blocks, zeros, and inputs of integers.


def oracle(artifact: Artifact, changes: dict[str, Tensor], rows: Examples, reads: Any = None) -> float:
    """Return the distance of a full forward with other weights, which are put back, and other inputs."""
    given, linears = outputs(artifact, rows), tree.block_linears(artifact.model)
    old = {n: linears[n].weight.data for n in changes}
    hooks = [linears[n].register_forward_pre_hook(lambda _, args: reads(args[0])) for n in changes if reads]
    for name, weight in changes.items():
        linears[name].weight.data = weight
    found = distance(artifact.task, given, outputs(artifact, rows))
    for name, weight in old.items():
        linears[name].weight.data = weight
    for hook in hooks:
        hook.remove()
    return found


def rounded(artifact: Artifact, names: Iterable[str], fact: GridFact) -> dict[str, Tensor]:
    weights = {n: tree.block_linears(artifact.model)[n].weight.data for n in names}
    return {n: _quant.grid(w, _quant.span(w, fact), fact).dequantized() for n, w in weights.items()}


def part_of(artifact: Artifact, block: str, part: str) -> set[str]:
    """Return the linears of a part, by where the names of their modules stand."""
    inside = {n for n in tree.block_linears(artifact.model) if n.startswith(f"{block}.")}
    attention = {n for n in inside if ".attention." in n or "attn" in n}
    return attention if part == "attention" else inside - attention


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bert"])
def test_a_part_gets_one_choice(kind: str, tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = tiny(kind)
    found = rtn(bits=4, choose="part").candidates(artifact, context_of(tmp_path))
    keys = [f"{block}:{part}" for block in tree.blocks(artifact.model) for part in ("attention", "ffn")]
    assert [(c.layer, dict(c.choice)) for c in found] == [(k, c) for k in keys for c in ({}, {"bits": 4})]
    shapes, fact = tree.facts(artifact.model, artifact.task).shapes, GridFact(bits=4, group_size=8)
    for was, now in zip(found[::2], found[1::2], strict=True):
        names = part_of(artifact, *was.layer.split(":"))
        expected = oracle(artifact, rounded(artifact, names, fact), Rows().examples(None))
        assert (was.score, now.score) == (0, pytest.approx(expected, rel=1e-3))
        assert was.costs["bytes"] == sum(4 * math.prod(shapes[n]) for n in names)
        assert now.costs["bytes"] == sum(_quant.size(shapes[n], fact) for n in names)


def test_bits_that_layers_fix_are_a_choice_of_their_own(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    plugin = rtn(bits=4, choose="part", layers={"layers.0.mlp.down_proj": 8, "layers.1.mlp": "float"})
    found = {c.layer: c for c in plugin.candidates(tiny("llama"), context_of(tmp_path)) if c.choice}
    parts = ["model.layers.0:attention", "model.layers.0:ffn", "model.layers.1:attention"]
    assert sorted(found) == sorted([*parts, "model.layers.0.mlp.down_proj"])
    assert found["model.layers.0.mlp.down_proj"].choice == {"bits": 8}
    both = rtn(average_bits=3, choose="part", choices=(2, 4))
    after = both.run(tiny("llama"), context_of(tmp_path))
    for key in ("attn", "mlp"):
        for block in tree.blocks(after.model):
            assert len({g.bits for n, g in after.grids.items() if n.startswith(f"{block}.") and key in n}) == 1


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_integer_inputs_are_judged_too(kind: str, tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact, rows, fact = tiny(kind), Rows((8,) * 6), GridFact(bits=8, group_size=None, activation="dynamic")
    lively(artifact.model)
    plugin = rtn(bits=8, group_size=-1, activation="dynamic", choose="part")
    for each in plugin.candidates(artifact, context_of(tmp_path, data={"calibration": rows})):
        if each.choice:
            weights = rounded(artifact, part_of(artifact, *each.layer.split(":")), fact)
            expected = oracle(artifact, weights, rows.examples(None), _quant.integers)
            assert each.score == pytest.approx(expected, rel=1e-2)
            assert each.score != pytest.approx(oracle(artifact, weights, rows.examples(None)), rel=0.05)


def test_inputs_are_rounded_as_onnx_defines_it() -> None:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "step", "zero"])
    kinds = {"codes": TensorProto.UINT8, "step": TensorProto.FLOAT, "zero": TensorProto.UINT8}
    told = [helper.make_tensor_value_info(n, kind, None) for n, kind in {"x": TensorProto.FLOAT, **kinds}.items()]
    graph = helper.make_graph([node], "g", told[:1], told[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.01, 40]).view(3, 1, 1)
    x[1] = x[1].abs() + 3
    for each, found in zip(x, _quant.integers(x), strict=True):
        codes, step, zero = session.run(None, {"x": each.numpy()})
        torch.testing.assert_close(found, torch.from_numpy((codes.astype("float32") - zero) * step))
    assert _quant.integers(torch.zeros(2, 3)).equal(torch.zeros(2, 3))


@pytest.mark.parametrize(("use", "kind"), [*(("magnitude", k) for k in ("llama", "gpt2", "bert")), ("wanda", "llama")])
def test_zeros_of_a_part(use: str, kind: str, tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact, context = tiny(kind), context_of(tmp_path)
    found = list(pruner(use, pattern="2:4", choose="part").candidates(artifact, context))
    assert [dict(c.choice) for c in found] == [{}, {"pattern": "2:4"}] * 4
    linears = tree.block_linears(artifact.model)
    squares = {n: torch.ones(m.in_features) for n, m in linears.items()}
    if use == "wanda":
        squares = _densities.squares(artifact, list(linears), LayerwiseSettings(), context)
    for was, now in zip(found[::2], found[1::2], strict=True):
        assert was.layer == now.layer
        weights = {n: linears[n].weight.data for n in part_of(artifact, *now.layer.split(":"))}
        masks = {n: _masks.keep_n_of_m(w.abs() * squares[n].sqrt(), 2, 4) for n, w in weights.items()}
        expected = oracle(artifact, {n: w * masks[n] for n, w in weights.items()}, Rows().examples(None))
        assert (was.score, now.score) == (0, pytest.approx(expected, rel=1e-3))
        assert now.costs["bytes"] == was.costs["bytes"] / 2 + was.costs["bytes"] / 32


@pytest.mark.parametrize("use", ["magnitude", "wanda", "ria", "sparsegpt"])
def test_candidates_of_zeros(use: str, tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = tiny("llama")
    before = {n: t.clone() for n, t in artifact.model.state_dict().items()}
    found = pruner(use, pattern="1:4", include=("mlp",)).candidates(artifact, context_of(tmp_path))
    assert {c.layer for c in found} == {n for n in tree.block_linears(artifact.model) if "mlp" in n}
    few = {c.layer: c.score for c in found if c.choice}
    many = pruner(use, pattern="3:4", choose="block").candidates(artifact, context_of(tmp_path))
    assert {c.layer for c in many} == set(tree.blocks(artifact.model))
    free = pruner(use, sparsity=0.25, include=("mlp",)).candidates(artifact, context_of(tmp_path))
    assert all(0 < c.score < few[c.layer] for c in free if c.choice)
    assert {c.choice["sparsity"] for c in free if c.choice} == {0.25}
    assert all(torch.equal(t, before[n]) for n, t in artifact.model.state_dict().items())
    assert not artifact.masks


def test_an_earlier_mask_stays_in_the_candidates(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"

    def score(old: Tensor | None) -> float:
        artifact = tiny("llama")
        if old is not None:
            artifact.model.get_parameter(f"{name}.weight").data[~old] = 0
            artifact = artifact.after(masks={name: old})
        folder = tmp_path / str(old is None)
        folder.mkdir()
        _, found = pruner("magnitude", pattern="2:4", include=(name,)).candidates(artifact, context_of(folder))
        return float(found.score)

    first = _masks.keep_n_of_m(tiny("llama").tensor(f"{name}.weight").abs(), 2, 4)
    assert score(first) == pytest.approx(0, abs=1e-12)
    assert score(None) > 1e-6


@pytest.mark.parametrize(
    ("use", "given", "key", "what"),
    [
        ("rtn", {"bits": "plan", "group_size": None}, "bits", "leaves nothing to choose"),
        ("magnitude", {"pattern": "plan"}, "pattern", "leaves nothing to choose"),
        ("magnitude", {"scope": "global"}, "scope", "no linear can be judged by itself"),
        ("wanda", {"pattern": "2:3"}, "pattern", "does not divide"),
    ],
)
def test_candidates_that_cannot_be(
    use: str, given: dict[str, Any], key: str, what: str, tiny: Callable[..., Artifact], tmp_path: Path
) -> None:
    plan = {"model.layers.0.mlp.up_proj": Planned(grid=GridFact(bits=4, group_size=8), pattern="2:4")}
    with pytest.raises(BadSettings, match=what) as caught:
        pruner(use, **given).candidates(tiny("llama").after(plan=plan), context_of(tmp_path))
    assert caught.value.key == key


def test_what_only_candidates_need_is_no_setting_of_a_pipeline(tiny: Callable[..., Artifact]) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    for use, key, value in itertools.product(("magnitude", "wanda"), ("choose", "choose_windows"), ("part", 3)):
        if isinstance(value, int) == (key == "choose_windows"):
            with pytest.raises(BadSettings, match="only where a pass chooses among candidates") as caught:
                pruner(use, **{key: value}).plan(facts)
            assert caught.value.key == key


def test_open_bits_in_facts() -> None:
    two, four = GridFact(bits=2, group_size=8), GridFact(bits=4, group_size=8)
    either = dataclasses.replace(four, others=(two,))
    assert either.possible == (four, two)
    assert (either.told, four.told) == ("2 or 4 bits", "4 bits")
    assert GridFact(bits=8, group_size=None, others=(two, four)).told == "2, 4 or 8 bits"


def test_on_a_trained_model_more_bits_cost_less(tmp_path: Path) -> None:
    from compress import loading

    artifact = Artifact.of(loading.locate("demo", None), "causal-lm")
    settings_ = DataSettings(source="python-docs", windows=2, length=48)
    source = Source(settings_, "calibration", "causal-lm", 0)
    plugin = rtn(group_size=64, choose_windows=2, include=("layers.2.self_attn.k_proj", "layers.5.mlp"))
    found = plugin.candidates(artifact, context_of(tmp_path, data={"calibration": source}))
    for layer in {c.layer for c in found}:
        scores = [c.score for c in found if c.layer == layer]
        assert scores[0] == 0 < scores[4] < scores[3] < scores[2] < scores[1], (layer, scores)
