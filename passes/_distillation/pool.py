"""Folders of jobs done side by side, whoever does them: here, in processes of this machine, or on a Ray cluster.

What a job gives does not depend on where it is done, nor on its company.  A worker that dies is replaced, and its job
goes on from its last checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from compress.context import Context
from compress.errors import UserFault
from passes._distillation import cluster, processes
from passes._distillation.job import Answer, Job, answer, fault
from passes._distillation.processes import Died, Submit

_RETRIES = 2  # of a job whose worker died


def hands(context: Context, folder: Path, threads: int, jobs: int) -> AbstractContextManager[tuple[Submit, int]]:
    """Return a context that yields what takes jobs by their folder, and how many it has use for at once.

    Args:
        context: says whether a Ray cluster works, or how many processes of this machine.
        folder: for the workers' logs.
        threads: CPU threads of a job.
        jobs: how many there will be.

    Raises:
        Unavailable: Ray is asked for and not installed.
    """
    if context.cluster == "ray":
        return cluster.hands(context, threads)
    workers = min(context.workers, jobs)
    return processes.hands(workers, context.device, folder, threads) if workers > 1 else _here()


def done(jobs: Iterable[Job], submit: Submit, ahead: int, died: Callable[[str], None]) -> Iterator[Job]:
    """Yield jobs as they are done; the next is asked for when fewer than `ahead` are under way.

    Args:
        jobs: one after the other.
        submit: takes a job by its folder.
        ahead: how many it has use for at once.
        died: is told of workers that died.

    Raises:
        UserFault: a job's worker died again and again.
        CompressError: what the job raised.
    """
    under_way: dict[Future[Answer], Job] = {}
    deaths = Counter[Path]()

    def settled() -> Iterator[Job]:
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            job = under_way.pop(future)
            try:
                wrong = future.result()
            except Died as death:
                deaths[job.folder] += 1
                if deaths[job.folder] > _RETRIES:
                    times = f"{deaths[job.folder]} times"
                    what = f"{job.told}: the process that trained it died {times} ({death})"
                    raise UserFault(f"{what}; fewer workers in [compute] leave each more memory") from None
                died(f"{job.told}: the process that trained it died ({death}); another one goes on")
                under_way[submit(job.folder)] = job
                continue
            if wrong:
                raise fault(wrong)
            yield job

    for job in jobs:
        under_way[submit(job.folder)] = job
        while len(under_way) >= ahead:
            yield from settled()
    while under_way:
        yield from settled()


@contextmanager
def _here() -> Iterator[tuple[Submit, int]]:
    """Do each job at once, in this very process."""

    def submit(folder: Path) -> Future[Answer]:
        future = Future[Answer]()
        future.set_result(answer(folder))
        return future

    yield submit, 1
