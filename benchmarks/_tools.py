"""Tools side by side: each changes a case's weights in a process of its own and writes them; how to call one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks._ledger import Row

OURS = "compress"
PEERS = Path(__file__).parent / "peers"
# Peer -> its environment (peers/make.sh) and its script.
SCRIPTS = {
    "llm-compressor": ("llmcompressor", "llm_compressor.py"),
    "modelopt": ("modelopt", "model_optimizer.py"),
    "torchao": ("torchao", "ao.py"),
    "nncf": ("nncf", "nncf_magnitude.py"),
    "gptqmodel": ("gptqmodel", "gptq_model.py"),
    "auto-round": ("autoround", "rounding.py"),
}


def environment() -> dict[str, str]:
    """Return the environment of every measured process: one thread, and large blocks of memory returned at once."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **quiet, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


def call(tool: str, ours: str, peers: Path | None, *, case: Path, method: str, form: str, out: Path) -> Row:
    """Let a tool change a case in a process of its own; return its time and memory, or why it failed.

    Args:
        tool: `compress` or a peer.
        ours: the module that stands for this project, with the command line of the peers' scripts.
        peers: the folder of the peers' environments.
        case: a folder as `_cases` makes it.
        method: a name that the script knows.
        form: what is asked of the weights: a pattern of zeros, or a grid.
        out: where the weights go.
    """
    if tool == OURS:
        command = [sys.executable, "-m", ours]
    elif peers is None:
        raise ValueError(f"{tool} needs the folder of the peers' environments")
    else:
        place, script = SCRIPTS[tool]
        command = [str(peers / place / "bin" / "python"), "-W", "ignore", str(PEERS / script)]
    command += [str(case), method, form, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"failed": lines[-1][:300]}
    found: Row = json.loads(out.with_suffix(".json").read_text())
    return found
