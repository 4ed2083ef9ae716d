from __future__ import annotations

from typing import Any

import pytest

from compress.data import DataSettings, columns
from compress.data.columns import Answer, Kind, Question, Sentences
from compress.errors import BadData
from compress.facts import Task


def row(**values: Any) -> tuple[str, dict[str, Any]]:
    return "here", values


def labelled(labels: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"row {i}", {"label": label}) for i, label in enumerate(labels)]


GLUE = {
    "cola and sst2": (("sentence", "label", "idx"), {"text": "sentence"}),
    "mrpc, rte, stsb, wnli": (("sentence1", "sentence2", "label"), {"text": "sentence1", "text_pair": "sentence2"}),
    "qqp": (("question1", "question2", "label"), {"text": "question1", "text_pair": "question2"}),
    "qnli": (("question", "sentence", "label"), {"text": "question", "text_pair": "sentence"}),
    "mnli": (("premise", "hypothesis", "label"), {"text": "premise", "text_pair": "hypothesis"}),
}


@pytest.mark.parametrize("task", ["classification", "regression", "embedding"])
@pytest.mark.parametrize("name", GLUE)
def test_the_columns_of_glue(name: str, task: Task) -> None:
    given, wanted = GLUE[name]
    found = columns.layout(DataSettings(), task, row(**dict.fromkeys(given, "")))
    assert (found.kind, found.columns) == ("sentences", wanted)


