"""Built-in corpora: the running Python's own documentation and source, so that no download is needed.

`python-docs` holds the language reference topics of `pydoc_data` and every docstring of the standard library;
`python-source` the standard library's modules without their tests.  A document is held out when a hash of its name
says so.  Both corpora hash the same name for the same module, and siblings (`decimal`, `_decimal`, `_pydecimal`)
share one name, so that text held out in one corpus is never trained on in the other, on any Python version.
"""

import ast
import hashlib
import importlib
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "heldout"]
NAMES = ("python-docs", "python-source")

_HELDOUT_PERCENT = 8
# Tests, vendored wheels and machine-written tables: not prose, not code anyone wrote here, or not the same anywhere.
_LEFT_OUT = ("test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled", "__pycache__", "pydoc_data")
_SHORTEST = 64  # characters; shorter documents teach nothing


def documents(corpus: str, split: Split) -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` of every document on one side of the split, sorted by name.

    Args:
        corpus: one of `NAMES`.
        split: `train` or `heldout`.

    Raises:
        KeyError: the corpus does not exist.
    """
    read = {"python-docs": _docs, "python-source": _source}[corpus]
    for name, text in read():
        if len(text) >= _SHORTEST and is_heldout(name) == (split == "heldout"):
            yield name, text


def is_heldout(name: str) -> bool:
    """Tell whether the document belongs to the held-out side; only the name decides.

    A module goes with its whole top-level package, and `_x`, `_pyx` and `x` go together, since such siblings repeat
    each other's text.
    """
    family = name.partition(".")[0].lstrip("_")
    family = family.removeprefix("py") if name.startswith("_py") else family
    return int(hashlib.sha256(f":{family}".encode()).hexdigest(), 16) % 100 < _HELDOUT_PERCENT


def _docs() -> Iterator[tuple[str, str]]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for topic, text in sorted(topics.items()):
        yield topic, text.strip()
    for name, text in _source():
        yield name, "\n\n".join(_docstrings(text))


def _docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                owner = getattr(node, "name", "")
                yield f"{owner}\n{text}" if owner else text


def _source() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if set(parts) & set(_LEFT_OUT) or parts[0].startswith(("_sysconfigdata", "config-")):
            continue
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        try:
            with tokenize.open(path) as file:  # honours the coding cookie
                text = file.read()
            ast.parse(text)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # lib2to3 keeps Python 2 files on purpose
        yield ".".join(parts), text
