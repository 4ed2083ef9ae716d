"""Files are whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from compress import files
from compress.errors import NoSpace


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_write_replaces_the_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"ü": [1, 2]})
    assert path.read_text(encoding="utf-8") == '{\n  "ü": [\n    1,\n    2\n  ]\n}\n'
    files.write_atomic(path, b"x")
    assert path.read_bytes() == b"x"
    assert _names(tmp_path) == ["a.json"]


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(NoSpace, match=r"no space left on the disk; free some") as caught:
        files.write_atomic(path, "new")
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["a"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_what_the_kernel_says_of_a_full_disk_is_understood(tmp_path: Path) -> None:
    with pytest.raises(NoSpace), files.disk_errors(tmp_path):
        Path("/dev/full").write_text("x")


@pytest.mark.parametrize("error", [OSError(errno.EDQUOT, "quota"), RuntimeError("I/O error: No space left on device")])
def test_every_way_to_say_it(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(NoSpace), files.disk_errors(tmp_path):
        raise error


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(KeyboardInterrupt), files.disk_errors(tmp_path):
        raise KeyboardInterrupt


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "step"
    with files.atomic_folder(path) as new:
        assert new != path
        assert _names(new) == []
        (new / "a").write_text("1")
        assert not path.exists()
    assert _names(path) == ["a"]
    assert _names(path.parent) == ["step"]


def _half(folder: Path, error: BaseException) -> None:
    with files.atomic_folder(folder) as new:
        (new / "half").write_text("1")
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_a_folder_that_fails_leaves_nothing_and_the_old_one(tmp_path: Path, error: BaseException) -> None:
    old, path = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "kept").write_text("1")
    for where in (old, path):
        with pytest.raises(type(error)):
            _half(where, error)
    assert _names(tmp_path) == ["old"]
    assert _names(old) == ["kept"]


def test_a_full_disk_within_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NoSpace, match="step: no space left"):
        _half(tmp_path / "step", OSError(errno.ENOSPC, "No space left on device"))
    assert _names(tmp_path) == []


def test_what_a_kill_left_behind_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "step.partial").mkdir()
    (tmp_path / "step.partial" / "stale").write_text("1")
    with files.atomic_folder(tmp_path / "step") as new:
        (new / "fresh").write_text("1")
    assert _names(tmp_path / "step") == ["fresh"]
    assert _names(tmp_path) == ["step"]


def test_an_older_folder_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with files.atomic_folder(tmp_path / "step") as new:
            (new / name).write_text("1")
    assert _names(tmp_path / "step") == ["second"]


def test_digests_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(b"1")
    (tmp_path / "a").write_bytes(b"")
    assert files.digests(tmp_path) == {
        "a": hashlib.sha256(b"").hexdigest(),
        "b/c": hashlib.sha256(b"1").hexdigest(),
    }
    assert list(files.digests(tmp_path, without=frozenset({"a"}))) == ["b/c"]


def test_digest_of_values_ignores_the_order_of_keys() -> None:
    assert files.digest_of({"a": 1, "b": [1, 2]}) == files.digest_of({"b": [1, 2], "a": 1})
    assert files.digest_of({"a": [1, 2]}) != files.digest_of({"a": [2, 1]})
    assert files.digest_of({"a": 1}) != files.digest_of({"a": "1"})
