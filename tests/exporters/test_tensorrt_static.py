"""Static inputs in plans of TensorRT-RTX: pairs of Q and DQ that the builder takes, cases that know of them, losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from compress import files, registry, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Pass, Target
from compress.engines import parity
from compress.errors import ParityError
from compress.facts import Facts, GridFact
from compress.grid import Grid
from compress.reading import reading, static
from exporters.tensorrt import _engine, _inputs, _job
from tests.exporters.test_tensorrt import HALF, TARGET, Graph, exporter

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
Tiny = Callable[..., Artifact]
INT8 = GridFact(bits=8, group_size=None, activation="static")


@pytest.fixture
def coded(tiny: Tiny, context: Any) -> Callable[..., tuple[Artifact, Context]]:
    """Return a maker of artifacts that `rtn` gave codes and steps, and of contexts with its data."""

    def make(kind: str = "llama", **given: Any) -> tuple[Artifact, Context]:
        artifact = tiny(kind)
        found: Any = registry.load("passes", "rtn", Pass)
        settings = {"bits": 8, "activation": "static", "input_range": "max"} | given
        made = found(found.Settings(**settings)).run(artifact, context(artifact, "rtn"))
        return made, context(artifact, "export")

    return make


def written(given: tuple[Artifact, Context], folder: Path, target: Target = TARGET, **settings: Any) -> dict[str, Any]:
    """Export, and return what the manifest would say."""
    folder.mkdir()
    artifact, context = given
    return dict(exporter(**settings).export(artifact, folder, context, target).facts)


@pytest.mark.parametrize(
    ("kind", "target"),
    [("bert", HALF), *(pytest.param(k, t, marks=pytest.mark.slow) for k, t in (("llama", HALF), ("gpt2", TARGET)))],
)
def test_a_plan_reads_codes(kind: str, target: Target, coded: Any, tmp_path: Path) -> None:
    given = artifact, context = coded(kind)
    told = written(given, tmp_path / "e", target, tolerance=1.0)
    assert told["tensorrt"]["plan"] == "model.plan"
    assert told["codes"]["kernels"] == told["choice"]["chosen"] == "integer"
    assert told["codes"]["simulated"] == []
    lost = told["choice"]["tried"]["integer"]["lost"]
    assert 0 < lost < 1
    assert any("become codes: rounding them loses" in note for note in context.report.notes)
    graph = onnx.load(tmp_path / "e" / "model.onnx").graph
    held = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    rounds = [n for n in graph.node if n.op_type == "QuantizeLinear"]
    steps = {float(g.input_scale) for g in artifact.grids.values()}
    assert {float(held[n.input[1]]) for n in rounds} == steps  # in fp16 too
    assert {(held[n.input[2]].dtype.name, int(held[n.input[2]])) for n in rounds} == {("int8", 0)}
    assert len(rounds) == 2 * 4  # of what queries, keys and values read, their output, the FFN's first ones, its last


def test_expected_outputs_are_those_of_rounded_inputs(
    coded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With onnxruntime in the place of the GPU; and an engine that reads floats is another one."""
    given = artifact, _ = coded()
    monkeypatch.setattr(_job, "_not_here", lambda _: "no need")
    told = written(given, tmp_path / "e", kernels="fast")
    files.write_json(tmp_path / "e" / "engine.json", told)
    monkeypatch.setattr(_engine, "Session", Graph)
    engine = exporter().open(tmp_path / "e", TARGET)
    figures = parity.verify(engine, artifact)
    assert figures["shapes"] == 7
    cases = np.load(tmp_path / "e" / "cases.npz")
    with torch.no_grad():
        plain: Tensor = artifact.model(torch.from_numpy(cases["0/input_ids"])[1:]).logits  # the first one has padding
        with reading(artifact.model, static(artifact.grids)):
            ours: Tensor = artifact.model(torch.from_numpy(cases["0/input_ids"])[1:]).logits
    expected = torch.from_numpy(cases["0/expected logits"])[1:]
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
    off = float((plain - expected).abs().max() / expected.abs().max())
    share = told["tolerance"]["share"]
    assert files.read_json(tmp_path / "e" / "build.json")["tolerance"] == told["tolerance"]
    assert 1e-3 < off <= share - parity.TOLERANCES["fp32"].share < 0.1
    assert figures["logits"]["difference"] < 0.1 * share * figures["logits"]["magnitude"]
    with pytest.raises(ParityError):
        parity.verify(engine, artifact.after(grids={n: _with_step(g, 32) for n, g in artifact.grids.items()}))


