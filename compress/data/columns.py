"""What rows mean: which columns hold text, sentences with labels, questions with answers, or choices."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compress import registry
from compress.data.places import Row
from compress.data.settings import DataSettings
from compress.errors import BadData
from compress.facts import Task

Kind = Literal["text", "sentences", "answers", "choices"]

_HALF = re.compile("[\ud800-\udfff]")  # JSON can escape one, UTF-8 cannot hold it
_USUAL: dict[Kind, tuple[dict[str, str], ...]] = {
    "text": ({"text": "text"}, {"text": "sentence"}, {"text": "content"}),
    "sentences": (
        {"text": "sentence1", "text_pair": "sentence2"},
        {"text": "question1", "text_pair": "question2"},
        {"text": "premise", "text_pair": "hypothesis"},
        {"text": "question", "text_pair": "sentence"},
        {"text": "text"},
        {"text": "sentence"},
    ),
    "answers": (
        {"prompt": "instruction", "input": "input", "response": "output"},
        {"prompt": "instruction", "response": "output"},
        {"prompt": "instruction", "response": "response"},
        {"prompt": "prompt", "response": "response"},
        {"prompt": "prompt", "response": "completion"},
        {"prompt": "question", "response": "answer"},
    ),
    "choices": (
        {"prompt": "prompt", "choices": "choices", "gold": "gold"},
        {"prompt": "question", "choices": "choices", "gold": "answerKey"},
        {"prompt": "question", "choices": "choices", "gold": "answer"},
        {"prompt": "ctx", "choices": "endings", "gold": "label"},
    ),
}
_MARKS: dict[str, tuple[Kind, ...]] = {  # a setting that is given tells what kind of data it is of
    "choices": ("choices",),
    "gold": ("choices",),
    "response": ("answers",),
    "input": ("answers",),
    "text": ("text",),
    "prompt": ("choices", "answers"),
}


@dataclass(frozen=True)
class Layout:
    """The kind of the rows, and the column of each part."""

    kind: Kind
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Sentences:
    """One or two sentences."""

    first: str
    second: str | None


@dataclass(frozen=True)
class Answer:
    """A prompt and the response to learn; `sections` = an instruction, to be set off by headings."""

    prompt: str
    response: str
    sections: bool


@dataclass(frozen=True)
class Question:
    """Multiple choice: score `" " + choice` after the prompt; `gold` is the right choice's place, from 0."""

    prompt: str
    choices: tuple[str, ...]
    gold: int


def layout(settings: DataSettings, task: Task, row: Row, only: Kind | None = None) -> Layout:
    """Return how rows like this one are laid out.

    Args:
        settings: columns that are named there must exist; the others are looked for by their usual names.
        task: a causal language model reads choices, answers or text, in this order; the others read sentences.
        row: the first row.
        only: the kind that is asked for.

    Raises:
        BadData: a column is missing.
    """
    where, columns = row
    kinds = (only,) if only else _kinds(settings, task)
    for kind in kinds:
        given = _given(settings, kind)
        for key, column in given.items():
            if column not in columns:
                raise BadData(f"{where}: no column {column!r}, which {key} names{registry.nearest(column, columns)}")
        for usual in _USUAL[kind]:
            found = {**usual, **given}
            if all(column in columns for column in found.values()):
                return Layout(kind, found)
    missing = next(c for c in {**_USUAL[kinds[-1]][0], **_given(settings, kinds[-1])}.values() if c not in columns)
    raise BadData(
        f"{where}: no column {missing!r}; its columns are {', '.join(columns) or 'none'}; name yours in [data]"
    )


def _kinds(settings: DataSettings, task: Task) -> tuple[Kind, ...]:
    if task != "causal-lm":
        return ("sentences",)
    marked = (kinds for key, kinds in _MARKS.items() if getattr(settings, key) is not None)
    return next(marked, ("choices", "answers", "text"))


def _given(settings: DataSettings, kind: Kind) -> dict[str, str]:
    keys = dict.fromkeys(key for usual in _USUAL[kind] for key in usual)
    return {key: getattr(settings, key) for key in keys if getattr(settings, key) is not None}


