"""Models, and the engines of them, which are written where they are missing, with a GPU or without one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks._passes import context_of, through
from benchmarks.gpu.plan import BLOCKS, CHANGES, DEMO, FLAVOURS, Way
from compress import bench_tensorrt, files, loading, registry
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Engine, Exporter
from compress.engines.manifest import seal
from compress.errors import CompressError, Unavailable
from exporters.tensorrt import _job, _judge, _kit
from passes._pruned import facts_of


@cache
def artifact(model: str, change: str = "") -> Artifact:
    """Return a model, changed: the demo model, or a random Llama of that width; in one process always the same."""
    made = _dense(model)
    with tempfile.TemporaryDirectory() as scratch:
        for use, settings in CHANGES[change]:
            made = through(use, settings, made, context_of(Path(scratch)))
    return made


def _dense(model: str) -> Artifact:
    demo = Artifact.of(loading.locate(DEMO), "causal-lm")
    if model == DEMO:
        return demo
    width = int(model)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=demo.model.config.vocab_size, hidden_size=width, intermediate_size=-(-width * 8 // 3 // 128) * 128,
        num_hidden_layers=BLOCKS[width], num_attention_heads=width // 128, num_key_value_heads=width // 128,
        max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    return demo.after(model=LlamaForCausalLM(config).eval())


def exporter(way: Way) -> Exporter:
    """Return what writes and opens engines of a way.

    Raises:
        Unavailable: it is not installed.
    """
    found = registry.load("exporters", way.exporter, Exporter)
    made = found(found.Settings.model_validate(dict(way.settings)))
    if missing := made.available():
        raise Unavailable(missing)
    return made


def written(work: Path, model: str, way: Way) -> Path:
    """Return the folder of an engine, written unless it is there.

    Raises:
        UserFault: it cannot be written here, or at all.
    """
    folder, made = work / model / way.slug, exporter(way)
    if not (folder / "engine.json").is_file():
        changed = artifact(model, way.change)
        made.plan(facts_of(changed), way.target)
        with tempfile.TemporaryDirectory() as scratch, files.atomic_folder(folder) as new:
            exported = made.export(changed, new, Context(folder=Path(scratch)), way.target)
            seal(changed, made, way.target, exported, new)
    return folder


def opened(folder: Path, way: Way) -> tuple[Engine, str | None]:
    """Return an engine, its plan built anew where the one that came does not load on this GPU, and why it had to be.

    Raises:
        Unavailable: the runtime is not here.
        CompressError: the runtime refuses the graph, or the plan that it built itself.
    """
    found, own, why = exporter(way), way.runtime in FLAVOURS, None
    if own and way.runtime not in _judge.installed():
        raise Unavailable(f"{way.runtime} is not installed")
    if not own or not (why := found.absent(folder)):
        try:
            return found.open(folder, way.target), None
        except Unavailable as error:
            if not own:
                raise
            why = str(error)
    job: dict[str, Any] = files.read_json(folder / _job.JOB)
    try:
        about = _kit.build({**job, "compute_capabilities": []}, way.runtime, folder, _kit.LOCAL)
        files.write_json(folder / bench_tensorrt.LOCAL, about)
        return found.open(folder, way.target), why.partition("; ")[0]
    except (_kit.Refused, Unavailable) as error:
        raise CompressError(f"{why.partition('; ')[0]}; and built anew: {error}") from None


def ahead(work: Path, needed: dict[str, tuple[Way, ...]], say: Callable[[str], None]) -> None:
    """Write all engines that can be written here; one that cannot is named, with the reason."""
    for model, ways in needed.items():
        for way in ways:
            try:
                folder = written(work, model, way)
            except CompressError as error:
                say(f"{model}, {way.name}: left out: {error}")
                continue
            plan = "" if way.runtime not in FLAVOURS or any(folder.glob("*.plan")) else ", its plan is left to the GPU"
            say(f"{model}, {way.name}: {folder}{plan}")
        artifact.cache_clear()  # the next model needs the memory
