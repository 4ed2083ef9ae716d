"""What every script here does around its library: read a case, change its weights, write them, time and memory.

Runs in a peer's environment, so it needs nothing but torch, transformers and safetensors.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

Change = Callable[[Any, Any, torch.Tensor, str, str], Any]


class Grid(NamedTuple):
    """What is asked of codes: `W4 g128` or `W4 g128 asymmetric`."""

    bits: int
    group_size: int
    symmetric: bool

    @staticmethod
    def of(form: str) -> Grid:
        """Read a form."""
        bits, group_size, *rest = form.split()
        return Grid(int(bits[1:]), int(group_size[1:]), not rest)


def main(peer: str, version: str, change: Change) -> None:
    """Change a model as the command line says: CASE METHOD FORM OUT.

    `change(model, tokenizer, calibration, method, form)` returns the changed model, or its changed parameters by name;
    calibration is int64 `[windows, length]`, form a pattern of zeros (`50%`, `2:4`) or a `Grid`.  Seconds, by the clock
    and of the processor, count the change alone; memory counts everything above what the process holds once its
    libraries are imported, the model included.
    """
    case, method, form, out = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    calibration = load_file(case / "ids.safetensors")["calibration"]
    tokenizer = AutoTokenizer.from_pretrained(case / "model")
    before = reset_peak_mib()
    model = AutoModelForCausalLM.from_pretrained(case / "model", dtype=torch.float32).eval()
    names = [n for n, _ in model.named_parameters()]
    started, worked = time.perf_counter(), time.process_time()
    changed = change(model, tokenizer, calibration, method, form)
    seconds, work = time.perf_counter() - started, time.process_time() - worked
    added = peak_mib() - before
    save_file(changed if isinstance(changed, dict) else parameters(changed, names), out.with_suffix(".safetensors"))
    row = {
        "peer": peer,
        "version": version,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(work, 3),
        "added_mib": round(added, 1),
    }
    out.with_suffix(".json").write_text(json.dumps(row))


def parameters(model: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """Return the parameters of the blocks by name, float32, linears `[out, in]`."""
    found = {}
    for name in (n for n in names if ".layers." in n or ".h." in n):
        module, _, leaf = name.rpartition(".")
        inside = model.get_submodule(module)
        value = getattr(inside, leaf).detach().float()
        turned = value.T if type(inside).__name__ == "Conv1D" and leaf == "weight" else value
        found[name] = turned.contiguous().clone()
    return found


def reset_peak_mib() -> float:
    """Let the peak of this process start anew (Linux) and return what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_mib() -> float:
    """Return the highest memory since the last reset."""
    return _status("VmHWM")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024
