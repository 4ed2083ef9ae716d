"""Whatever a path is: a model folder, an artifact, a real engine; multiple choice through the same door."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import registry, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Exporter, Target
from compress.data import DataSettings, Question, Source
from compress.engines import Engines
from compress.errors import BadData, BadModel
from compress.evaluate import evaluate, evaluate_choices, evaluate_path

Tiny = Callable[..., Artifact]

TEXT = " ".join(f"the quick brown fox number {i} jumps over the lazy dog; häßlich ist {i * i}." for i in range(60))
QUESTIONS = (
    Question("the quick brown", ("fox", "lazy dog jumps over", "model"), 0),
    Question("a model is", ("pruned", "fox"), 0),
    Question("jumps over the", ("lazy", "dog", "brown", "retrained and pruned"), 3),
)


@pytest.fixture(scope="module")
def places(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder, an artifact whose linears lost half their weights, that artifact's engine, and a text."""
    root = tmp_path_factory.mktemp("evaluate")
    found = {n: root / n for n in ("model", "artifact", "engine", "other")}
    for path in found.values():
        path.mkdir()
    parent = tiny("opt")  # quick to export
    linears = tree.block_linears(parent.model)
    with torch.no_grad():
        for weight in (tree.head(parent.model)[1].weight, *(m.weight for m in linears.values())):  # type: ignore[index]
            weight *= 10  # a fresh model says next to nothing; this one has opinions
    parent.model.save_pretrained(found["model"])
    parent.tokenizer.save_pretrained(found["model"])
    tiny("bert").save(found["other"])
    masks = {n: torch.arange(m.in_features).expand_as(m.weight) % 2 == 0 for n, m in linears.items()}
    with torch.no_grad():
        for name, mask in masks.items():
            linears[name].weight *= mask
    child = parent.after(masks=masks)
    child.save(found["artifact"])
    exporter = registry.load("exporters", "onnx", Exporter)
    made = exporter(exporter.Settings())
    scratch = root / "scratch"
    scratch.mkdir()
    Engines().build(child, made, Target(), found["engine"], Context(folder=scratch))
    (root / "text.txt").write_text(TEXT, encoding="utf-8")
    return {**found, "text": root / "text.txt"}


def settings(places: dict[str, Path], **more: Any) -> DataSettings:
    return DataSettings(source=str(places["text"]), length=32, **{"windows": 0, **more})


def test_each_says_what_it_is_and_an_engine_equals_its_model(places: dict[str, Path]) -> None:
    data = settings(places)
    found = {n: evaluate_path(places[n], data, parent=places["model"]) for n in ("model", "artifact", "engine")}
    assert {n: e.kind for n, e in found.items()} == {"model": "model", "artifact": "artifact", "engine": "engine"}
    values = {n: e["perplexity"].value for n, e in found.items()}
    assert values["engine"] == pytest.approx(values["artifact"], rel=1e-4)  # the promise is 1e-3
    assert abs(values["artifact"] / values["model"] - 1) > 1e-2  # so that the line above means something
    assert found["model"]["kl"].value == 0
    assert found["engine"]["kl"].value == pytest.approx(found["artifact"]["kl"].value, rel=1e-3)
    assert found["artifact"]["kl"].value > 1e-2
    assert all(e.parent is not None and e.parent.kind == "model" for e in found.values())


def test_an_engine_can_be_the_parent(places: dict[str, Path]) -> None:
    found = evaluate_path(places["artifact"], settings(places), parent=places["engine"])
    assert found.parent is not None
    assert found.parent.kind == "engine"
    assert found["kl"].value == pytest.approx(0, abs=1e-6)


def test_the_usual_protocol_by_hand(places: dict[str, Path]) -> None:
    """One text, tokenised once, cut into whole windows; perplexity is exp of the mean over windows."""
    artifact = Artifact.load(places["artifact"])
    ids = artifact.tokenizer(TEXT)["input_ids"]
    windows = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    with torch.no_grad():
        losses = [float(artifact.model(row[None], labels=row[None]).loss) for row in windows]
    found = evaluate_path(places["artifact"], settings(places))
    assert len(found.samples["loss"]) == len(losses) > 40
    assert found["perplexity"].value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert found.samples["bytes"][0] == len(str(artifact.tokenizer.decode(windows[0, 1:])).encode())


def test_without_settings_the_held_out_documentation_in_windows_that_fit(places: dict[str, Path]) -> None:
    found = evaluate_path(places["engine"])
    assert len(found.samples["tokens"]) == 256
    assert set(found.samples["tokens"]) == {127}  # the tiny model has 128 positions


