"""Codes in ONNX files: the very ones of the artifact, in every form, and engines that are the model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from compress import blocks, files, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Target
from compress.engines import Engines
from compress.facts import GridFact
from compress.generate import generate_path
from compress.grid import Grid, bounds
from exporters.onnx import Onnx, OnnxSettings
from passes import _quant
from tests.conftest import branched, lively, uneven

Tiny = Callable[..., Artifact]
TARGET = Target(prompt=16, generate=4)
LEVEL = 1e-5  # of the largest logit, which exact kernels stay within


def quantized(artifact: Artifact, fact: GridFact, only: str = "", **masks: Tensor) -> Artifact:
    """Return the artifact with codes in every linear of the blocks, or in those with `only` in their names."""
    linears = {n: m for n, m in tree.block_linears(artifact.model).items() if only in n}
    grids = {}
    for name, linear in linears.items():
        size = fact.group_size if fact.group_size and fact.group_size < linear.in_features else None
        own = GridFact(bits=fact.bits, group_size=size, zero=fact.zero, activation=fact.activation)
        made = _quant.grid(linear.weight.data, _quant.span(linear.weight.data, own), own)
        if fact.offset:
            offset = torch.rand(made.scale.shape, generator=torch.Generator().manual_seed(1)) / 8
            made = Grid(bits=own.bits, group_size=size, codes=made.codes, scale=made.scale, offset=offset)
        grids[name] = made
        linear.weight.data = made.dequantized()
    return artifact.after(grids=grids)


def build(artifact: Artifact, folder: Path, target: Target = TARGET, **settings: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return Engines().build(artifact, Onnx(OnnxSettings(**settings)), target, folder, Context(folder=folder))


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(folder / "model.onnx").graph.initializer}


def off(folder: Path) -> float:
    """Return how far logits are from the model's, as a share of the largest."""
    found = files.read_json(folder / "measured.json")["parity"]
    found = found[0] if isinstance(found, list) else found
    return float(found["logits"]["difference"] / found["logits"]["magnitude"])


def test_an_engine_of_codes(tiny: Tiny, tmp_path: Path) -> None:
    artifact = quantized(tiny("llama"), GridFact(bits=4, group_size=16))
    manifest = build(artifact, tmp_path)
    assert off(tmp_path) < LEVEL
    assert set(manifest["codes"]["layers"]) == set(artifact.grids)
