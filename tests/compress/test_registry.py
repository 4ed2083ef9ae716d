"""Plug-ins are found by name, ours and third parties', and never skipped in silence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compress import registry
from compress.contracts import Exporter, Pass
from compress.errors import BadSettings, CompressError

GOOD = '''"""Halve every weight: the card of a third party."""
from compress.contracts import Pass

class Halve(Pass):
    """Halve."""
    def run(self, artifact, context):
        return artifact
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path` as `pip install` would leave it; `_install` fills it."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("thirdparty")]:
        del sys.modules[name]


def _install(site: Path, module: str, code: str, entry: str, room: str = "passes") -> None:
    (site / f"{module}.py").write_text(code)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[compress.{room}]\n{entry}\n")


def test_ours_are_found_without_tools() -> None:
    names = registry.names("passes")
    assert "magnitude" in names
    assert not [n for n in names if n.startswith("_")]
    assert names == sorted(names)


def test_load_gives_the_class_and_card_its_docstring() -> None:
    found = registry.load("passes", "magnitude", Pass)
    assert found.__name__ == "Magnitude"
    assert registry.card("passes", "magnitude").startswith("Magnitude pruning:")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(BadSettings, match="unknown passes plug-in 'magnitud'; did you mean 'magnitude'") as caught:
        registry.load("passes", "magnitud", Pass)
    assert caught.value.key == "use"
    with pytest.raises(BadSettings, match=r"known: .*magnitude"):
        registry.load("passes", "zzzzzz", Pass)


@pytest.mark.parametrize("name", ["_masks", "__init__", "magnitude.py", "../compress/tree", ""])
def test_tools_and_paths_are_no_plugins(name: str) -> None:
    with pytest.raises(BadSettings, match="unknown passes plug-in"):
        registry.load("passes", name, Pass)


@pytest.mark.parametrize("entry", ["halve = thirdparty_halve", "halve = thirdparty_halve:Halve"])
def test_a_third_party_is_found_through_an_entry_point(install: Path, entry: str) -> None:
    _install(install, "thirdparty_halve", GOOD, entry)
    assert {"halve", "magnitude"} <= set(registry.names("passes"))
    found = registry.load("passes", "halve", Pass)
    assert found.__name__ == "Halve"
    assert issubclass(found, Pass)
    assert registry.card("passes", "halve") == "Halve every weight: the card of a third party."
    assert "halve" not in registry.names("exporters")


def test_a_third_party_exporter_is_found(install: Path) -> None:
    code = GOOD.replace("Pass", "Exporter").replace("run(self, artifact, context)", "export(self, *given)")
    _install(install, "thirdparty_out", code, "out = thirdparty_out", room="exporters")
    assert issubclass(registry.load("exporters", "out", Exporter), Exporter)


def test_an_import_error_is_not_swallowed(install: Path) -> None:
    _install(install, "thirdparty_broken", "import nothing_of_that_name", "broken = thirdparty_broken")
    assert "broken" in registry.names("passes")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        registry.load("passes", "broken", Pass)


def test_a_module_defines_exactly_one(install: Path) -> None:
    _install(install, "thirdparty_none", "from compress.contracts import Pass", "none = thirdparty_none")
    with pytest.raises(CompressError, match="passes/none: must define exactly one Pass, defines 0"):
        registry.load("passes", "none", Pass)
    _install(install, "thirdparty_two", GOOD + "\nclass Again(Halve):\n    pass\n", "two = thirdparty_two")
    with pytest.raises(CompressError, match="defines 2"):
        registry.load("passes", "two", Pass)


def test_an_entry_point_of_another_kind_is_refused(install: Path) -> None:
    _install(install, "thirdparty_kind", GOOD, "kind = thirdparty_kind:Halve", room="exporters")
    with pytest.raises(CompressError, match="Halve is no Exporter"):
        registry.load("exporters", "kind", Exporter)


def test_ours_wins_over_a_third_party_of_its_name(install: Path) -> None:
    _install(install, "thirdparty_same", GOOD, "magnitude = thirdparty_same")
    assert registry.load("passes", "magnitude", Pass).__name__ == "Magnitude"


def test_nearest() -> None:
    assert registry.nearest("samples_", ["samples", "steps"]) == "; did you mean 'samples'?"
    assert registry.nearest("x", ["b", "a"]) == "; known: a, b"
    assert registry.nearest("x", []) == "; known: none"
