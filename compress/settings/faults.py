"""Faults of a pipeline file: collected, put in words, raised together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from compress import registry
from compress.contracts import Settings
from compress.errors import BadPipeline, BadSettings, UserFault
from compress.settings import places
from compress.settings.places import Places
from compress.settings.tables import DEVICE, NAME

_PATTERNS = {
    NAME: "must begin with a letter or digit and hold only letters, digits, '.', '_' and '-'",
    DEVICE: "must be 'cpu', 'cuda' or 'cuda:<number>'",
}

S = TypeVar("S", bound=Settings)
T = TypeVar("T")


class Faults:
    """All that is wrong with one file.

    Args:
        path: the file, as messages name it.
        where: the lines of its tables and keys.
    """

    def __init__(self, path: Path, where: Places) -> None:
        self._path, self._where = path, where
        self._found: dict[str, int] = {}  # message -> line
        self._tables: set[str | int] = set()

    def add(self, path: places.Path, what: str, plugin: str | None = None) -> None:
        """Add a fault of a table or key: `file:line: table[i].key (plug-in): what`."""
        line = self._where.line(path)
        by = f" ({plugin})" if plugin else ""
        self._tables.add(path[0])
        self._found[f"{self._path}:{line}: {_label(path)}{by}: {what}"] = line

    def add_error(self, path: places.Path, error: UserFault, plugin: str | None = None) -> None:
        """Add a fault that was raised about a table; `BadSettings` names the key."""
        key = error.key if isinstance(error, BadSettings) else None
        for line in str(error).splitlines():
            self.add((*path, *key.split(".")) if key else path, line, plugin)

    def attempt(self, path: places.Path, plugin: str | None, call: Callable[[], T]) -> T | None:
        """Return what the call returns, or None when it raises something the user can mend, which is added."""
        try:
            return call()
        except UserFault as error:
            self.add_error(path, error, plugin)
            return None

    def validated(
        self, model: type[S], content: Mapping[str, Any], path: places.Path, plugin: str | None = None,
        known: tuple[str, ...] = (),
    ) -> S | None:  # fmt: skip
        """Return the table as settings, or None after adding each of its faults.

        Args:
            model: what the table must be.
            content: the table as `tomllib` read it.
            path: where it stands.
            plugin: whose settings they are.
            known: further keys that the table may hold, for the nearest name.
        """
        return validated(model, content, lambda key, words: self.add((*path, *key), words, plugin), known)

    def __bool__(self) -> bool:
        return bool(self._found)

    def about(self, *tables: str) -> bool:
        """Tell whether a fault is about one of the tables."""
        return not self._tables.isdisjoint(tables)

    def raise_any(self) -> None:
        """Raise `BadPipeline` with every fault, from the first line to the last, if there is one."""
        if self._found:
            raise BadPipeline(sorted(self._found, key=self._found.__getitem__))


def validated(
    model: type[S],
    content: Mapping[str, Any],
    tell: Callable[[places.Path, str], None],
    known: tuple[str, ...] = (),
) -> S | None:
    """Return a table as settings, or None after telling (key, what is wrong) of each fault."""
    try:
        # JSON's strict mode is TOML's: "5" is no number, and an array becomes a tuple.
        return model.model_validate_json(json.dumps(content, default=str), strict=True)
    except BadSettings as error:
        tell((error.key,) if error.key else (), str(error))
    except ValidationError as error:
        said: dict[places.Path, list[str]] = {}
        for one in error.errors():
            key, words = _words(one, model, known)
            if words not in said.setdefault(key, []):
                said[key].append(words)
        for key, several in said.items():
            tell(key, " or ".join(several))
    return None


def checked(model: type[S], content: Mapping[str, Any], what: str) -> S:
    """Return settings that came without a file.

    Raises:
        BadSettings: all that is wrong with them, a line each: `what.key: what is wrong`.
    """
    faults: list[str] = []
    found = validated(model, content, lambda key, words: faults.append(f"{'.'.join(map(str, (what, *key)))}: {words}"))
    if found is None:
        raise BadSettings("\n".join(faults))
    return found


def got(value: Any) -> str:
    """Return `, got <value>` as TOML writes it, cut short."""
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f", got {shown if len(shown) <= 80 else shown[:77] + '...'}"


def _label(path: places.Path) -> str:
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "file"


def _words(error: Any, model: type[Settings], known: tuple[str, ...]) -> tuple[places.Path, str]:
    """Return the key that a pydantic error is about, and what is wrong with it."""
    key: places.Path = tuple(error["loc"][:1])
    field = model.model_fields.get(str(key[0])) if key else None
    item = next((p for p in error["loc"][1:] if isinstance(p, int)), None)
    match error["type"]:
        case "extra_forbidden" if field is None:
            return key, f"unknown setting{registry.nearest(str(key[0]), {*model.model_fields, *known})}"
        case "missing":
            means = f"; {field.description}" if field and field.description else ""
            return key, f"must be given{means}"
        case "value_error":
            text = str(error["ctx"]["error"])
            return key, text if "got" in text or not key else text + got(error["input"])
        case "string_pattern_mismatch" if error["ctx"]["pattern"] in _PATTERNS:
            return key, f"{_PATTERNS[error['ctx']['pattern']]}{got(error['input'])}"
    text = error["msg"].replace("Input should", "must").replace("String should", "must")
    text = text.replace("a valid array", "a list").replace("a valid integer", "a whole number")
    text = text.replace("a valid number", "a number").replace("a valid string", "text in quotes")
    text = text.replace("a valid boolean", "true or false").partition(", got ")[0]
    return key, (f"item {item + 1} " if item is not None else "") + text + got(error["input"])
