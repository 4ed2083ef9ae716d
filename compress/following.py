"""Programs that are started: what they find around them, how they are told and heard, and one run under a bar."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PROGRESS, _NOTHING = "progress:", "it said nothing"
_ROOT = Path(__file__).parents[1]


def environment(threads: int) -> dict[str, str]:
    """Return our environment for a process that runs this very code, whatever is installed, on so many threads."""
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads)}


def started(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a program that is told and heard through pipes; what else it says is in the log.

    Its input ends when this process does, however that ends; an interrupt from the keyboard is ours to pass on.
    """
    with log.open("w", encoding="utf-8") as errors:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip


def last_line(log: Path) -> str:
    """Return the last line of a log that says anything."""
    return log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2] or _NOTHING


def follow(command: Sequence[str], bar: Any) -> tuple[int, str]:
    """Run a program, moving a bar at every line `progress: ...` of its stderr; an exception takes its processes down.

    Returns:
        Its exit status, and the last of its other lines.
    """
    last = _NOTHING
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # our folder's names must not hide the libraries'
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stderr is not None
        try:
            parts = 0
            for line in filter(None, map(str.strip, process.stderr)):
                if line.startswith(_PROGRESS):
                    bar.advance(min(parts, 1))
                    parts += 1
                    bar.show(line.removeprefix(_PROGRESS).strip())
                else:
                    last = line
            bar.advance()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, last
