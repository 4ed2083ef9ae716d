"""The digest of a plug-in's code and of what it uses, so that a changed method is never served from the cache.

Comments, formatting and docstrings do not count.  Imports are followed as text through our own packages (for a third
party's plug-in: through its own top-level package), a package standing for all its files.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OURS = ("compress", "passes", "exporters", "solvers", "profiles")


@cache
def code_digest(module: str) -> str:
    """Return the hex digest of a module's code and of everything of ours that it imports, directly or not."""
    seen: dict[str, str] = {}
    rooms = {*OURS, module.partition(".")[0]}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        found = [(p, _read(p)) for p in _files(name)]
        seen[name] = "".join(ast.dump(_bare(tree)) for _, tree in found)
        for _, tree in found:
            waiting += [n for n in _imports(tree) if n.partition(".")[0] in rooms and n not in rooms]
    return hashlib.sha256("\n".join(f"{n}:{seen[n]}" for n in sorted(seen)).encode()).hexdigest()


def _files(module: str) -> list[Path]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return []
    origin = Path(spec.origin)
    return sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]


def _read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree: ast.Module) -> Iterator[str]:
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _is_module(inner) else node.module


@cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, AttributeError):
        return False


def _bare(tree: ast.Module) -> ast.Module:
    """Drop docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