def test_a_parent_for_another_task_is_refused(places: dict[str, Path]) -> None:
    with pytest.raises(BadModel, match=r"is made for causal-lm, its parent .* for classification"):
        evaluate_path(places["artifact"], settings(places), parent=places["other"])


def test_a_parent_with_another_tokenizer_is_refused(places: dict[str, Path], tmp_path: Path, tiny: Tiny) -> None:
    tiny("opt").save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "compress.json").unlink()
    with pytest.raises(BadModel, match="different tokenizers"):
        evaluate_path(places["model"], settings(places), parent=tmp_path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"no config\.json"):
        evaluate_path(tmp_path)
    with pytest.raises(BadModel, match="no such folder"):
        evaluate_path(tmp_path / "nothing")


# -- multiple choice ------------------------------------------------------------------------------------------------


def by_hand(artifact: Artifact, question: Question) -> tuple[int, int]:
    sums = []
    for choice in question.choices:
        prompt = [0, *artifact.tokenizer(question.prompt)["input_ids"]]
        ids = [0, *artifact.tokenizer(f"{question.prompt} {choice}")["input_ids"]]
        with torch.no_grad():
            chances = artifact.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        sums.append(sum(float(chances[i - 1, ids[i]]) for i in range(len(prompt), len(ids))))
    each = [s / len(c) for s, c in zip(sums, question.choices, strict=True)]
    return sums.index(max(sums)), each.index(max(each))


def test_choices_by_hand(tiny: Tiny) -> None:
    artifact = tiny("llama")
    found = evaluate_choices(artifact, QUESTIONS, artifact.tokenizer, parent=tiny("llama", seed=4), batch=4)
    picked = [by_hand(artifact, q) for q in QUESTIONS]
    assert list(zip(found.samples["picked"], found.samples["picked_normalised"], strict=True)) == picked
    assert found.samples["gold"] == [0, 0, 3]
    right = [sum(p[i] == q.gold for p, q in zip(picked, QUESTIONS, strict=True)) / 3 for i in (0, 1)]
    assert [m.value for m in found.metrics] == pytest.approx(right)
    assert [m.name for m in found.metrics] == ["choice_accuracy", "choice_accuracy_normalised"]
    assert [m.name for m in found.deltas] == ["choice_accuracy", "choice_accuracy_normalised"]


def test_long_prompts_lose_their_beginning_and_say_so(tiny: Tiny) -> None:
    artifact = tiny("llama")
    long = Question("the lazy dog " * 60 + "jumps over the", ("fox", "dog"), 1)
    report = QuietReport()
    evaluate_choices(artifact, (long, *QUESTIONS), artifact.tokenizer, report=report)
    assert report.notes == ["2 of 11 choices are longer than 128 tokens; their prompts lose the beginning"]
    with pytest.raises(BadData, match=r"question 0 .*: a choice of \d+ tokens, and the model takes at most 128"):
        evaluate_choices(artifact, [Question("the", ("xyz " * 200, "dog"), 1)], artifact.tokenizer)


def test_a_file_of_questions_is_seen_as_one(places: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    rows = [{"prompt": q.prompt, "choices": list(q.choices), "gold": q.gold} for q in QUESTIONS]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = evaluate_path(places["engine"], DataSettings(source=str(path)), parent=places["model"])
    artifact = Artifact.load(places["artifact"])
    assert found.kind == "engine"
    assert found.samples["picked"] == [by_hand(artifact, q)[0] for q in QUESTIONS]


def test_labelled_sentences_reach_the_metrics(places: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "sentences.csv"
    path.write_text("sentence,label\n" + "\n".join(f"{'fox ' * (i % 5 + 1)},{i % 2}" for i in range(10)))
    found = evaluate_path(places["other"], DataSettings(source=str(path)))
    assert (found.kind, len(found.samples["label"])) == ("artifact", 10)
    hits = [p == y for p, y in zip(found.samples["predicted"], found.samples["label"], strict=True)]
    assert found["accuracy"].value == sum(hits) / 10


def test_instructions_count_the_answer_only(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "instruct.jsonl"
    rows = [{"instruction": f"jump {i}", "output": "the lazy dog " * (i + 1)} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    artifact = tiny("llama")
    examples = Source(DataSettings(source=str(path), length=128), "evaluation", "causal-lm").examples(
        artifact.tokenizer
    )
    found = evaluate(artifact, examples, "causal-lm")
    tokens, loss = found.samples["tokens"], found.samples["loss"]
    assert tokens == sorted(tokens)
    assert tokens[0] < tokens[-1]
    assert found["nats_per_token"].value == pytest.approx(
        sum(a * b for a, b in zip(tokens, loss, strict=True)) / sum(tokens)
    )