@pytest.mark.parametrize(
    ("given", "settings", "kind", "wanted"),
    [
        ("text meta", {}, "text", "text"),
        ("text body", {"text": "body"}, "text", "body"),
        ("instruction input output text", {}, "answers", "instruction input output"),
        ("instruction input output text", {"text": "text"}, "text", "text"),
        ("prompt response", {}, "answers", "prompt response"),
        ("question answer", {}, "answers", "question answer"),
        ("q a", {"prompt": "q", "response": "a"}, "answers", "q a"),
        ("instruction output context", {"input": "context"}, "answers", "instruction context output"),
        ("prompt choices gold", {}, "choices", "prompt choices gold"),
        ("question choices answerKey", {}, "choices", "question choices answerKey"),
        ("question choices answer", {}, "choices", "question choices answer"),
        ("question choices answer", {"response": "answer"}, "answers", "question answer"),
        ("stem options gold", {"prompt": "stem", "choices": "options"}, "choices", "stem options gold"),
    ],
)
def test_the_columns_of_a_language_model(given: str, settings: dict[str, str], kind: Kind, wanted: str) -> None:
    found = columns.layout(DataSettings(**settings), "causal-lm", row(**dict.fromkeys(given.split(), "")))
    assert found.kind == kind
    assert sorted(found.columns.values()) == sorted(wanted.split())


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ("text", {"text": "txt"}, r"^here: no column 'txt', which text names; did you mean 'text'\?$"),
        ("body meta", {}, r"^here: no column 'text'; its columns are body, meta; name yours"),
        ("question choices", {"gold": "key"}, r"^here: no column 'key', which gold names; known: choices, question$"),
        ("prompt", {"choices": "prompt"}, r"^here: no column 'gold'; its columns are prompt;"),
    ],
)
def test_a_missing_column(given: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(BadData, match=message):
        columns.layout(DataSettings(**settings), "causal-lm", row(**dict.fromkeys(given.split(), "")))


def test_a_later_row_that_lacks_the_column() -> None:
    with pytest.raises(BadData, match=r"^here: no column 'text'; did you mean 'texts'\?$"):
        columns.text(row(texts="a"), "text")


@pytest.mark.parametrize(("value", "got"), [(None, "None"), (3, "3"), (["a"], r"\['a'\]")])
def test_text_that_is_none(value: Any, got: str) -> None:
    with pytest.raises(BadData, match=f"^here: column 'text' must be text, got {got}$"):
        columns.text(row(text=value), "text")


def test_half_a_character() -> None:
    assert columns.text(row(text="whole \U0001f600"), "text") == "whole \U0001f600"
    with pytest.raises(BadData, match=r"^here: column 'text' holds half a character"):
        columns.text(row(text="half \ud83d"), "text")


def test_sentences() -> None:
    assert columns.sentences(row(a="x", b="y"), {"text": "a"}) == Sentences("x", None)
    assert columns.sentences(row(a="x", b="y"), {"text": "a", "text_pair": "b"}) == Sentences("x", "y")


def test_answers() -> None:
    whole = {"prompt": "instruction", "input": "input", "response": "output"}
    given = row(instruction="Add.", input="1 2", output="3")
    assert columns.answer(given, whole) == Answer("Add.\n\n### Input:\n1 2", "3", True)
    assert columns.answer(row(instruction="Add.", input=" ", output="3"), whole) == Answer("Add.", "3", True)
    assert columns.answer(row(q="1?", a="2"), {"prompt": "q", "response": "a"}) == Answer("1?", "2", False)


@pytest.mark.parametrize(
    ("choices", "gold", "place"),
    [
        (["a", "b", "c"], 2, 2),
        (["a", "b", "c"], "1", 1),
        (["a", "b", "c"], "B", 1),
        ({"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "C", 2),
        ({"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "3", 2),
    ],
)
def test_questions(choices: Any, gold: Any, place: int) -> None:
    named = {"prompt": "p", "choices": "c", "gold": "g"}
    assert columns.question(row(p="?", c=choices, g=gold), named) == Question("?", ("a", "b", "c"), place)


@pytest.mark.parametrize(
    ("choices", "gold", "message"),
    [
        (["a", "b"], 2, r"column 'g' must tell one of 2 choices, got 2"),
        (["a", "b"], -1, r"column 'g' must tell one of 2 choices, got -1"),
        (["a", "b"], "C", r"got 'C'"),
        (["a", "b"], None, r"got None"),
        (["a"], 0, r"column 'c' must be a list of at least two texts, got \['a'\]"),
        ("ab", 0, r"column 'c' must be a list"),
    ],
)
def test_questions_without_an_answer(choices: Any, gold: Any, message: str) -> None:
    with pytest.raises(BadData, match=message):
        columns.question(row(p="?", c=choices, g=gold), {"prompt": "p", "choices": "c", "gold": "g"})


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        ([2, 0, 1], (), [2, 0, 1]),
        ([1.0, True, 0], (), [1, 1, 0]),
        (["no", "yes", "maybe"], (), [1, 2, 0]),
        (["no", "yes"], ("yes", "maybe", "no"), [2, 0]),
        (["10", "9", " 0"], (), [10, 9, 0]),  # as CSV has them; not in the order of their letters
        ([0, 2], ("a", "b", "c"), [0, 2]),
    ],
)
def test_classes(labels: list[Any], names: tuple[str, ...], ids: list[int]) -> None:
    assert columns.classes(labelled(labels), "label", names) == ids


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, -1], (), r"^row 1: label -1 is out of range; .* hidden test split"),
        ([0, 2], ("a", "b"), r"^row 1: label 2 is out of range; classes count from 0 to 1$"),
        (["yes", "yse"], ("no", "yes"), r"^row 1: label 'yse' is none of the classes; did you mean 'yes'\?$"),
        (["yes", 1], (), r"^row 1: label 1 among labels such as 'yes'"),
        ([0, float("nan")], (), r"^row 1: label must be a whole number or a name, got nan$"),
        ([0, 0.5], (), r"^row 1: label must be a whole number or a name, got 0\.5$"),
        (["a", None], (), r"^row 1: .* got None$"),
        (["a", " "], (), r"^row 1: .* got ' '$"),
    ],
)
def test_classes_that_are_none(labels: list[Any], names: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadData, match=message):
        columns.classes(labelled(labels), "label", names)


def test_numbers() -> None:
    assert columns.numbers(labelled([1, 2.5, "-3.5"]), "label") == [1.0, 2.5, -3.5]
    for value, got in ((float("nan"), "is nan"), ("inf", "is inf"), ("a", "a number, got 'a'"), (None, "got None")):
        with pytest.raises(BadData, match=f"^row 1: label .*{got}"):
            columns.numbers(labelled([1, value]), "label")