def _with_step(grid: Grid, times: float) -> Grid:
    assert grid.input_scale is not None
    return Grid(
        bits=8, group_size=None, codes=grid.codes, scale=grid.scale, activation="static",
        input_scale=grid.input_scale * times,
    )  # fmt: skip


def test_beyond_the_tolerance_inputs_stay_floats(coded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = artifact, context = coded("bert")
    monkeypatch.setattr(_job, "_not_here", lambda _: "no need")
    told = written(given, tmp_path / "e", tolerance=0.0)
    assert (told["choice"]["chosen"], told["codes"]["kernels"]) == ("exact", "exact")
    assert told["choice"]["tried"]["integer"]["lost"] > 0
    assert told["codes"]["simulated"] == [f"inputs of 8 bits: {len(artifact.grids)} linears read floats"]
    assert any("stay floats: rounding them loses" in note for note in context.report.notes)
    assert "tolerance" not in told
    assert "QuantizeLinear" not in {n.op_type for n in onnx.load(tmp_path / "e" / "model.onnx").graph.node}


def test_who_reads_codes_and_why(coded: Any, tmp_path: Path) -> None:
    artifact, given = coded()
    lost = _inputs.choose(artifact, "fast", 0.0, given)["tried"]["integer"]["lost"]
    for tolerance, chosen in ((0.9 * lost, "exact"), (1.1 * lost, "integer")):
        found = _inputs.choose(artifact, "auto", tolerance, given)
        assert found == {"chosen": chosen, "tolerance": tolerance, "windows": 8, "tried": found["tried"]}
        assert found["tried"]["integer"]["lost"] == lost
    bare = Context(folder=tmp_path, report=QuietReport())
    found = _inputs.choose(artifact, "auto", 1.0, bare)
    assert found == {"chosen": "exact", "why": "no data to measure on what rounded inputs lose"}
    assert _inputs.choose(artifact, "exact", 1.0, given) == {}
    found = _inputs.choose(artifact, "fast", 1.0, bare)
    assert found == {"chosen": "integer", "tolerance": None, "windows": 0, "tried": {"integer": {}}}
    assert _inputs.choose(artifact.after(grids={}), "auto", 1.0, given) == {}


@pytest.mark.slow
def test_floats_of_8_bits_read_such_floats(coded: Any, tmp_path: Path) -> None:
    told = written(coded(format="fp8"), tmp_path / "e", HALF, kernels="fast", compute_capabilities=["8.9"])
    assert told["tensorrt"]["plan"] == "model.plan"
    graph = onnx.load(tmp_path / "e" / "model.onnx").graph
    kinds = {i.name: i.data_type for i in graph.initializer}
    zeros = {kinds[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"}
    assert zeros == {onnx.TensorProto.FLOAT8E4M3FN}


def test_data_are_read_where_they_decide(tiny: Tiny) -> None:
    facts: Facts = tree.facts(tiny("llama").model, "causal-lm")
    rounds = facts.after(grids=dict.fromkeys(facts.shapes, INT8))
    assert exporter().data_uses(rounds) == {"calibration"}
    assert exporter(kernels="exact").data_uses(rounds) == frozenset()
    weights = facts.after(grids=dict.fromkeys(facts.shapes, GridFact(bits=8, group_size=None)))
    assert exporter().data_uses(weights) == frozenset()
    exporter().plan(rounds, HALF)
