"""Graphs of models whose blocks differ, and of linears with branches; `build` compares each with its model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compress import blocks, files, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Target
from compress.engines import Engines
from compress.facts import GridFact
from compress.generate import generate_path
from compress.measure import measure
from exporters.onnx import Onnx, OnnxSettings
from exporters.safetensors import Safetensors
from tests.conftest import branched, lively, quantized, standing, uneven

Tiny = Callable[..., Artifact]
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("mistral", "qwen2", "llama-tied", "roberta")]


def build(artifact: Artifact, folder: Path, precision: Any = "fp32") -> dict[str, Any]:
    target = Target(prompt=16, generate=4, precision=precision)
    return Engines().build(artifact, Onnx(OnnxSettings()), target, folder, Context(folder=folder))


def operators(folder: Path) -> list[str]:
    return [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "opt", "gpt2", "bert", *SLOW])
def test_engines_of_uneven_and_branched_models(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    artifact = branched(uneven(tiny(kind)))
    shape = blocks.of(artifact.model)[1]
    manifest = build(artifact, tmp_path)  # compares with the model
    past = [{"layer": 1, "heads": shape.kv_heads, "head_dim": shape.head_dim}]
    assert manifest["past"] == (past if tree.family(artifact.model).decoder else [])
    assert manifest["parameters"] == sum(p.numel() for p in artifact.model.parameters())
    # What is absent leaves nothing behind: one attention, and one FFN with its activation.
    found = operators(tmp_path)
    assert found.count("Softmax") == 1
    assert sum(found.count(n) for n in ("Sigmoid", "Relu", "Gelu", "Tanh")) == (2 if kind in ("bert", "roberta") else 1)
    names = {i.name for i in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert {f"{n}.{part}" for n in artifact.branches for part in ("a", "b")} <= names


@pytest.mark.parametrize("kind", ["llama", "qwen3", "opt", "gpt2", "bert", "roberta", *SLOW[:3]])
def test_engines_of_linears_that_stand_in(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    artifact = standing(tiny(kind))
    shape, decoder = blocks.of(artifact.model)[1], tree.family(artifact.model).decoder
    manifest = build(artifact, tmp_path)  # compares with the model, a decoder also step by step
    past = [{"layer": 1, "heads": shape.kv_heads, "head_dim": shape.head_dim}]
    assert manifest["past"] == (past if decoder else [])
    found = operators(tmp_path)
    assert found.count("Softmax") == 1
    assert sum(found.count(n) for n in ("Sigmoid", "Relu", "Gelu", "Tanh")) == (2 if kind in ("bert", "roberta") else 1)
    if decoder:
        assert written(Engines().open(tmp_path)) == expected(artifact)


def written(engine: Any, count: int = 5) -> list[int]:
    """Return what an engine writes after some tokens, one token at a time."""
    ids, past, tokens = np.arange(2, 9)[None], engine.empty_past(1), list[int]()
    for _ in range(count):
        total = 7 + len(tokens)
        positions = np.arange(total - ids.shape[1], total)[None]
        logits, past = engine.step(ids, np.ones((1, total), np.int64), positions, past)
        ids = logits[:, -1].argmax(-1)[:, None]
        tokens.append(int(ids[0, 0]))
    return tokens


def expected(artifact: Artifact, count: int = 5) -> list[int]:
    """Return what the model writes, all read anew for every token."""
    ids = torch.arange(2, 9)[None]
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, artifact.model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, 7:].tolist()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bert"])
def test_codes_of_linears_that_stand_in(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    artifact = quantized(branched(standing(tiny(kind))), GridFact(bits=4, group_size=16, zero=True))
    manifest = build(artifact, tmp_path)
    table, (first, second) = tree.family(artifact.model), tree.blocks(artifact.model)
    stand_ins = {f"{first}.{table.qkvo[-1]}", f"{second}.{table.down}"}
    assert stand_ins <= manifest["codes"]["layers"].keys()
    held = {i.name for i in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert not held & {f"{n}.weight" for n in stand_ins}


def test_heads_differ_from_layer_to_layer(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("gpt2")
    blocks.slice_(artifact.model, 0, kv_groups=torch.tensor([0, 1, 3]), neurons=torch.arange(5))
    blocks.slice_(artifact.model, 1, kv_groups=torch.tensor([2]))
    manifest = build(artifact, tmp_path)
    assert [layer["heads"] for layer in manifest["past"]] == [3, 1]
    assert [i["shape"][1] for i in manifest["inputs"][3:]] == [3, 3, 1, 1]
    engine = Engines().open(tmp_path)
    assert [key.shape for key, _ in engine.empty_past(2)] == [(2, 3, 0, 8), (2, 1, 0, 8)]
    ids = np.random.default_rng(3).integers(2, 384, (2, 9))
    past = engine.empty_past(2)
    for start, end in ((0, 5), (5, 6), (6, 9)):
        positions = np.arange(start, end)[None].repeat(2, 0)
        logits, past = engine.step(ids[:, start:end], np.ones((2, end), np.int64), positions, past)
    with torch.no_grad():
        expected = artifact.model(torch.from_numpy(ids)).logits[:, 6:]
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_half_precision_writes_and_is_measured(tiny: Tiny, tmp_path: Path) -> None:
    build(branched(uneven(tiny("llama"))), tmp_path, precision="fp16")
    text = "".join(generate_path(tmp_path, "the quick brown", 4))
    run = [sys.executable, str(tmp_path / "run.py"), "the quick brown", "--tokens", "4"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.rstrip("\n") == text
    timed = measure([tmp_path], Target(prompt=8, generate=2), processes=1, seconds=0.02)
    assert timed.engines[0].decode is not None


def test_a_model_without_any_attention(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    first = replace(blocks.of(artifact.model)[0], heads=0, kv_heads=0, linear_attention=True, ffn=0)
    blocks.shape_(artifact.model, [first, replace(first, linear_attention=False, linear_ffn=True)])
    lively(artifact.model)
    assert build(artifact, tmp_path)["past"] == []
    assert written(Engines().open(tmp_path)) == expected(artifact)


def test_the_plain_folder_tells_who_opens_it(tiny: Tiny, tmp_path: Path) -> None:
    report = QuietReport()
    artifact = branched(uneven(tiny("llama")))
    written = Safetensors(Safetensors.Settings(modelling=False)).export(
        artifact, tmp_path, Context(folder=tmp_path, report=report), None
    )
    assert {"README.md", "branches.safetensors", "compress.json"} <= set(written.files)
    assert report.notes == ["blocks differ or have branches, so that only compress opens this folder"]
    assert "Artifact.load" in (tmp_path / "README.md").read_text()
    again = Artifact.load(tmp_path)
    ids = torch.arange(2, 20)[None]
    assert torch.equal(again.model(ids).logits, artifact.model(ids).logits)
    assert files.read_json(tmp_path / "config.json")["parent_type"] == "llama"
