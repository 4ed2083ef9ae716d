from __future__ import annotations

import ast
import inspect
import json.decoder
from pathlib import Path

import pytest

from compress.data import corpora

TRAIN = {c: dict(corpora.documents(c, "train")) for c in corpora.NAMES}
HELDOUT = {c: dict(corpora.documents(c, "heldout")) for c in corpora.NAMES}


def test_the_sizes_are_what_they_are_said_to_be() -> None:
    docs, source = (sum(map(len, {**TRAIN[c], **HELDOUT[c]}.values())) for c in corpora.NAMES)
    assert 1.5e6 < docs < 4e6
    assert 8e6 < source < 20e6
    for corpus in corpora.NAMES:
        share = sum(map(len, HELDOUT[corpus].values())) / sum(map(len, TRAIN[corpus].values()))
        assert 0.03 < share < 0.15


def test_no_module_stands_on_both_sides_of_any_corpus() -> None:
    trained = {name.partition(".")[0] for names in TRAIN.values() for name in names}
    held = {name.partition(".")[0] for names in HELDOUT.values() for name in names}
    assert trained
    assert held
    assert not trained & held


@pytest.mark.parametrize("names", [("decimal", "_decimal", "_pydecimal"), ("json", "json.decoder"), ("io", "_pyio")])
def test_siblings_stay_together(names: tuple[str, ...]) -> None:
    assert len({corpora.is_heldout(name) for name in names}) == 1


@pytest.mark.parametrize("heldout", corpora.NAMES)
def test_long_lines_that_are_held_out_are_not_trained_on(heldout: str) -> None:
    """Also from one corpus to the other; what is left are idioms and a few copied lines."""
    seen = {line.strip() for documents in TRAIN.values() for text in documents.values() for line in text.splitlines()}
    lines = [line.strip() for text in HELDOUT[heldout].values() for line in text.splitlines()]
    long = [line for line in lines if len(line) >= 64 and len(set(line)) > 3]  # no rulers such as #######
    assert len(long) > 500
    assert sum(line in seen for line in long) / len(long) < 0.02


def test_a_topic_that_collects_others_is_on_neither_side() -> None:
    assert corpora.is_heldout("compound")
    for documents in (TRAIN["python-docs"], HELDOUT["python-docs"]):
        assert "compound" not in documents
        assert "while" in TRAIN["python-docs"]


def test_docstrings_are_those_that_python_sees() -> None:
    text = {**TRAIN["python-docs"], **HELDOUT["python-docs"]}["json.decoder"]
    assert (inspect.getdoc(json.decoder.JSONDecoder) or "?") in text
    assert "JSONDecoder\nSimple JSON" in text


def test_docstrings_are_found_wherever_a_statement_can_stand() -> None:
    source = '''"""Module."""
if x:
    def a():
        """A."""
else:
    try:
        pass
    except E:
        class B:
            """B."""
            async def c(self):
                """C."""
    finally:
        match y:
            case 1:
                def d():
                    """D."""
'''
    walked = [
        ast.get_docstring(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [d.rpartition("\n")[2] for d in corpora._docstrings(source)] == walked


def test_the_digest_follows_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "some.py"
    monkeypatch.setattr(corpora, "_modules", lambda: (("some", file),))
    split: corpora.Split = "heldout" if corpora.is_heldout("some") else "train"
    file.write_text("a = 1\n")
    first = corpora.digest.__wrapped__("python-source", split)
    assert corpora.digest.__wrapped__("python-source", split) == first
    file.write_text("a = 2\n")
    assert corpora.digest.__wrapped__("python-source", split) != first
    assert corpora.digest.__wrapped__("python-docs", split) != first


def test_an_unknown_corpus() -> None:
    with pytest.raises(KeyError):
        list(corpora.documents("perl-docs", "train"))
