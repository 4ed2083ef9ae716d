"""Plug-ins by name: a file (or folder) of `passes/` or `exporters/` is a plug-in of that name.

Third parties add theirs through the entry points `compress.passes` and `compress.exporters`.  A plug-in that fails
to import raises; nothing is skipped in silence.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

from compress.contracts import Exporter, Pass
from compress.errors import BadSettings, CompressError

T = TypeVar("T")

_HERE = Path(__file__).resolve().parent


def names(room: str) -> list[str]:
    """Return the names of all plug-ins of a room (`passes`, `exporters`), ours and third parties'."""
    return sorted({*_own(room), *_foreign(room)})


def load(room: str, name: str, contract: type[T]) -> type[T]:
    """Return the plug-in's class: the one concrete subclass of `contract` that its module defines.

    Raises:
        BadSettings: there is no such plug-in (with the nearest name).
        CompressError: the module defines none or several.
    """
    if name in _own(room):
        module = importlib.import_module(f"{room}.{name}")
    elif point := _foreign(room).get(name):
        loaded = point.load()
        if inspect.isclass(loaded):
            return _checked(loaded, contract, name)
        module = loaded
    else:
        raise BadSettings(f"unknown {room} plug-in {name!r}{nearest(name, names(room))}", key="use")
    found = [
        c
        for c in vars(module).values()
        if inspect.isclass(c)
        and issubclass(c, contract)
        and not inspect.isabstract(c)
        and c.__module__.startswith(module.__name__)
    ]
    if len(found) != 1:
        raise CompressError(f"{room}/{name}: must define exactly one {contract.__name__}, defines {len(found)}")
    return found[0]


def card(room: str, name: str) -> str:
    """Return the plug-in's card: its module's docstring."""
    contract: type = {"passes": Pass, "exporters": Exporter}[room]
    return inspect.getdoc(sys.modules[load(room, name, contract).__module__]) or ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` or the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"


def _own(room: str) -> list[str]:
    folder = _HERE.parent / room
    module = importlib.import_module(room)
    if Path(str(module.__file__)).resolve().parent != folder:
        raise CompressError(
            f"another package named {room!r} hides ours ({module.__file__}); give compress an environment of its own"
        )
    files = (p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists())
    return [n for n in files if not n.startswith("_")]


def _foreign(room: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"compress.{room}")}


def _checked(loaded: type, contract: type[T], name: str) -> type[T]:
    if not issubclass(loaded, contract):
        raise CompressError(f"entry point {name!r}: {loaded.__qualname__} is no {contract.__name__}")
    return loaded
