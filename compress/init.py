"""A first pipeline file for a model: commented, without faults, ready to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from compress import files, loading
from compress.errors import BadSettings
from compress.facts import Facts, Task
from compress.families import family_of

# A tab comes before each comment that is to be aligned.
_FILE = """\
# Prune {model}, retrain it a little without touching a zero, export it for {hardware} and measure it.
#   compress check {file}      names every fault before any work
#   compress plan {file}       tells what each step will cost
#   compress run {file}        runs it; run it again to go on where it stopped

[run]
folder = {folder}\t# everything this run writes
seed = 0

[compute]\t# where the passes run
device = {device}
dtype = "float32"\t# or "bfloat16"

[model]
source = {source}\t# a folder, a hub id (owner/name) or "demo"
task = {task}

# Data are built in ("python-docs", "python-source"), a txt, jsonl, csv or parquet file, a folder or a hub data set.
[data.{role}]\t# what retraining sees
source = {data}
windows = {windows}
length = {length}\t# tokens of one window

[data.evaluation]\t# what quality is measured on; never what retraining saw
source = {data}
length = {length}

[[target]]\t# what the engine is for; repeat the table for more
name = {device}
runtime = "onnxruntime"
device = {device}
threads = 1
batch = 1
prompt = {prompt}\t# tokens of the request whose latency counts
generate = {generate}
precision = {precision}\t# "fp32", "fp16" or, for TensorRT, "bf16"

[[pass]]\t# prune; `compress list magnitude` tells all settings
use = "magnitude"
{pattern}

[[pass]]\t# retrain a few percent of the parameters under the mask
use = "perp"
mode = {mode}\t# "retrain" end to end, or "reconstruct" block by block
train = ["norms", "mask_lora"]
steps = 200

[[export]]
use = "onnx"
"""
_N_OF_M = 'pattern = "2:4"\t# of every 4 weights keep 2; or "unstructured" with sparsity = 0.5'
_UNSTRUCTURED = 'pattern = "unstructured"\nsparsity = 0.5\t# share of zeros'


def write(model: str, path: Path | str, *, target: Literal["cpu", "cuda"] = "cpu", data: str | None = None) -> Path:
    """Write a pipeline file that runs, and return its path.

    Args:
        model: a folder, a hub id or `demo`; its configuration decides task, lengths and pattern.
        path: the file; must not be there yet.
        target: the hardware, for the passes and for the engine.
        data: source of training and evaluation; the built-in texts unless given.

    Raises:
        BadModel: the model cannot be opened.
        BadSettings: the file is there already, or the task needs labelled data and none are given.
    """
    path = Path(path)
    if path.exists():
        raise BadSettings(f"{path}: is there already; give another name with -o, or delete it")
    task = task_of(model)
    if task in ("classification", "regression") and data is None:
        raise BadSettings(
            f"{model} is for {task}, which needs labelled data; give --data: a jsonl, csv or parquet file, or a hub "
            "data set such as glue/sst2"
        )
    text = _content(model, path, target, data or "python-docs", loading.facts_of(model, task))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, text)
    return path


def task_of(model: str) -> Task:
    """Return the task that a model's configuration names; a decoder without a head is a language model."""
    config = loading.read_config(loading.locate(model))
    named = " ".join(config.architectures or [])
    if "SequenceClassification" in named:
        return "regression" if config.num_labels == 1 else "classification"
    return "causal-lm" if family_of(config.model_type).decoder else "embedding"


def _content(model: str, path: Path, target: str, data: str, facts: Facts) -> str:
    length = min(256, facts.positions or 256)
    generate = min(64, length // 2) if facts.task == "causal-lm" else 0
    divides = all(inputs % 4 == 0 for _, inputs in facts.shapes.values())
    has_loss = facts.task != "embedding"
    values: dict[str, Any] = {
        "folder": f"runs/{path.stem}",
        "device": target,
        "source": model,
        "task": facts.task,
        "data": data,
        "windows": 2048 if has_loss else 128,
        "length": length,
        "prompt": min(128, length - generate),
        "generate": generate,
        "precision": "fp16" if target == "cuda" else "fp32",
        "mode": "retrain" if has_loss else "reconstruct",
    }
    text = _FILE.format(
        model=" ".join(model.split()),
        hardware=target,
        file=path.name,
        role="training" if has_loss else "calibration",
        pattern=_N_OF_M if divides else _UNSTRUCTURED,
        **{name: json.dumps(value, ensure_ascii=False) for name, value in values.items()},
    )
    return "".join(f"{_aligned(line)}\n" for line in text.splitlines())


def _aligned(line: str) -> str:
    code, tab, comment = line.partition("\t")
    return f"{code:<29} {comment}" if tab else code
