"""A program that announces what it does, run under a bar."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

_PROGRESS = "progress:"


def follow(command: Sequence[str], bar: Any) -> tuple[int, str]:
    """Run a program, moving a bar at every line `progress: ...` of its stderr; an exception takes its processes down.

    Returns:
        Its exit status, and the last of its other lines.
    """
    last = "it said nothing"
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