def text(row: Row, column: str) -> str:
    """Return a column's text.

    Raises:
        BadData: the row has no such column, or no text in it.
    """
    value = _value(row, column)
    if not isinstance(value, str):
        raise BadData(f"{row[0]}: column {column!r} must be text, got {value!r}")
    if not value.isascii() and _HALF.search(value):
        raise BadData(f"{row[0]}: column {column!r} holds half a character (a lone surrogate), which no text has")
    return value


def sentences(row: Row, columns: Mapping[str, str]) -> Sentences:
    """Return the sentence or the pair of a row."""
    pair = text(row, columns["text_pair"]) if "text_pair" in columns else None
    return Sentences(text(row, columns["text"]), pair)


def answer(row: Row, columns: Mapping[str, str]) -> Answer:
    """Return prompt and response of a row; an instruction's input follows it under a heading of its own."""
    prompt, response = text(row, columns["prompt"]), text(row, columns["response"])
    given = text(row, columns["input"]) if "input" in columns else ""
    sections = "input" in columns or columns["prompt"] == "instruction"
    return Answer(f"{prompt}\n\n### Input:\n{given}" if given.strip() else prompt, response, sections)


def question(row: Row, columns: Mapping[str, str]) -> Question:
    """Return the multiple-choice question of a row; choices are a list, or texts beside labels as ARC has them."""
    where, choices = row[0], _value(row, columns["choices"])
    names: Sequence[Any] = ()
    if isinstance(choices, Mapping) and {"text", "label"} <= choices.keys():
        choices, names = choices["text"], choices["label"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
        raise BadData(f"{where}: column {columns['choices']!r} must be a list of at least two texts, got {choices!r}")
    gold = _value(row, columns["gold"])
    place = list(names).index(gold) if gold in names else _place(gold)
    if place is None or not 0 <= place < len(choices):
        raise BadData(f"{where}: column {columns['gold']!r} must tell one of {len(choices)} choices, got {gold!r}")
    return Question(text(row, columns["prompt"]), tuple(choices), place)


def classes(rows: Iterable[Row], column: str, names: Sequence[str]) -> list[int]:
    """Return the class of each row: its number, or the place of its name among `names`, or among all names sorted.

    Raises:
        BadData: a label is missing, NaN, negative, unknown, or numbers and names are mixed.
    """
    found = [(row[0], _class(row, column)) for row in rows]
    kinds = {type(label) for _, label in found}
    if kinds == {int, str}:
        where, odd = next((w, x) for w, x in found if type(x) is not type(found[0][1]))
        raise BadData(f"{where}: label {odd!r} among labels such as {found[0][1]!r}; all must be numbers or all names")
    known = list(names) if names else sorted({str(label) for _, label in found}) if kinds == {str} else []
    ids = []
    for where, label in found:
        if isinstance(label, str) and label not in known:
            raise BadData(f"{where}: label {label!r} is none of the classes{registry.nearest(label, known)}")
        place = known.index(label) if isinstance(label, str) else label
        if place < 0 or (known and place >= len(known)):
            limit = f"to {len(known) - 1}" if known else "up"
            hint = "; a hidden test split has -1, take another split" if place == -1 else ""
            raise BadData(f"{where}: label {place} is out of range; classes count from 0 {limit}{hint}")
        ids.append(place)
    return ids


def numbers(rows: Iterable[Row], column: str) -> list[float]:
    """Return the number of each row.

    Raises:
        BadData: it is missing, no number, infinite or NaN.
    """
    found = []
    for row in rows:
        value = _value(row, column)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise BadData(f"{row[0]}: label must be a number, got {value!r}") from None
        if not math.isfinite(number):
            raise BadData(f"{row[0]}: label is {number}; give a finite number or leave the row out")
        found.append(number)
    return found


def _class(row: Row, column: str) -> int | str:
    value = _value(row, column)
    if isinstance(value, str) and value.strip():
        return int(value) if value.strip().removeprefix("-").isdecimal() else value  # CSV knows only text
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise BadData(f"{row[0]}: label must be a whole number or a name, got {value!r}")


def _value(row: Row, column: str) -> Any:
    where, values = row
    if column not in values:
        raise BadData(f"{where}: no column {column!r}{registry.nearest(column, values)}")
    return values[column]


def _place(gold: Any) -> int | None:
    if isinstance(gold, int):
        return gold
    if isinstance(gold, str) and gold.strip().isdecimal():
        return int(gold)
    return ord(gold.upper()) - ord("A") if isinstance(gold, str) and len(gold) == 1 else None
