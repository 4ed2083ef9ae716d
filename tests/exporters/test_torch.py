"""Engines of torch: proved against the model, timed by the clock, the same bytes each time, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress import files, measure, registry
from compress.context import Context
from compress.contracts import Exporter, Target
from compress.engines import Engines
from compress.errors import BadSettings
from compress.facts import GridFact
from compress.tree import facts

TARGET = Target(runtime="torch", prompt=8, generate=2)


@pytest.fixture
def exporter() -> Exporter:
    found = registry.load("exporters", "torch", Exporter)
    return found(found.Settings())


def _built(artifact: Any, exporter: Exporter, folder: Path, target: Target = TARGET) -> Path:
    """Engines.build compares the engine with the model at several shapes."""
    folder.mkdir()
    Engines().build(artifact, exporter, target, folder, Context(folder=folder))
    return folder


@pytest.mark.parametrize(("kind", "task"), [("llama", None), ("gpt2", None), ("bert", "classification")])
def test_the_engine_is_the_model(kind: str, task: Any, tiny: Any, exporter: Exporter, tmp_path: Path) -> None:
    folder = _built(tiny(kind, task) if task else tiny(kind), exporter, tmp_path / "e")
    engine = Engines().open(folder)
    assert engine.providers() == ("torch eager on cpu",)
    engine.close()


def test_blocks_may_be_unlike_and_bytes_are_the_same(tiny: Any, exporter: Exporter, tmp_path: Path) -> None:
    from tests.conftest import uneven

    first, second = (_built(uneven(tiny("llama")), exporter, tmp_path / n) for n in "ab")
    assert files.sha256(first / "model.pt2") == files.sha256(second / "model.pt2")


def test_the_clock_times_it_beside_onnxruntime(tiny: Any, exporter: Exporter, engine_of: Any, tmp_path: Path) -> None:
    folder = _built(tiny("llama"), exporter, tmp_path / "e")
    found = measure.measure([engine_of("llama"), folder], TARGET, processes=1, seconds=0.02)
    assert {"onnxruntime", "torch"} <= set(found.versions)
    assert found.engines[1].decode is not None
    assert found.engines[1].prefill.ratio > 1  # so small a model is nothing but calls


@pytest.mark.slow
def test_a_compiled_engine_is_the_model_too(tiny: Any, exporter: Exporter, tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"runtime": "torch-compiled"})
    folder = _built(tiny("llama"), exporter, tmp_path / "e", target)
    assert files.read_json(folder / "engine.json")["mode"] == "compiled"
    found = measure.measure([folder], target, processes=1, seconds=0.02)
    assert found.engines[0].prefill.ms > 0


def test_what_torch_cannot_do_is_told(tiny: Any, exporter: Exporter) -> None:
    artifact = tiny("llama")
    known = facts(artifact.model, "causal-lm")
    with pytest.raises(BadSettings, match="must be 'torch' or 'torch-compiled', got 'onnxruntime'"):
        exporter.plan(known, Target())
    with pytest.raises(BadSettings, match="must be 'cpu' or 'cuda', got 'tpu'"):
        exporter.plan(known, TARGET.model_copy(update={"device": "tpu"}))
    coded = known.after(grids={next(iter(known.shapes)): GridFact(bits=4, group_size=16)})
    with pytest.raises(BadSettings, match="no kernels for codes"):
        exporter.plan(coded, TARGET)
