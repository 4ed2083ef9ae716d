"""What a step of training costs: seconds of the processor, peak memory, and what is kept for the backward.

    python -m benchmarks.low_bit.cost '{"method": "l4q", "case": ..., "count": false}'      # prints one JSON line

Each measurement is a process of its own; methods take turns.  A step is timed from one forward of the model to the
next, the first two left out.  Memory is the process's peak while it trains above what it held just before (model and
text loaded).  What is kept for the backward is counted without noise, in one more step, as the tensors that autograd
saves: all bytes of distinct memory that is no parameter's, and how many of them have the shape of a weight.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import _tools
from benchmarks._ledger import Results, Row
from benchmarks._passes import context_of, through
from benchmarks.low_bit import rivals
from benchmarks.low_bit.ours import ready
from benchmarks.low_bit.trained import opened
from benchmarks.peers import _case
from benchmarks.peers._case import Grid
from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from passes._train import Group, TrainSettings, frozen, loss_on, train_

METHODS = ("lora, peft's", "lora, ours", "qat-lora, plain autograd", "l4q")
LORA = METHODS[0]
ROUNDS, QUICK_ROUNDS, STEPS, WARM = 3, 1, 8, 2
TOKENS, RANK, GRID = 192, 8, "W4 g128"


def run(results: Results, case: Path, *, quick: bool) -> None:
    """Finish the measurements that are not finished yet."""
    for turn in range(QUICK_ROUNDS if quick else ROUNDS):
        for method in METHODS:
            key = f"cost/{method}/{turn}"
            if key not in results.rows and ready("l4q"):
                row = {"key": key, "method": method, **_fresh(method, case, count=False)}
                results.add(row | (_fresh(method, case, count=True) if turn == 0 else {}))
                print(
                    f"{key}: {row['cpu_seconds']:.3f} s of the processor a step, {row['added_mib']:.0f} MiB", flush=True
                )


def _fresh(method: str, case: Path, *, count: bool) -> Row:
    given = json.dumps({"method": method, "case": str(case), "count": count})
    command = [sys.executable, "-m", "benchmarks.low_bit.cost", given]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_tools.environment())
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(method: str, case: Path, *, count: bool) -> Row:
    """Return the figures of one method: time and memory, or what is kept for the backward."""
    torch.set_num_threads(1)
    artifact = _model(case)
    stamps: list[tuple[float, float]] = []
    kept = _Kept(artifact)
    artifact.model.register_forward_pre_hook(lambda *_: stamps.append((time.perf_counter(), time.process_time())))
    before = _case.reset_peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        ids = torch.randint(0, 256, (64, TOKENS), generator=torch.Generator().manual_seed(0))
        context = context_of(Path(folder), training=ids)
        if count:
            with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
                _train(method, artifact, context, 1)
            return {"kept_mib": round(kept.bytes / 2**20, 1), "weights_kept": kept.weights}
        _train(method, artifact, context, STEPS + WARM)
    wall, work = ([b[i] - a[i] for a, b in itertools.pairwise(stamps)][WARM:] for i in (0, 1))
    return {
        "seconds": round(median(wall), 4),
        "cpu_seconds": round(median(work), 4),
        "added_mib": round(_case.peak_mib() - before, 1),
        "loaded_mib": round(before, 1),
    }


class _Kept:
    """What autograd saves."""

    def __init__(self, artifact: Artifact) -> None:
        self.shapes = {tuple(w.weight.shape) for w in tree.block_linears(artifact.model).values()}
        self.known = {p.untyped_storage().data_ptr() for p in artifact.model.parameters()}
        self.bytes = self.weights = 0

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is saved, once, unless it is a parameter."""
        place = tensor.untyped_storage().data_ptr()
        if place not in self.known and not isinstance(tensor, torch.nn.Parameter):
            self.known.add(place)
            self.bytes += tensor.untyped_storage().nbytes()
            self.weights += tuple(tensor.shape) in self.shapes or tuple(tensor.shape[::-1]) in self.shapes
        return tensor


def _train(method: str, artifact: Artifact, context: Context, steps: int) -> None:
    given: dict[str, Any] = {"steps": steps, "lr": 1e-5, "batch": 2, "checkpoint_every": 10**6}
    if method == "l4q":
        through("l4q", {**Grid.of(GRID)._asdict(), **given, "rank": RANK}, artifact, context)
    elif method == "lora, ours":
        through("perp", {"train": ["lora"], "rank": RANK, **given}, artifact, context)
    elif method == LORA:
        _peft(artifact, TrainSettings(**given), context)
    else:
        make: Callable[[Tensor, int], rivals.Lora] = rivals.expression("qat-lora", Grid.of(GRID), RANK)
        rivals.train(artifact, make, TrainSettings(**given), context)


def _peft(artifact: Artifact, settings: TrainSettings, context: Context) -> None:
    """Train LoRA as it is usually done: two thin products beside each linear."""
    names = list(tree.block_linears(artifact.model))
    with frozen(artifact.model, settings, context.device):
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names), artifact.model)
        found = {n: p for n, p in artifact.model.named_parameters() if "lora_" in n}
        train_([Group(found, settings.lr)], loss_on(artifact, settings, context), settings, context)


def _model(case: Path) -> Artifact:
    """Return a Llama of random weights: 4 blocks, hidden 512; only time and memory mean anything."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    return opened(case).after(model=LlamaForCausalLM(config))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measured(asked["method"], Path(asked["case"]), count=asked["count"])))
