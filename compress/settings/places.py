"""Where each table and key of a TOML text stands, which `tomllib` does not tell."""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]  # ("pass", 1, "pattern") is the key `pattern` of the second [[pass]]

_PART = r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|[A-Za-z0-9_-]+)"""
_KEY = re.compile(rf"[ \t]*{_PART}(?:[ \t]*\.[ \t]*{_PART})*[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|[\[{]|[\]}]|\n|.', re.DOTALL
)


class Places:
    """The line of every table and key, counted from 1.

    Args:
        text: a text that `tomllib` reads without error.
    """

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {}
        self._lengths: dict[Path, int] = {}  # of every array of tables so far
        self._scan(text)

    def line(self, path: Path) -> int:
        """Return the line of a table or key, or of the nearest table around it that is written down."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def written(self, path: Path) -> bool:
        """Tell whether the table or key stands in the file."""
        return path in self._lines

    def _scan(self, text: str) -> None:
        table: Path = ()
        at = _end(_BLANK, text, 0)
        while at < len(text):
            line = text.count("\n", 0, at) + 1
            if text[at] == "[":
                brackets = 2 if text.startswith("[[", at) else 1
                stop = _end(_KEY, text, at + brackets)
                table = self._table(_parts(text[at + brackets : stop]), repeats=brackets == 2)
                self._note(table, line)
                at = stop + brackets
            else:
                stop = _end(_KEY, text, at)
                self._note(table + tuple(_parts(text[at:stop])), line)
                at = _after_value(text, stop)
            at = _end(_BLANK, text, at)

    def _table(self, parts: list[str], *, repeats: bool) -> Path:
        path: Path = ()
        for part in parts[:-1]:
            path = self._last((*path, part))
        path = (*path, parts[-1])
        if repeats:
            self._lengths[path] = self._lengths.get(path, 0) + 1
        return self._last(path)

    def _last(self, path: Path) -> Path:
        return (*path, self._lengths[path] - 1) if path in self._lengths else path

    def _note(self, path: Path, line: int) -> None:
        for end in range(1, len(path) + 1):
            self._lines.setdefault(path[:end], line)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None, "the text was read as TOML before"
    return found.end()


def _parts(key: str) -> list[str]:
    return [next(iter(tomllib.loads(f"{part} = 0"))) for part in re.findall(_PART, key)]


def _after_value(text: str, at: int) -> int:
    """Return where the value that follows ends: the first newline outside strings and brackets."""
    depth = 0
    for token in _TOKEN.finditer(text, at):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        elif token[0] == "\n" and not depth:
            return token.end()
    return len(text)
