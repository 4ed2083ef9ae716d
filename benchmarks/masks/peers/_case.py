"""What every script here does around its library: read a case, prune, write the weights, time and memory.

Runs in a peer's environment, so it needs nothing but torch, transformers and safetensors.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

Prune = Callable[[Any, Any, torch.Tensor, str, str], Any]


def main(peer: str, version: str, prune: Prune) -> None:
    """Prune as the command line says: CASE METHOD PATTERN OUT.

    `prune(model, tokenizer, calibration, method, pattern)` returns the pruned model; calibration is int64
    `[windows, length]`, pattern `50%` or `2:4`.  Seconds, by the clock and of the processor, count the pruning alone;
    memory counts everything above what the process holds once its libraries are imported, the model included.
    """
    case, method, pattern, out = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    calibration = load_file(case / "ids.safetensors")["calibration"]
    tokenizer = AutoTokenizer.from_pretrained(case / "model")
    before = reset_peak_mib()
    model = AutoModelForCausalLM.from_pretrained(case / "model", dtype=torch.float32).eval()
    started, worked = time.perf_counter(), time.process_time()
    model = prune(model, tokenizer, calibration, method, pattern)
    seconds, work = time.perf_counter() - started, time.process_time() - worked
    added = peak_mib() - before
    inside = {n: m.weight.detach() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    weights = {n: w.contiguous() for n, w in inside.items() if ".layers." in n or ".h." in n}
    save_file(weights, out.with_suffix(".safetensors"))
    row = {
        "peer": peer,
        "version": version,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(work, 3),
        "added_mib": round(added, 1),
    }
    out.with_suffix(".json").write_text(json.dumps(row))


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
