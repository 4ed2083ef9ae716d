"""What the builder is asked to build, and the process of its own in which it does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress import bench, bench_tensorrt, files
from compress.context import Report
from compress.contracts import Target
from compress.errors import CompressError
from exporters.tensorrt import _judge

BATCH, LENGTH = 4, 1024  # most that a plan takes unless the target says so
JOB, KIT, KERNELS, CASES, PLAN = "build.json", "kit.py", "kernels.py", "cases.npz", "model"
FILES = (JOB, KIT, KERNELS, CASES, "bench.py", "bench_tensorrt.py")
REFUSED = 3  # exit status of the script
Range = tuple[int, int, int]  # least, usual, most


def limits(target: Target, positions: int | None) -> tuple[int, int]:
    """Return the most sequences and the most tokens of one that a plan takes."""
    length = target.max_length or max(LENGTH, target.prompt + target.generate)
    return target.max_batch or max(BATCH, target.batch), min(length, positions or length)


def profiles(
    inputs: Sequence[Mapping[str, Any]], target: Target, positions: int | None, *, decoder: bool
) -> dict[str, dict[str, list[list[int]]]]:
    """Return by profile the least, usual and most shape of every input of a graph.

    Args:
        inputs: name and shape of each, a number or the name of an axis.
        target: the request, which is the usual case.
        positions: the most tokens that the model takes.
        decoder: whether single tokens follow a past.
    """
    batch, length = limits(target, positions)
    read: Range = (1, target.prompt, length)
    axes: dict[str, dict[str, Range]] = {"prefill": {"sequence": read, "total": read, "past": (0, 0, 0)}}
    if decoder:
        usual = max(1, min(target.prompt + target.generate // 2, length - 1))
        total = (2, usual + 1, max(length, 2))
        axes["decode"] = {"sequence": (1, 1, 1), "past": (1, usual, max(length - 1, 1)), "total": total}
    return {
        kind: {i["name"]: _shapes(i["shape"], {"batch": (1, target.batch, batch), **sizes}) for i in inputs}
        for kind, sizes in axes.items()
    }


def _shapes(shape: Sequence[int | str], sizes: Mapping[str, Range]) -> list[list[int]]:
    return [[axis if isinstance(axis, int) else sizes[axis][k] for axis in shape] for k in range(3)]


def write(folder: Path, job: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write what the kit reads, and the kit itself.

    Args:
        folder: of the engine.
        job: what is to be built, and how near its outputs must come.
        arrays: the cases.
    """
    with files.disk_errors(folder):
        files.write_json(folder / JOB, job)
        np.savez(folder / CASES, allow_pickle=False, **arrays)
        for script in (KIT, KERNELS):
            shutil.copyfile(Path(__file__).with_name(f"_{script}"), folder / script)
        for clock in (Path(bench.__file__), Path(bench_tensorrt.__file__)):
            shutil.copyfile(clock, folder / clock.name)


def plan(folder: Path, flavour: str, report: Report) -> dict[str, Any]:
    """Let the folder's own script build its plan, in a process of its own, and return what it says of it.

    Where the flavour builds only on a GPU and none is here, or it is not installed, the plan is left to the target.

    Raises:
        BadModel: the graph is refused.
        CompressError: the process died.
    """
    if why := _not_here(flavour):
        report.note(f"no plan: {why}; `python {KIT}` builds it on the target")
        job = files.read_json(folder / JOB)
        kept = {k: job[k] for k in ("driver", "weight_streaming", "sparse", "profiles", "compute_capabilities")}
        return {"flavour": flavour, "version": None, "plan": None, "sha256": None, **kept}
    command = [sys.executable, str(folder / KIT), "--build", PLAN]
    surroundings = {**os.environ, "PYTHONSAFEPATH": "1"}  # our folder's names must not hide the libraries'
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == REFUSED:
        raise _judge.refused(json.loads(last), flavour)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CompressError(f"{flavour}: the builder ended with status {done.returncode}: {said}")
    built: dict[str, Any] = json.loads(last)
    return built


def _not_here(flavour: str) -> str | None:
    """Return why no plan can be built on this machine, or None."""
    import torch

    if flavour not in _judge.installed():
        return f"{flavour} is not installed"
    if flavour == "tensorrt" and not torch.cuda.is_available():
        return "tensorrt builds only where a GPU is"
    return None
