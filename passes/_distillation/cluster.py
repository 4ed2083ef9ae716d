"""Workers of a Ray cluster: the one at `RAY_ADDRESS`, or one that is started on this machine and ends with the step.

Jobs and what they read lie in the run folder, so that it must be one that all machines of a cluster see.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.context import Context
from compress.errors import Unavailable
from passes._distillation.job import Answer, answer
from passes._distillation.processes import Died, Submit


@contextmanager
def hands(context: Context, threads: int) -> Iterator[tuple[Submit, int]]:
    """Yield what takes jobs, and how many at once keep the cluster busy while one more is being prepared.

    Raises:
        Unavailable: Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a cluster that Ray starts tells its maker of itself
    ray = _ray()
    address = os.environ.get("RAY_ADDRESS")
    ours = not ray.is_initialized()
    if ours:
        cores = {} if address else {"num_cpus": context.workers * threads, "include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **cores)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).partition("\n")[0]
            raise Unavailable(f"[compute] engine = 'ray': no cluster could be reached or started ({first})") from None
    card = {"num_gpus": 1} if context.device.type == "cuda" else {}
    remote = ray.remote(num_cpus=threads, max_retries=0, **card)(answer)

    def ask(job: Path) -> Answer:
        try:
            told: Answer = ray.get(remote.remote(job))
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            raise Died(str(error).partition("\n")[0]) from None
        return told

    ahead = max(int(ray.cluster_resources().get("CPU", 1)) // threads, 1) + 1
    waiting = ThreadPoolExecutor(ahead)
    try:
        yield (lambda job: waiting.submit(ask, job)), ahead
    finally:
        waiting.shutdown(wait=False, cancel_futures=True)
        if ours:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        what = "[compute] engine = 'ray' needs Ray, which is not installed"
        raise Unavailable(f"{what}; pip install compress-engine[ray], or engine = 'local'") from None
    return ray
