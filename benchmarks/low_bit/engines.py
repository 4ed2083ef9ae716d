"""Engines of codes beside the engine of floats: what they weigh, how fast they are, and what they lose.

Speed is that of random Llamas of one or two blocks, at several widths; engines of one width take turns on the clock.
Quality is that of the case's model: the losses of the engine itself on the held-out windows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import _cases
from benchmarks._ledger import Results, Row
from benchmarks._passes import context_of, through
from benchmarks.low_bit.ours import grid, ready
from benchmarks.low_bit.trained import opened
from compress import registry
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Exporter, Target
from compress.data import Examples
from compress.engines import parity
from compress.engines.manifest import seal
from compress.evaluate import EngineScorer
from compress.measure import measure

WIDTHS, QUICK_WIDTHS = (288, 512, 1024, 2048), (288, 512)
BLOCKS = {2048: 1}  # else 2
INT4, CASE_INT4 = "W4 g128", "W4 g64"
INT8 = {"bits": 8, "group_size": -1, "activation": "dynamic"}
FP32 = "fp32"
TARGET = Target(prompt=128, generate=32)


def run(results: Results, case: Path, *, quick: bool) -> None:
    """Finish the widths that are not finished yet, and the case's engines."""
    for width in QUICK_WIDTHS if quick else WIDTHS:
        key = f"engines/{width}"
        if key not in results.rows:
            with tempfile.TemporaryDirectory() as folder:
                results.add({"key": key, **timed(opened(case), width, Path(folder))})
            print(f"{key}: done", flush=True)
    method = "gptq" if ready("gptq") else "rtn"
    if (key := f"engine quality/{method}") not in results.rows:
        with tempfile.TemporaryDirectory() as folder:
            results.add({"key": key, **scored(case, method, Path(folder))})
        print(f"{key}: done", flush=True)


def timed(base: Artifact, width: int, folder: Path) -> Row:
    """Return times and sizes of the engines of a random Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=width, intermediate_size=-(-width * 8 // 3 // 64) * 64,
        num_hidden_layers=BLOCKS.get(width, 2), num_attention_heads=width // 32, num_key_value_heads=width // 32,
        max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip

    def dense() -> Artifact:
        torch.manual_seed(0)
        return base.after(model=LlamaForCausalLM(config).eval())

    made = {
        FP32: dense(),
        "int4": through("rtn", grid(INT4), dense(), context_of(folder)),
        "int8": through("rtn", INT8, dense(), context_of(folder)),
    }
    folders = dict(_written(made, folder))
    clock = measure(list(folders.values()), TARGET, processes=2, seconds=1.0)
    rows = {}
    for name, figures in zip(folders, clock.engines, strict=True):
        assert figures.decode is not None
        phases = {"prefill": figures.prefill, "decode": figures.decode}
        times = {n: [p.ms, p.ratio, p.ratio_low, p.ratio_high] for n, p in phases.items()}
        rows[name] = {"file_mib": round(figures.file_mib, 2), **times}
    return {
        "width": width,
        "blocks": config.num_hidden_layers,
        "clock": clock.clock,
        "flags": clock.flags,
        "rows": rows,
    }


def scored(case: Path, method: str, folder: Path) -> Row:
    """Return sizes and held-out losses of the engines of the case's model, and how far exact ones are from torch."""
    ids = _cases.ids_of(case)
    context = context_of(folder, calibration=ids["calibration"])
    made = {
        FP32: opened(case),
        "int4": through(method, grid(CASE_INT4), opened(case), context),
        "int8": through("rtn", INT8, opened(case), context),
    }
    examples, rows = Examples.of_windows(ids["evaluation"]), {}
    for name, place in _written(made, folder):
        engine = _exporter().open(place, TARGET)
        scorer = EngineScorer(engine)
        losses = []
        for at in range(len(examples)):
            batch = examples.batch([at])
            logits = scorer.logits(batch)[0, :-1].float()
            losses.append(float(functional.cross_entropy(logits, batch["input_ids"][0, 1:])))
        rows[name] = {"losses": [round(v, 6) for v in losses], "file_mib": _mib(place)}
        if name.endswith("exact"):
            rows[name]["parity"] = parity.verify(engine, made[name.split(",")[0]])
        engine.close()
    return {"method": method, "grid": CASE_INT4, "rows": rows}


def _written(made: dict[str, Artifact], folder: Path) -> Iterator[tuple[str, Path]]:
    """Write every artifact in every way that its codes can be multiplied; yield names and folders."""
    exporter = _exporter()
    for name, artifact in made.items():
        place = folder / name
        place.mkdir()
        exported = exporter.export(artifact, place, Context(folder=folder), TARGET)
        seal(artifact, exporter, TARGET, exported, place)
        yield name if name == FP32 else f"{name}, exact", place
        for variant in exported.variants:
            other = folder / f"{name}-{variant.name}".replace(" ", "-")
            other.mkdir()
            seal(artifact, exporter, TARGET, variant.write(other), other)
            yield f"{name}, {variant.name}", other


def _exporter() -> Any:
    plugin = registry.load("exporters", "onnx", Exporter)
    return plugin(plugin.Settings())


def _mib(folder: Path) -> float:
    return round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20, 3)
