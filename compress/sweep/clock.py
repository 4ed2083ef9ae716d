"""Ratios of times that are known well enough: measured again, longer, until their intervals are narrow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from compress import bench, measure
from compress.context import Report
from compress.contracts import Target
from compress.measure import Figures, Measurement, Time

HALF = 0.01  # of the 95 % interval of a ratio, relative: what budgets are judged with
PROCESSES = (6, 12, 24)
_HOPE = 2.0  # a first interval is a guess: what all processes may yet leave too wide, and be tried
PHASES = {"prefill_ms": "prefill", "decode_ms": "decode", "request_ms": "request"}


def timed(
    folders: Sequence[Path],
    target: Target,
    report: Report,
    costs: Collection[str],
    *,
    half: float = HALF,
    processes: Sequence[int] = PROCESSES,
    clock: Callable[..., Measurement] | None = None,
) -> Measurement:
    """Time engines interleaved, in more and more processes until the ratios of some costs are known within `half`.

    Where even the most processes would leave them far wider, no more are tried.

    Args:
        folders: engine folders; the first is the dense one's, the reference.
        target: device, threads and request.
        report: shows a bar; is told what stays wide.
        costs: times that are to be known, such as `decode_ms`.
        half: half width of the 95 % interval, relative.
        processes: how many to try, ascending; the last is what there is.
        clock: one like `compress.measure.measure`, in its place.
    """
    for count in processes:
        found = (clock or measure.measure)(folders, target, report, processes=count)
        wide = unresolved(found, costs, half)
        if not wide:
            return found
        widest = max(margin(time_of(found.engines[-1], cost)) for cost in wide)
        if widest * bench.reach(processes[-1]) / bench.reach(count) > _HOPE * half:  # as more processes narrow it
            break
    for cost in wide:
        known = 100 * margin(time_of(found.engines[-1], cost))
        report.tell(
            f"{cost.removesuffix('_ms')}: known within {known:.2g} % after {found.processes} processes; closer than "
            f"{100 * half:g} % is not resolvable on this machine"
        )
    return found


def time_of(engine: Figures, cost: str) -> Time | None:
    """Return an engine's time by cost; None where it has no such phase."""
    found: Time | None = getattr(engine, PHASES[cost])
    return found


def margin(time: Time | None) -> float:
    """Return the half width of the 95 % interval of a time's ratio, relative to the ratio."""
    return (time.ratio_high - time.ratio_low) / (2 * time.ratio) if time else 0.0


def unresolved(measured: Measurement, costs: Collection[str], half: float = HALF) -> list[str]:
    """Return the costs whose ratio, of the last engine, is known less well than `half`."""
    return [cost for cost in costs if cost in PHASES and margin(time_of(measured.engines[-1], cost)) > half]
