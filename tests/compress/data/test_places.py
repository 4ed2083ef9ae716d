from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from compress.data import DataSettings, Role, corpora
from compress.data.places import Files, HubSet, Row, locate
from compress.errors import BadData

ROWS = [{"text": "one, two", "label": 1}, {"text": 'a "line"\nand more', "label": 0}]


def rows(path: Path, **settings: Any) -> list[Row]:
    return list(locate(DataSettings(source=str(path), **settings), "training").rows())


def jsonl(path: Path, content: list[Any] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


# -- what is read ------------------------------------------------------------------------------------------------


def test_a_txt_file_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\n\ntwo ö\n", encoding="utf-8")
    assert rows(tmp_path / "a.txt") == [(str(tmp_path / "a.txt"), {"text": "one\n\ntwo ö\n"})]


def test_jsonl_rows_know_their_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl")
    path.write_text(path.read_text().replace("\n", "\n\n"))
    assert rows(path) == [(f"{path}:1", ROWS[0]), (f"{path}:3", ROWS[1])]


def test_csv_holds_text_only(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"one, two",1\n"a ""line""\nand more",007\n')
    assert [r for _, r in rows(path)] == [{**ROWS[0], "label": "1"}, {**ROWS[1], "label": "007"}]
    assert rows(path)[1][0] == f"{path}:4"
    path.write_text("text\n" + "x" * 200_000 + "\n")  # longer than a field may be by default
    assert len(rows(path)[0][1]["text"]) == 200_000


def test_parquet(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [r for _, r in rows(tmp_path / "a.parquet")] == ROWS


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_gz(tmp_path: Path, name: str) -> None:
    content = '{"text": "one"}\n'
    (tmp_path / name).write_text(content)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    assert [r for _, r in rows(tmp_path / f"{name}.gz")] == [r for _, r in rows(tmp_path / name)]


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [{"text": "1"}])
    jsonl(tmp_path / "dev-2.jsonl", [{"text": "2"}])
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "more.txt").write_text("3")
    (tmp_path / "readme.md").write_text("no data")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "train.txt").write_text("no data")
    assert [r["text"] for _, r in rows(tmp_path)] == ["2", "3", "1"]
    assert [r["text"] for _, r in rows(tmp_path, split="train")] == ["3", "1"]
    assert [r["text"] for _, r in rows(tmp_path, split="dev")] == ["2"]


@pytest.mark.parametrize(("role", "split"), [("training", "train"), ("evaluation", "heldout")])
def test_a_corpus_is_split_by_use(role: Role, split: corpora.Split) -> None:
    found = locate(DataSettings(), role).rows()
    assert [r["text"] for _, r in found] == [text for _, text in corpora.documents("python-docs", split)]
    other = locate(DataSettings(split="heldout"), "training").digest()
    assert (locate(DataSettings(), role).digest() == other) == (split == "heldout")


def test_what_a_source_is_taken_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(locate(DataSettings(source="glue/sst2"), "training"), HubSet)
    (tmp_path / "glue").mkdir()
    jsonl(tmp_path / "glue" / "sst2")  # a file without an ending
    with pytest.raises(BadData, match="unknown file ending"):
        locate(DataSettings(source="glue/sst2"), "training")
    (tmp_path / "glue" / "sst2").rename(tmp_path / "glue" / "sst2.jsonl")
    assert isinstance(locate(DataSettings(source="glue"), "training"), Files)


# -- digests -----------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        return locate(DataSettings(source=str(path)), "training").digest()

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        jsonl(tmp_path / folder / "rows.jsonl")
    first = digest(tmp_path / "a")
    assert digest(tmp_path / "b") == first == digest(tmp_path / "a" / "rows.jsonl")
    jsonl(tmp_path / "b" / "rows.jsonl", ROWS[::-1])
    assert digest(tmp_path / "b") != first
    jsonl(tmp_path / "a" / "more.jsonl")
    assert digest(tmp_path / "a") != first


# -- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "/none/a.txt"}, r"^/none/a\.txt: no such file or folder$"),
        ({"source": "data/a.jsonl"}, r"^data/a\.jsonl: no such file or folder$"),
        ({"source": "../a/b"}, r"^\.\./a/b: no such file or folder$"),
        ({"source": "python-doc"}, r"'python-doc': no such file or folder, no built-in .*mean 'python-docs'\?$"),
        ({"split": "held"}, r"^python-docs: has no split 'held'; did you mean 'heldout'\?$"),
        ({"name": "x"}, r"^python-docs: name goes with a hub data set only; leave it out$"),
        ({"source": "{}/a.json"}, r"/a\.json: unknown file ending '\.json'; can be \.txt, \.jsonl, \.csv, \.parquet"),
        ({"source": "{}/a.txt", "split": "train"}, r"/a\.txt: a file has no split, got 'train'"),
        ({"source": "{}/a.txt", "revision": "v"}, r"/a\.txt: revision goes with a hub data set only"),
        ({"source": "{}", "split": "b"}, r": no file or folder in it is named 'b'; known: a$"),
        ({"source": "{}/empty"}, r"/empty: no file in it that ends in \.txt, "),
    ],
)
def test_what_cannot_be_there(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    given = {key: value.format(tmp_path) for key, value in settings.items()}
    with pytest.raises(BadData, match=message) as caught:
        locate(DataSettings(**given), "training")
    assert "\n" not in str(caught.value)


def _cut_gz(path: Path) -> None:
    path.write_bytes(gzip.compress(b"a long text, " * 99)[:-12])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.jsonl", lambda p: p.write_text('{"text": "a"}\n{"text": a}\n'), r"a\.jsonl:2: not JSON \(Expecting value"),
        (
            "a.jsonl",
            lambda p: p.write_text('{"text": "a"}\n\n["a"]\n'),
            r"a\.jsonl:3: must be an object of .* got list",
        ),
        ("a.csv", lambda p: p.write_text("text,label\na,1\nb\n"), r"a\.csv:3: another number of fields than the 2 col"),
        ("a.csv", lambda p: p.write_text("text,label\na,1,2\n"), r"a\.csv:2: another number of fields than the 2 col"),
        ("a.csv", lambda p: p.write_text('text\n"a"b\n'), r"a\.csv:2: not CSV \("),
        ("a.parquet", lambda p: p.write_bytes(b"PAR1 no"), r"a\.parquet: not parquet \("),
        ("a.txt", lambda p: p.write_bytes(b"caf\xe9 au lait"), r"a\.txt: not UTF-8 text \("),
        ("a.txt.gz", lambda p: p.write_bytes(b"no gzip"), r"a\.txt\.gz: cannot be read \("),
        ("a.txt.gz", _cut_gz, r"a\.txt\.gz: cannot be read \("),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(BadData, match=message) as caught:
        rows(tmp_path / name)
    assert "\n" not in str(caught.value)
