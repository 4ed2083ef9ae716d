"""Prune a model that does not fit in memory, from its files: peak memory, seconds, and a kill on the way.

    python benchmarks/large/stream.py --work runs/stream --given 'update = "obs"'   # 24 layers, 0.48 B parameters
    python benchmarks/large/stream.py --work runs/stream --given 'update = "obs"' --hidden 768 --ffn 2048 --limit 600

Random weights in the shape of a Llama are written block by block.  `compress run` then has less memory than they take:
the system refuses it more (RLIMIT_DATA, which counts what a process allocates, libraries' 300 MiB among it).  It is
killed inside a block once half of them are done, and run again.  The weights say nothing of quality.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress import files, loading, tensors, tree
from compress.tensors import Layout

ROOT = Path(__file__).parents[2]
PIPELINE = """
[run]
folder = "{run}"
[compute]
weights = "disk"
threads = {threads}
[model]
source = "{model}"
[data.calibration]
windows = {windows}
length = 256
[data.evaluation]
windows = 2
length = 128
[[pass]]
use = "{use}"
{given}
[[export]]
use = "safetensors"
"""


def config_of(layers: int, hidden: int, ffn: int) -> LlamaConfig:
    """Return the geometry, with the demo model's vocabulary."""
    return LlamaConfig(
        vocab_size=4096, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, dtype="bfloat16",
    )  # fmt: skip


def make(folder: Path, config: Any) -> int:
    """Write a model of random bfloat16 weights that is never held, a file a block; return its parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    parameters = dict(model.named_parameters())
    of = {n: next((b for b in tree.blocks(model) if n.startswith(f"{b}.")), "outside") for n in parameters}
    for part in dict.fromkeys(of.values()):
        layouts = {n: Layout(torch.bfloat16, tuple(p.shape)) for n, p in parameters.items() if of[n] == part}
        tensors.write(folder / f"{part}.safetensors", layouts, partial(_weight, layouts))
    index = {"weight_map": {name: f"{part}.safetensors" for name, part in of.items()}}
    files.write_json(folder / "model.safetensors.index.json", index)
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(loading.DEMO / name, folder / name)
    return sum(p.numel() for p in parameters.values())


def _weight(layouts: dict[str, Layout], name: str) -> torch.Tensor:
    shape = layouts[name].shape
    random = torch.Generator().manual_seed(int(files.digest_of(name)[:12], 16))
    weight = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=random).mul_(0.02)
    return weight.to(torch.bfloat16)


def run(pipeline: Path, limit_mib: int, kill_at: Path | None = None, blocks: int = 0) -> dict[str, Any]:
    """Run a pipeline with limited memory, or kill it a moment after so many changed blocks lie in `partial`.

    Returns:
        seconds, the peak of resident memory in MiB, and the exit status.
    """
    started = time.monotonic()
    command = [sys.executable, "-m", "compress.cli", "run", str(pipeline)]
    limit = partial(resource.setrlimit, resource.RLIMIT_DATA, (limit_mib * 2**20,) * 2)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, preexec_fn=limit)
    ended, status, used = 0, 0, None
    while not ended:
        if kill_at and len(list(kill_at.glob("partial/*/blocks/*.safetensors"))) >= blocks:
            time.sleep(0.2)  # into the next block
            process.kill()
            kill_at = None
        time.sleep(0.05)
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)  # it was waited for here
    peak = round(used.ru_maxrss / 1024) if used else 0
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_rss_mib": peak,
        "exit_status": process.returncode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the model and the run")
    parser.add_argument("--use", default="sparsegpt", help="the pass")
    parser.add_argument("--given", default="", help="its settings, as the pipeline file has them")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1280)
    parser.add_argument("--ffn", type=int, default=3456)
    parser.add_argument("--windows", type=int, default=16, help="calibration windows of 256 tokens")
    parser.add_argument("--limit", type=int, default=1000, help="MiB that the process may allocate")
    args = parser.parse_args()
    work: Path = args.work.resolve()
    shutil.rmtree(work / "run", ignore_errors=True)
    parameters = make(work / "model", config_of(args.layers, args.hidden, args.ffn))
    threads, where = torch.get_num_threads(), {"run": work / "run", "model": work / "model"}
    text = PIPELINE.format(use=args.use, given=args.given, windows=args.windows, threads=threads, **where)
    (work / "stream.toml").write_text(text)
    killed = run(work / "stream.toml", args.limit, work / "run", args.layers // 2)
    resumed = run(work / "stream.toml", args.limit)
    steps = work / "run" / "steps"
    result = {
        "use": args.use,
        "parameters": parameters,
        "weights_mib_in_float32": round(4 * parameters / 2**20),
        "limit_mib": args.limit,
        "killed": killed,
        "resumed": resumed,
        "step_seconds": {f.parent.name: files.read_json(f)["seconds"] for f in sorted(steps.glob("*/measured.json"))},
        "threads": threads,
    }
    print(json.dumps(result, indent=2))
    files.write_json(work / "stream.json", result)


if __name__ == "__main__":
    main()
