"""A first pipeline file for a model: commented, without faults, ready to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from compress import files, loading
from compress.contracts import Facts, Task
from compress.errors import BadSettings
from compress.families import family_of

_N_OF_M = 'pattern = "2:4"\t# of every 4 weights keep 2; or "unstructured" with sparsity = 0.5'
_UNSTRUCTURED = 'pattern = "unstructured"\nsparsity = 0.5\t# share of zeros'
_FILE = """\
# {title}
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

# Texts are built in ("python-docs", "python-source"), a txt, jsonl, csv or parquet file, a folder or a hub data set.
[data.training]\t# what retraining sees
source = "python-docs"
windows = {windows}
length = {length}\t# tokens of one window

[data.evaluation]\t# what quality is measured on; the built-in texts hold theirs out
source = "python-docs"
length = {length}

[[target]]\t# what the engine is for; repeat the table for more
name = {name}
runtime = "onnxruntime"
device = {device}
threads = 1
batch = 1
prompt = {prompt}\t# tokens of the request whose latency counts
generate = {generate}
precision = {precision}\t# "fp32" or "fp16"

[[pass]]\t# prune; `compress list magnitude` tells all settings
use = "magnitude"
{pattern}

[[pass]]\t# retrain a few percent of the parameters under the mask
use = "perp"
train = ["norms", "mask_lora"]
steps = 200

[[export]]
use = "onnx"
"""


def write(model: str, path: Path | str, *, target: Literal["cpu", "cuda"] = "cpu") -> Path:
    """Write a pipeline file that runs, and return its path.

    Args:
        model: a folder, a hub id or `demo`; its configuration decides task, lengths and pattern.
        path: the file; must not be there yet.
        target: the hardware, for the passes and for the engine.

    Raises:
        BadModel: the model cannot be opened, or no built-in text serves its task.
        BadSettings: the file is there already.
    """
    path = Path(path)
    if path.exists():
        raise BadSettings(f"{path}: is there already; give another name with -o, or delete it")
    task = task_of(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, _content(model, path, target, loading.facts_of(model, task)))
    return path


def task_of(model: str) -> Task:
    """Return the task that a model's configuration names; a decoder without a head is a language model."""
    config = loading.read_config(loading.locate(model))
    named = " ".join(config.architectures or [])
    if "SequenceClassification" in named:
        return "regression" if config.num_labels == 1 else "classification"
    return "causal-lm" if family_of(config.model_type).decoder else "embedding"


def _content(model: str, path: Path, target: str, facts: Facts) -> str:
    length = min(256, facts.positions or 256)
    generates = facts.task == "causal-lm"
    generate = min(64, length // 2) if generates else 0
    divides = all(inputs % 4 == 0 for _, inputs in facts.shapes.values())
    values: dict[str, Any] = {
        "folder": f"runs/{path.stem}",
        "device": target,
        "source": model,
        "task": facts.task,
        "name": target,
        "windows": 512,
        "length": length,
        "prompt": min(128, length - generate),
        "generate": generate,
        "precision": "fp16" if target == "cuda" else "fp32",
    }
    shown = {k: json.dumps(v, ensure_ascii=False) for k, v in values.items()}
    title = f"Prune {model}, retrain it a little, export it for {target} and measure it."
    pattern = _N_OF_M if divides else _UNSTRUCTURED
    text = _FILE.format(title=title, file=path.name, pattern=pattern, **shown)
    return "".join(f"{_aligned(line)}\n" for line in text.splitlines())


def _aligned(line: str) -> str:
    code, tab, comment = line.partition("\t")
    return f"{code:<29} {comment}" if tab else code
