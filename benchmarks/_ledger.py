"""One JSON line per finished cell, appended whole; a killed run loses the cell it was in and nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from compress import files
from compress.errors import UserFault

Row = dict[str, Any]
Render = Callable[[Row, Mapping[str, Row]], str]  # of a setup and its rows, the page


class Results:
    """The file of one run: a first line with its setup, then one line per finished cell.

    Args:
        path: the file; made when absent.
        setup: what all cells share; a file with another setup is refused.

    Raises:
        UserFault: the file holds a run with another setup.
    """

    def __init__(self, path: Path, setup: Row) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = read(path)
        if not lines:
            path.write_bytes(b"")
            self._append({"setup": setup})
        elif lines[0]["setup"] != setup:
            old = lines[0]["setup"]
            differs = ", ".join(f"{k} {old.get(k)!r} -> {setup.get(k)!r}" for k in setup if old.get(k) != setup[k])
            raise UserFault(f"{path}: holds a run with another setup ({differs}); give another --name")
        else:
            _cut_torn_line(path)
        self.rows: dict[str, Row] = {line["key"]: line for line in lines[1:]}

    def add(self, row: Row) -> None:
        """Append one finished cell, whole or not at all."""
        self.rows[row["key"]] = row
        self._append(row)

    def _append(self, row: Row) -> None:
        line = (json.dumps(row, separators=(",", ":")) + "\n").encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: Path) -> list[Row]:
    """Return every whole line of a results file; a last line that a kill tore is left out."""
    if not path.exists():
        return []
    whole, newline, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()] if newline else []


def conclude(path: Path, render: Render, work: Callable[[], None] | None) -> None:
    """Do the work, unless only its page is asked for, and write and print the page of the results file.

    Work that raises `TimeoutError` goes on the next time; a user's fault ends the process in one line.
    """
    finished = True
    try:
        if work:
            work()
    except TimeoutError:
        finished = False
    except UserFault as error:
        sys.exit(f"error: {error}")
    if not (lines := read(path)):
        sys.exit(f"error: {path}: no results yet")
    text = render(lines[0]["setup"], {line["key"]: line for line in lines[1:]})
    path.with_suffix(".md").write_text(text)
    print(f"\n{text}")
    if not finished:
        print("not all cells are finished; the same command goes on")


def surroundings(model: Path) -> Row:
    """Return what a results file keeps of the weights in a folder and of the machine."""
    weights = sorted(model.glob("*.safetensors"))
    return {
        "weights": files.digest_of([files.sha256(w) for w in weights])[:12],
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
