"""Workers of this machine: processes that are told folders on their standard input, one at a time."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from compress import following
from passes._distillation.job import Answer

Submit = Callable[[Path], "Future[Answer]"]

COMMAND = (sys.executable, "-m", "passes._distillation.worker")


class Died(Exception):
    """A worker ended in the middle of a job."""


@contextmanager
def hands(workers: int, device: torch.device, folder: Path, threads: int) -> Iterator[tuple[Submit, int]]:
    """Yield what takes jobs, and how many at once keep all workers busy while one more is being prepared.

    Args:
        workers: how many processes.
        device: of the jobs; processes share the GPUs evenly unless it names one.
        folder: for their logs.
        threads: of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    team = [_Worker(folder / f"worker-{k}.log", environment(k, device, threads)) for k in range(workers)]
    idle = queue.SimpleQueue[_Worker]()
    for worker in team:
        idle.put(worker)

    def ask(job: Path) -> Answer:
        worker = idle.get()
        try:
            return worker.ask(job)
        finally:
            idle.put(worker)

    asking = ThreadPoolExecutor(workers)
    try:
        yield (lambda job: asking.submit(ask, job)), workers + 1
    finally:
        asking.shutdown(wait=False, cancel_futures=True)
        for worker in team:
            worker.kill()
        asking.shutdown()
        for worker in team:
            worker.close()


class _Worker:
    """One process, started when it is first asked, and anew when it died."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self._log, self._environment = log, environment
        self._process: subprocess.Popen[str] | None = None
        self._ended = False

    def ask(self, job: Path) -> Answer:
        """Let the process do a job and return its answer.

        Raises:
            Died: it ended before it answered.
        """
        if self._ended:
            raise Died("the run ended")
        process = self._process = self._process or following.started(COMMAND, self._log, self._environment)
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(f"{json.dumps(str(job))}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            told: Answer = json.loads(line)
            return told
        self._process = None
        with process:
            raise Died(self._why(process.wait()))

    def kill(self) -> None:
        """Kill the process, in the middle of a job, too; it is not asked again."""
        self._ended = True
        if process := self._process:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Close what led to and from a killed process, once nobody listens any more."""
        if self._process:
            with self._process:
                self._process = None

    def _why(self, status: int) -> str:
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}, {following.last_line(self._log)}"


def environment(number: int, device: torch.device, threads: int) -> dict[str, str]:
    """Return what a worker is started with: our own code first, its threads, and its GPU where none is named."""
    made = following.environment(threads)
    if device.type == "cuda" and device.index is None:
        every = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        cards = every.split(",")
        made["CUDA_VISIBLE_DEVICES"] = cards[number % len(cards)]
    return made
