"""Another machine, reached over ssh: it needs Python and what our files there import, and nothing of ours."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.errors import Unavailable, UserFault

_OPTIONS = ("-q", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15")  # a password cannot be asked for behind a bar
_UNREACHABLE = 255  # what ssh ends with when it could not even connect
_NO_COMMAND = 127


class Host:
    """A machine with a folder of ours, in which what is copied stays as long as the connection.

    Args:
        name: as ssh takes it, `user@host` or a name of its configuration.
        folder: made there.
        python: what runs Python there.
    """

    def __init__(self, name: str, folder: str, python: str) -> None:
        self.name, self.folder, self.python = name, folder, python
        self._copied: dict[Path, str] = {}

    def command(self, program: Path, *arguments: object) -> list[str]:
        """Return the command line that runs one of our files there, with what stands beside it, once it is copied."""
        return _ssh(self.name, self.python, self.put(program), *map(str, arguments))

    def script(self, program: Path, *arguments: object) -> dict[str, Any]:
        """Run one of our files there and return the JSON that it prints."""
        return dict(json.loads(_run(self.name, self.command(program, *arguments))))

    def put(self, path: Path) -> str:
        """Copy a file or a folder there, once, and return where it is."""
        if path not in self._copied:
            place = f"{self.folder}/{path.name}" if path.is_file() else f"{self.folder}/{len(self._copied)}"
            _run(self.name, ["scp", *_OPTIONS, "-r", str(path), f"{self.name}:{place}"])
            self._copied[path] = place
        return self._copied[path]

    def get(self, place: str, path: Path) -> None:
        """Copy a file from there."""
        _run(self.name, ["scp", *_OPTIONS, f"{self.name}:{place}", str(path)])

    def told(self, text: str) -> str:
        """Return what was said there, with the names that things have here."""
        for path, place in self._copied.items():
            text = re.sub(rf"{re.escape(place)}(?!\w)", lambda _, name=str(path): name, text)  # type: ignore[misc]
        return f"{self.name}: {text}"

    def forget(self, paths: Sequence[Path]) -> None:
        """Delete what was copied, there."""
        if places := [self._copied.pop(p) for p in paths if p in self._copied]:
            _run(self.name, _ssh(self.name, "rm", "-rf", *places))


@contextmanager
def reached(name: str, python: str = "python3") -> Iterator[Host]:
    """Yield a machine while it is connected; what was copied to it is deleted in the end.

    Raises:
        Unavailable: there is no ssh here.
        UserFault: it cannot be reached, or has no Python.
    """
    if missing := [tool for tool in ("ssh", "scp") if not shutil.which(tool)]:
        raise Unavailable(f"{name}: cannot be reached: there is no {missing[0]} here")
    if name.startswith("-"):
        raise UserFault(f"{name!r}: is no host; give user@host")
    _run(name, _ssh(name, python, "-c", "pass"))
    folder = _run(name, _ssh(name, "mktemp", "-d")).strip()
    try:
        yield Host(name, folder, python)
    finally:
        subprocess.run(_ssh(name, "rm", "-rf", folder), capture_output=True, check=False)


def fault(name: str, status: int, said: str) -> UserFault:
    """Return what is to be told of a command on a host that ended so, `said` being its last line."""
    if status == _UNREACHABLE:
        return UserFault(f"{name}: cannot be reached ({said or 'ssh says no more'}); does `ssh {name} true` work?")
    if status == _NO_COMMAND:
        return UserFault(f"{name}: has no such program ({said}); install Python there, or name it with --python")
    return UserFault(f"{name}: {said or f'a command ended with {status}'}")


def _ssh(name: str, *words: str) -> list[str]:
    return ["ssh", *_OPTIONS, name, shlex.join(words)]


def _run(name: str, command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise fault(name, done.returncode, lines[-1] if lines else "")
    return done.stdout
