"""Seconds a step and peak memory of one form of training, in a process of its own.

    python -m benchmarks.perp.clock '{"setup": ..., "cell": ..., "steps": 12, "cache": ...}'     # prints one JSON line

A step is timed from one forward of the model to the next, the first two left out.  Memory is the process's peak while
it trains above what it held just before (model, masks and text loaded): adapters, gradients, moments, activations.
It is taken once more, in another process, with an allocator that gives every large block back at once: otherwise glibc
keeps the short-lived weights of low-rank forms and the peak tells of the allocator, not of the method.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks._ledger import Row
from benchmarks.perp.cells import LORAS, MIDDLE, RANK, Cell
from benchmarks.perp.measure import Bench, Setup
from compress import loading

LARGE = "random-89m"
_STEPS, _LARGE_STEPS, _WARM = 22, 7, 2


def timed(model: str, *, quick: bool) -> list[tuple[Cell, str]]:
    """Return which cells are timed on which model; the learning rate changes no time."""
    cells = [Cell(pattern=MIDDLE, form="full"), Cell(pattern=MIDDLE, form="mask_lora", rank=RANK, norms=True)]
    few = [*cells, Cell(pattern=MIDDLE, form="norms")]
    if quick:
        return [(c, model) for c in cells]
    more = [Cell(pattern=MIDDLE, form="mask_lora", rank=16, norms=True)]
    more += [Cell(pattern=MIDDLE, form=f, rank=RANK, norms=True) for f in LORAS[1:]]
    return [(c, model) for c in (*few, *more)] + [(c, LARGE) for c in few]


def run(setup: Setup, cell: Cell, model: str, cache: Path) -> Row:
    """Return the figures of one cell, measured in a fresh process."""
    large = model == LARGE
    given = {
        "setup": dataclasses.asdict(dataclasses.replace(setup, batch=1) if large else setup),
        "cell": dataclasses.asdict(cell.at(1e-6)),
        "steps": _LARGE_STEPS if large else _STEPS,
        "cache": str(cache),
        "large": large,
    }
    figures = _fresh(given, {})
    own = _fresh({**given, "steps": _WARM + 2}, {"MALLOC_MMAP_THRESHOLD_": str(2**17)})
    return {"title": cell.title, **figures, "added_mib": own["added_mib"], "kept_mib": figures["added_mib"]}


def _fresh(given: Row, environment: dict[str, str]) -> Row:
    """Return what a fresh process measures."""
    command = [sys.executable, "-m", "benchmarks.perp.clock", json.dumps(given)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
    )  # fmt: skip
    figures: Row = json.loads(done.stdout.splitlines()[-1])
    return figures


def _large(setup: Setup, cache: Path) -> str:
    """Write, once, a Llama of 89 M random parameters with the setup's tokenizer; only time and memory mean anything."""
    folder = cache / LARGE
    if not (folder / "tokenizer_config.json").exists():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(loading.locate(setup.model))
        config = LlamaConfig(
            vocab_size=max(4096, len(tokenizer)), hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
            num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=512, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def _measure(given: Row) -> Row:
    setup, cell, cache = Setup(**given["setup"]), Cell(**given["cell"]), Path(given["cache"])
    if given["large"]:
        setup = dataclasses.replace(setup, model=_large(setup, cache))
    setup = dataclasses.replace(setup, steps=given["steps"])
    bench = Bench(setup, cache)
    artifact = bench.pruned(cell.pattern)
    bench.dense = artifact  # one copy of the weights, as in a run
    stamps: list[float] = []
    artifact.model.register_forward_pre_hook(lambda *_: stamps.append(time.perf_counter()))
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    bench.trained(artifact, cell)
    seconds = np.diff(stamps[: setup.steps])[_WARM:]
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    return {
        "seconds_per_step": round(float(middle), 4),
        "quartiles": [round(float(low), 4), round(float(high), 4)],
        "loaded_mib": round(before / 2**20, 1),
        "added_mib": round((_peak() - before) / 2**20, 1),
        "threads": torch.get_num_threads(),
        "tokens_per_step": setup.batch * setup.length,
    }


def _peak() -> int:
    """Return the largest resident size since it was reset, in bytes (Linux; `ru_maxrss` counts the parent's too)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
