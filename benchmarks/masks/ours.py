"""Prune a case with this project's passes: the same command line and files as the scripts of the peers.

python -m benchmarks.masks.ours CASE METHOD PATTERN OUT
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks._passes import context_of, through
from benchmarks.peers import _case
from compress import tree
from compress.artifact import Artifact
from compress.store import give_back_

# As many forwards as the peers take: a block at a time, against what the pruned model itself gives.
LIGHT = {"sequential": "block", "reference": "sparse"}
FROM_DISK = "from disk"  # one block in memory at a time
# Name in the tables -> the pass, and its settings where they are not the defaults.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude": ("magnitude", {}),
    "global": ("magnitude", {"scope": "global"}),
    "wanda": ("wanda", {}),
    "wanda + swaps": ("wanda", {"refine": "swaps"}),
    "ria": ("ria", {}),
    "ria + permute": ("ria", {"permute": True}),
    "sparsegpt": ("sparsegpt", {}),
    "sparsegpt, light": ("sparsegpt", LIGHT),
    "sparsegpt, light, from disk": ("sparsegpt", LIGHT),
    "sparsegpt, plain": (
        "sparsegpt",
        {**LIGHT, "update": "obs"},
    ),
}


def asked(method: str, pattern: str) -> tuple[str, dict[str, Any]]:
    """Return the pass and its settings of a method in the tables."""
    use, settings = METHODS[method]
    share = {"pattern": pattern} if ":" in pattern else {"sparsity": float(pattern.rstrip("%")) / 100}
    return use, {**settings, **share}


def prune(model: Any, tokenizer: Any, calibration: Tensor, method: str, pattern: str) -> Any:
    """Return the pruned model."""
    use, settings = asked(method, pattern)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        tree.linearise_(model)
        context = context_of(Path(folder), calibration=calibration)
        return through(use, settings, Artifact(model=model, tokenizer=tokenizer), context).model


def prune_from_disk(case: Path, method: str, pattern: str, out: Path) -> None:
    """Prune a model whose blocks stay on disk; nothing but time and memory is kept."""
    give_back_()
    calibration = load_file(case / "ids.safetensors")["calibration"]
    use, settings = asked(method, pattern)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        before, started, worked = _case.reset_peak_mib(), time.perf_counter(), time.process_time()
        artifact = Artifact.of(case / "model", "causal-lm", stored=True)
        artifact = through(use, settings, artifact, context_of(Path(folder), calibration=calibration))
        (Path(folder) / "saved").mkdir()
        artifact.save(Path(folder) / "saved")
        row = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - worked,
            "added_mib": _case.peak_mib() - before,
        }
    out.with_suffix(".json").write_text(json.dumps({"peer": "compress", **row}))


if __name__ == "__main__":
    if sys.argv[2].endswith(FROM_DISK):
        torch.set_num_threads(1)
        prune_from_disk(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        _case.main("compress", "", prune)
