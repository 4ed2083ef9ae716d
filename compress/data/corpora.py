"""Built-in corpora: the running Python's own documentation and source, as text and labelled; nothing is downloaded.

`python-docs` holds the language reference topics of `pydoc_data` and every docstring of the standard library;
`python-source` the standard library's modules without their tests.  A document is held out when a hash of its name
says so.  Both corpora hash the same name for the same module, and siblings (`decimal`, `_decimal`, `_pydecimal`)
share one name, so that text held out in one corpus is never trained on in the other, on any Python version.  A
held-out topic that repeats training topics is left out.

`python-returns` is for classifiers: the name and the docstring of every function of `python-source`, labelled by
whether the function gives something back (`value`) or not (`nothing`).  A text stands in it once, on the training side
if on both.
"""

import ast
import hashlib
import importlib
import sysconfig
import tokenize
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from compress.data.returns import label_of

T = TypeVar("T")

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, Split] = ("train", "heldout")
NAMES = ("python-docs", "python-source")  # of running text
LABELLED = "python-returns"
ALL = (*NAMES, LABELLED)

_HELDOUT_PERCENT = 8
# Tests, vendored wheels and machine-written tables: not prose, not code anyone wrote here, or not the same anywhere.
_LEFT_OUT = ("test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled", "__pycache__", "pydoc_data")
_SHORTEST = 64  # characters; shorter documents teach nothing
_LONG = 64  # characters of a line that is not twice the same by chance
_REPEATED = 0.1  # share of a held-out topic's long lines that may stand in a training topic
_INNER = ("body", "handlers", "orelse", "finalbody", "cases")  # where statements hold statements


def documents(corpus: str, split: Split) -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` of every document on one side of the split, sorted by name.

    Args:
        corpus: one of `NAMES`.
        split: `train` or `heldout`.

    Raises:
        KeyError: the corpus does not exist.
    """
    read = {"python-docs": _docs, "python-source": _source}[corpus]
    yield from read(split)


def rows(corpus: str, split: Split) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield `(name, columns)` of every document on one side: `text`, and in a labelled corpus `label`.

    Args:
        corpus: one of `ALL`; what stands in a labelled one bears its module's name.
        split: `train` or `heldout`.
    """
    if corpus == LABELLED:
        yield from ((name, {"text": text, "label": label}) for name, text, label in _returns(split))
    else:
        yield from ((name, {"text": text}) for name, text in documents(corpus, split))


@cache
def digest(corpus: str, split: Split) -> str:
    """Return the hex digest of what the rows are made from; much cheaper than to make them."""
    whole = hashlib.sha256()
    if corpus == "python-docs":
        whole.update(repr(_topics(split)).encode())
    both = corpus == LABELLED and split == "heldout"  # what is trained on is not held out
    for name, path in _modules() if both else _side(_modules(), split):
        whole.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def is_heldout(name: str) -> bool:
    """Tell whether the document belongs to the held-out side; only the name decides.

    A module goes with its whole top-level package, and `_x`, `_pyx` and `x` go together, since such siblings repeat
    each other's text.
    """
    family = name.partition(".")[0].lstrip("_")
    family = family.removeprefix("py") if name.startswith("_py") else family
    return int(hashlib.sha256(f":{family}".encode()).hexdigest(), 16) % 100 < _HELDOUT_PERCENT


@cache
def _docs(split: Split) -> tuple[tuple[str, str], ...]:
    found = list(_topics(split))
    for name, text in _source(split):
        try:
            found.append((name, "\n\n".join(_docstrings(text))))
        except (SyntaxError, ValueError):
            continue  # some Pythons ship a few files of Python 2 on purpose
    return tuple((name, text) for name, text in found if len(text) >= _SHORTEST)


def _topics(split: Split) -> list[tuple[str, str]]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    train, heldout = (dict(_side(sorted(topics.items()), side)) for side in SPLITS)
    if split == "train":
        return [(n, t.strip()) for n, t in train.items()]
    seen = {line for text in train.values() for line in _long_lines(text)}
    return [(n, t.strip()) for n, t in heldout.items() if not _repeats(_long_lines(t), seen)]


def _long_lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if len(line) >= _LONG]


def _repeats(lines: list[str], seen: set[str]) -> bool:
    """Tell whether a held-out topic is mostly a collection of others, as `compound` is of `if`, `for` and `try`."""
    return sum(line in seen for line in lines) > _REPEATED * len(lines)


def _docstrings(source: str) -> Iterator[str]:
    """Yield every docstring below its owner's name, outer before inner."""
    return (text for _, text in _documented(source))


def _documented(source: str) -> Iterator[tuple[ast.AST, str]]:
    """Yield every module, class and function with a docstring, and this below its name; expressions hold none."""
    waiting: deque[ast.AST] = deque([ast.parse(source)])
    while waiting:
        node = waiting.popleft()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                owner = getattr(node, "name", "")
                yield node, f"{owner}\n{text}" if owner else text
        for inner in _INNER:
            waiting.extend(getattr(node, inner, ()))


@cache
def _returns(split: Split) -> tuple[tuple[str, str, str], ...]:
    """Return `(module, text, label)` of every function whose body tells."""
    seen = set() if split == "train" else {text for _, text, _ in _returns("train")}
    found = []
    for name, source in _source(split):
        try:
            owners = list(_documented(source))
        except (SyntaxError, ValueError):
            continue
        for owner, text in owners:
            if not isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef) or text in seen:
                continue
            if label := label_of(owner):
                seen.add(text)
                found.append((name, text, label))
    return tuple(found)


@cache
def _source(split: Split) -> tuple[tuple[str, str], ...]:
    found = []
    for name, path in _side(_modules(), split):
        try:
            with tokenize.open(path) as file:  # honours the coding cookie
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue  # a file in no encoding is no text
        if len(text) >= _SHORTEST:
            found.append((name, text))
    return tuple(found)


@cache
def _modules() -> tuple[tuple[str, Path], ...]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if set(parts) & set(_LEFT_OUT) or parts[0].startswith(("_sysconfigdata", "config-")):
            continue
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return tuple(found)


def _side(named: Iterable[tuple[str, T]], split: Split) -> Iterator[tuple[str, T]]:
    return ((name, thing) for name, thing in named if is_heldout(name) == (split == "heldout"))
