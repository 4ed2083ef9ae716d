"""Run the quickstart's pipeline on the geometry of a 0.5 B model with random weights: peak memory and minutes.

    python benchmarks/large/run.py --work runs/large            # 24 layers, 494 M parameters
    python benchmarks/large/run.py --work runs/large --steps 2 --windows 8   # less retraining, less evaluation

Random weights say nothing of quality; memory, disk and time are those of a real model of this shape.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from compress import loading

ROOT = Path(__file__).parents[2]


def make(folder: Path) -> None:
    """Write a model of the geometry of a 0.5 B Qwen2 with random weights and the demo model's tokenizer."""
    config = Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(loading.DEMO / name, folder / name)


def watch(process: subprocess.Popen[bytes]) -> float:
    """Return the peak resident memory, in MiB, of a process with all its children, sampled while it runs."""
    peak, root = 0.0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [root, *root.children(recursive=True)]
            peak = max(peak, sum(p.memory_info().rss for p in family) / 2**20)
        except psutil.Error:
            pass
        time.sleep(0.2)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the model and the run")
    parser.add_argument("--steps", type=int, help="steps of retraining; default: the example's")
    parser.add_argument("--windows", type=int, help="windows of evaluation; default: the example's")
    args = parser.parse_args()
    work: Path = args.work.resolve()
    model = work / "model"
    if not (model / "model.safetensors").exists():
        make(model)
    text = (ROOT / "examples" / "quickstart.toml").read_text()
    text = text.replace('source = "demo"', f'source = "{model}"').replace('"runs/demo"', f'"{work / "run"}"')
    if args.steps:
        text = re.sub(r"(?m)^steps = \d+", f"steps = {args.steps}", text)
    if args.windows:
        text += f"\n[data.evaluation]\nwindows = {args.windows}\n"
    (work / "large.toml").write_text(text)
    started = time.monotonic()
    command = [sys.executable, "-m", "compress.cli", "run", str(work / "large.toml")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    peak = watch(process)
    result = {
        "parameters": 494_032_768,
        "steps": args.steps or "as in the example",
        "windows": args.windows or "as in the example",
        "minutes": round((time.monotonic() - started) / 60, 1),
        "peak_mib": round(peak),
        "disk_mib": round(sum(f.stat().st_size for f in (work / "run").rglob("*") if f.is_file()) / 2**20),
        "exit_status": process.returncode,
        "step_seconds": {
            f.parent.name: json.loads(f.read_text()).get("seconds")
            for f in sorted((work / "run").rglob("measured.json"))
        },
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=2))
    (work / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
