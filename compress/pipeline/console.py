"""What a run shows: a live display on a terminal, plain lines when piped, and always a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY = 15.0  # seconds between two plain lines of one bar


class Console:
    """The report of a whole run: steps outside, bars inside.

    Args:
        log: file that every line is appended to, with the time.
        out: where the display goes.
        quiet: write the log only.
    """

    def __init__(self, log: Path, out: IO[str] | None = None, *, quiet: bool = False) -> None:
        self._rich = RichConsole(file=out or sys.stdout, quiet=quiet, highlight=False, soft_wrap=True)
        self._log = log
        self._step = ""
        self.notes: list[str] = []
        self.measured: dict[str, list[Any]] = {}

    def say(self, text: str) -> None:
        """Print a line and log it."""
        self._rich.print(text, markup=False)
        self.write(text)

    def write(self, text: str) -> None:
        """Log only."""
        with self._log.open("a", encoding="utf-8") as file:
            file.writelines(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n" for line in text.splitlines())

    def begin(self, index: int, count: int, name: str, cached: bool) -> None:
        """Open step `index` of `count`; what is noted and recorded from now on is the step's."""
        self.notes, self.measured = [], {}
        self._step = f"[{index}/{count}] {name}"
        self.say(f"{self._step}: {'cached' if cached else 'started'}")

    def end(self, seconds: float) -> None:
        """Close the step."""
        self.say(f"{self._step}: done in {_duration(seconds)}")

    def note(self, text: str) -> None:
        """Print a line that belongs to the step's lineage."""
        self.notes.append(text)
        self.say(f"  {text}")

    def tell(self, text: str) -> None:
        """Print a line of measured values, which belong to no lineage."""
        self.say(f"  {text}")

    def record(self, name: str, value: Any) -> None:
        """Keep a measured value of the step."""
        self.measured.setdefault(name, []).append(value)

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[_Plain | _Live]:
        """Show an inner bar while the block runs."""
        if not self._rich.is_terminal or self._rich.quiet:
            yield _Plain(self, what, total, done)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=self._rich, transient=True) as progress:
            yield _Live(progress, what, total, done)


class _Live:
    def __init__(self, progress: Progress, what: str, total: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total, completed=done, text="")

    def advance(self, amount: int = 1) -> None:
        self._progress.advance(self._task, amount)

    def show(self, text: str) -> None:
        self._progress.update(self._task, text=text)


class _Plain:
    def __init__(self, console: Console, what: str, total: int, done: int) -> None:
        self._console, self._what, self._total = console, what, total
        self._done = self._start = done
        self._text = ""
        self._begun = self._shown = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._shown >= _EVERY and self._done < self._total:
            self._shown = now
            left = (now - self._begun) / (self._done - self._start) * (self._total - self._done)
            self._console.say(
                f"  {self._what}: {self._done}/{self._total}, {_duration(left)} left{self._text and ', ' + self._text}"
            )

    def show(self, text: str) -> None:
        self._text = text


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
