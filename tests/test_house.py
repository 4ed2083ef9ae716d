"""The laws of the house, over every file and every plug-in that is found: a new one is held to them for free."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from compress import contracts, registry
from compress.contracts import Exporter, Pass
from compress.settings.tables import ExportTable, PassTable
from solvers import Solver

ROOT = Path(__file__).parents[1]
ROOMS = ("compress", "passes", "exporters", "solvers", "profiles")
CONTRACTS: dict[str, type] = {"passes": Pass, "exporters": Exporter, "solvers": Solver}
PLUGINS = [(room, name) for room in CONTRACTS for name in registry.names(room)]

TOLD = {
    "passes": ("Formula", "Paper", "Cost", "Keeps", "Helps", "Hurts"),
    "solvers": ("Formula", "Paper", "Gives", "Cost"),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _python(*folders: str) -> list[str]:
    found = (p for f in folders for p in (ROOT / f).rglob("*.py"))
    return sorted(p.relative_to(ROOT).as_posix() for p in found if "__pycache__" not in p.parts)


HOUSE = _python(*ROOMS)
CODE = _python(*ROOMS, "tests", "benchmarks", "examples")


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def _all(name: str, *kinds: type[Any]) -> Iterator[Any]:
    return (node for node in ast.walk(_tree(name)) if isinstance(node, kinds))


def _plugin(room: str, name: str) -> type[Any]:
    return registry.load(room, name, CONTRACTS[room])


def _card(room: str, name: str) -> str:
    return inspect.getdoc(sys.modules[_plugin(room, name).__module__]) or ""


# Each law looks at one file and returns the places that break it.


def _too_long(name: str) -> list[str]:
    lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
    return [f"{lines} lines"] if lines > 250 else []


def _long_functions(name: str) -> list[str]:
    found = []
    for node in _all(name, ast.FunctionDef, ast.AsyncFunctionDef):
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        if node.end_lineno - first.lineno >= 50:
            found.append(f"{node.name} in line {node.lineno} has {node.end_lineno - first.lineno + 1} lines")
    return found


def _imports(name: str) -> Iterator[tuple[int, str]]:
    for node in _all(name, ast.Import):
        yield from ((node.lineno, alias.name) for alias in node.names)
    yield from ((node.lineno, node.module or ".") for node in _all(name, ast.ImportFrom))


def _pickles(name: str) -> list[str]:
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    return [f"{module} in line {line}" for line, module in _imports(name) if module.partition(".")[0] in banned]


def _unsafe_loads(name: str) -> list[str]:
    calls = (c for c in _all(name, ast.Call) if ast.unparse(c.func) == "torch.load")
    safe = {ast.unparse(c): any(ast.unparse(k) == "weights_only=True" for k in c.keywords) for c in calls}
    return [call for call, is_safe in safe.items() if not is_safe]


def _remote_code(name: str) -> list[str]:
    keywords = (k for c in _all(name, ast.Call) for k in c.keywords if k.arg == "trust_remote_code")
    return [f"line {k.value.lineno}" for k in keywords if ast.unparse(k.value) == "True"]


def _swallowed(name: str) -> list[str]:
    wide = (None, "Exception", "BaseException")
    handlers = (h for h in _all(name, ast.ExceptHandler) if (ast.unparse(h.type) if h.type else None) in wide)
    return [f"line {h.lineno}" for h in handlers if all(isinstance(s, ast.Pass | ast.Continue) for s in h.body)]


def _unfinished(name: str) -> list[str]:
    words = re.compile(r"#.*\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b|raise NotImplementedError")
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [
        f"line {i}: {line.strip()}" for i, line in enumerate(lines, 1) if words.search(line) and "words =" not in line
    ]


def _of_one_machine(name: str) -> list[str]:
    paths = [c for c in _all(name, ast.Constant) if isinstance(c.value, str)]
    return [c.value for c in paths if re.match(r"/(home|root|work|mnt|Users)/\w", c.value)]


LAWS: list[tuple[list[str], Callable[[str], list[str]]]] = [
    (HOUSE, _too_long), (HOUSE, _long_functions), (HOUSE, _swallowed),
    (CODE, _pickles), (CODE, _unsafe_loads), (CODE, _remote_code), (CODE, _unfinished), (CODE, _of_one_machine),
]  # fmt: skip


@pytest.mark.parametrize(("files", "law"), LAWS, ids=lambda value: getattr(value, "__name__", "files"))
def test_no_file_breaks(files: list[str], law: Callable[[str], list[str]]) -> None:
    assert files
    assert {name: broken for name in files if (broken := law(name))} == {}


BROKEN: dict[Callable[[str], list[str]], str] = {
    _too_long: "x = 1\n" * 251,
    _long_functions: 'def f():\n    """Doc."""\n' + "    x = 1\n" * 51,
    _swallowed: "try:\n    f()\nexcept Exception:\n    pass\n",
    _pickles: "from pickle import load\n",
    _unsafe_loads: "torch.load(path, map_location='cpu')\n",
    _remote_code: "load(a, trust_remote_code=True)\n",
    _unfinished: "x = 1  # TO" + "DO: more\n",
    _of_one_machine: "x = '/ho" + "me/me/model'\n",
}


@pytest.mark.parametrize("law", [law for _, law in LAWS], ids=lambda law: law.__name__)
def test_each_law_sees_what_breaks_it(law: Callable[[str], list[str]], tmp_path: Path) -> None:
    """An absolute path replaces ROOT, so that a file of our own can be judged."""
    path = tmp_path / "broken.py"
    path.write_text(BROKEN[law])
    assert law(str(path))
    path.with_name("fine.py").write_text('def f():\n    """Doc."""\n' + "    x = 1\n" * 50)
    assert not law(str(path.with_name("fine.py")))


def test_the_ground_imports_no_plugin_and_rooms_not_each_other() -> None:
    above = {
        "compress": {"passes", "exporters", "solvers", "profiles"},
        "solvers": {"passes", "exporters"},
        "profiles": {"passes", "exporters"},
        "passes": {"exporters"},
        "exporters": {"passes"},
    }
    wrong = [
        f"{name}:{line}: {module}"
        for name in HOUSE
        for line, module in _imports(name)
        if module.partition(".")[0] in above[name.partition("/")[0]]
    ]
    assert wrong == []


def test_there_are_plugins() -> None:
    assert ("passes", "magnitude") in PLUGINS


@pytest.mark.parametrize(("room", "name"), PLUGINS)
def test_every_plugin_has_a_card(room: str, name: str) -> None:
    card = _card(room, name)
    first, _, rest = card.partition("\n")
    assert 20 <= len(first) <= 120
    assert first.rstrip().endswith(".")
    assert rest.strip(), "a card says more than one line: formula, paper, cost, what it keeps, when it helps or hurts"


@pytest.mark.parametrize(("room", "name"), [p for p in PLUGINS if p[0] in TOLD])
def test_every_method_tells_its_worth(room: str, name: str) -> None:
    card = _card(room, name)
    for word in TOLD[room]:
        assert re.search(rf"^{word}", card, re.MULTILINE), f"the card of {name} has no line that begins with {word}"


@pytest.mark.parametrize(("room", "name"), PLUGINS)
def test_every_setting_is_described_and_frozen(room: str, name: str) -> None:
    settings = _plugin(room, name).Settings
    assert issubclass(settings, contracts.PassSettings if room == "passes" else contracts.Settings)
    assert [n for n, field in settings.model_fields.items() if not field.description] == []
    assert settings.model_config.get("frozen")
    assert settings.model_config.get("extra") == "forbid"
    own = {*PassTable.model_fields, *ExportTable.model_fields}
    assert not own & settings.model_fields.keys(), "the pipeline file uses these itself"


@pytest.mark.parametrize(("room", "name"), PLUGINS)
def test_no_sibling_inherits_from_a_sibling(room: str, name: str) -> None:
    own = _plugin(room, name)
    for cls in (own, own.Settings):
        homes = {base.__module__ for base in cls.__mro__ if base.__module__.startswith(f"{room}.")}
        foreign = [h for h in homes if h.split(".")[1] != name and not h.split(".")[1].startswith("_")]
        assert foreign == []


@pytest.mark.parametrize(("room", "name"), PLUGINS)
def test_no_plugin_imports_a_sibling(room: str, name: str) -> None:
    siblings = {f"{room}.{n}" for n in registry.names(room) if n != name}
    files = [f for f in HOUSE if f == f"{room}/{name}.py" or f.startswith(f"{room}/{name}/")]
    imported = {".".join(m.split(".")[:2]) for f in files for _, m in _imports(f)}
    for node in (n for f in files for n in _all(f, ast.ImportFrom) if n.module == room):
        imported |= {f"{room}.{alias.name}" for alias in node.names}
    assert not imported & siblings


@pytest.mark.parametrize(("room", "name"), PLUGINS)
def test_a_plugin_says_what_its_methods_do(room: str, name: str) -> None:
    own = _plugin(room, name)
    module = importlib.import_module(own.__module__)
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    public = [c for c in classes if not c.__name__.startswith("_")]
    assert [c.__name__ for c in public if not c.__dict__.get("__doc__")] == []
    assert "run" in vars(own) or room != "passes"
    assert room != "passes" or own.ensures is not Pass.ensures, (
        "a pass, or the base of its kind, declares what it promises"
    )
