"""The labelled corpus: labels as a body has them, every text once, nothing on both sides."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

import pytest

from compress.data import DataSettings, Source, corpora
from compress.data.returns import label_of
from compress.errors import BadData


@pytest.mark.parametrize(
    ("body", "label"),
    [
        ("return 1", "value"),
        ("return None", "nothing"),
        ("return", "nothing"),
        ("print(x)", "nothing"),
        ("yield", "value"),
        ("x = yield from y", "value"),
        ("if x:\n        return 0\n    raise KeyError", "value"),
        ("try:\n        close()\n    finally:\n        return x", "value"),
        ("match x:\n        case 1:\n            return x", "value"),
        ("def inner():\n        return 1\n    inner()", "nothing"),
        ("key = lambda: (yield)\n    sort(key)", "nothing"),
        ("class Inner:\n        def get(self): return 1", "nothing"),
        ("pass", None),
        ("...", None),
        ("'''What it does.'''", None),
        ("'''What it does.'''\n    raise TypeError", None),
        ("'''What it does.'''\n    self.close()", "nothing"),
    ],
)
def test_a_body_tells_what_a_function_gives(body: str, label: str | None) -> None:
    for kind in ("def", "async def") if "yield from" not in body else ("def",):
        (function,) = ast.parse(f"{kind} f(x):\n    {body}\n").body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert label_of(function) == label


SOURCES = {
    "train": (
        ("first", 'def get():\n    """Give it."""\n    return 1\n\ndef put():\n    """Take it."""\n    keep()\n'),
        ("broken", "print 'Python 2'\n"),
        ("second", 'class A:\n    """A class."""\n    def get(self):\n        """Give it."""\n        return 2\n'),
    ),
    "heldout": (
        ("third", 'def get():\n    """Give it."""\n    raise_()\n\nasync def ask():\n    """Ask."""\n    return 1\n'),
    ),
}


@pytest.fixture
def anew() -> Iterator[None]:
    """Let the corpus be made anew for the test, and for the next."""
    corpora._returns.cache_clear()
    yield
    corpora._returns.cache_clear()


@pytest.fixture
def few(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the standard library be a few lines, while the test lasts."""
    monkeypatch.setattr(corpora, "_source", SOURCES.__getitem__)


@pytest.mark.usefixtures("few")
def test_a_text_stands_once_and_on_the_training_side_first() -> None:
    train, heldout = (list(corpora.rows("python-returns", split)) for split in corpora.SPLITS)
    assert train == [
        ("first", {"text": "get\nGive it.", "label": "value"}),
        ("first", {"text": "put\nTake it.", "label": "nothing"}),
    ]
    assert heldout == [("third", {"text": "ask\nAsk.", "label": "value"})]


@pytest.mark.usefixtures("anew")
def test_the_library_gives_enough_of_both_classes_and_nothing_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every third module, which parse in two seconds or three."""
    third = corpora._modules()[1::3]
    monkeypatch.setattr(corpora, "_modules", lambda: third)
    monkeypatch.setattr(corpora, "_source", corpora._source.__wrapped__)
    train, heldout = (list(corpora.rows("python-returns", split)) for split in corpora.SPLITS)
    assert len(train) > 1000
    assert len(heldout) > 50
    for side in (train, heldout):
        counts = Counter(columns["label"] for _, columns in side)
        assert counts.keys() == {"nothing", "value"}
        assert min(counts.values()) > 0.2 * len(side)
    assert not {name.partition(".")[0] for name, _ in train} & {name.partition(".")[0] for name, _ in heldout}
    texts = [columns["text"] for _, columns in (*train, *heldout)]
    assert len(texts) == len(set(texts))


def test_what_is_trained_on_decides_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = corpora.digest.__wrapped__
    was = {split: digest("python-returns", split) for split in corpora.SPLITS}
    assert was["train"] == digest("python-source", "train")
    assert was["heldout"] != digest("python-source", "heldout")
    modules = corpora._modules()
    trained = next(name for name, _ in modules if not corpora.is_heldout(name))
    monkeypatch.setattr(corpora, "_modules", lambda: [m for m in modules if m[0] != trained])
    assert all(digest("python-returns", split) != was[split] for split in corpora.SPLITS)


@pytest.mark.usefixtures("few")
def test_a_classifier_reads_it(tokenizer: object) -> None:
    settings = DataSettings(source="python-returns", windows=0, length=16)
    found = Source(settings, "evaluation", "classification").examples(tokenizer)  # type: ignore[arg-type]
    assert found.labels is not None
    assert found.labels.tolist() == [0]  # the only class that is there
    train = Source(settings, "training", "classification").examples(tokenizer)  # type: ignore[arg-type]
    assert train.labels is not None
    assert sorted(train.labels.tolist()) == [0, 1]
    with pytest.raises(BadData, match="label must be a number"):
        Source(settings, "training", "regression").examples(tokenizer)  # type: ignore[arg-type]
