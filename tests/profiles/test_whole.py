"""Engines of random weights have the blocks, codes and zeros of the model that they stand in for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from compress import loading, measure, tree
from compress.artifact import Artifact
from compress.contracts import Target
from compress.engines import Engines
from compress.errors import BadSettings
from compress.facts import BlockConfig, GridFact, Planned, Task
from compress.profiling import Build, profiler
from profiles import Choice, _whole, parts_of
from profiles._whole import Wholesale

INT4, INT8 = GridFact(bits=4, group_size=32), GridFact(bits=8, group_size=None, activation="dynamic")
TARGET = Target(prompt=8, generate=2)
_TASKS: dict[str, Task] = {"bert": "classification"}


def _names(model: str, task: Task, build: Build) -> list[str]:
    return list(tree.block_linears(_whole.stand_in(model, task, Build(layout=build.layout)).model))


def _folder(artifact: Artifact, folder: Path) -> str:
    artifact.model.save_pretrained(folder)
    artifact.tokenizer.save_pretrained(folder)
    return str(folder)


def _uneven(model: str, task: Task) -> tuple[BlockConfig, ...]:
    """The model's first block, one without attention and one with a narrow FFN."""
    first = loading.facts_of(model, task).layout[0]
    return first, replace(first, heads=0, kv_heads=0), replace(first, ffn=32)


def test_an_engine_has_the_shapes_codes_and_zeros_of_its_build(tmp_path: Path) -> None:
    layout = _uneven("demo", "causal-lm")
    names = _names("demo", "causal-lm", Build(layout=layout))
    plan = {names[0]: Planned(grid=INT4), names[1]: Planned(grid=INT8), names[2]: Planned(pattern="2:4")}
    build = Build(layout=layout, plan=plan)
    folder = profiler().engine("demo", "causal-lm", build, TARGET, tmp_path / "e")
    manifest = json.loads((folder / "engine.json").read_text())
    assert manifest["codes"]["kernels"] == "integer"  # the fastest, whatever they lose
    assert set(manifest["codes"]["layers"]) == {names[0], names[1]}
    assert manifest["target"]["prompt"] == 8
    assert [p["layer"] for p in manifest["past"]] == [0, 2]
    weights = ir.load(folder / "model.onnx").graph.initializers
    floats = weights[f"{names[2]}.weight"].const_value
    assert floats is not None
    zeros = np.array(floats.numpy() == 0)
    assert zeros.mean() == pytest.approx(0.5)
    engine = Engines().open(folder)
    past = engine.empty_past(1)
    logits, _ = engine.step(np.ones((1, 3), np.int64), np.ones((1, 3), np.int64), np.arange(3)[None], past)
    engine.close()
    assert logits.shape[1] == 3
    assert np.isfinite(logits).all()


def test_a_build_is_timed_beside_the_dense_one(tiny: Any, tmp_path: Path) -> None:
    model = _folder(tiny("llama"), tmp_path / "model")
    layout = loading.facts_of(model, "causal-lm").layout
    whole = profiler().engine(model, "causal-lm", Build(layout=layout), TARGET, tmp_path / "dense")
    bare = tuple(BlockConfig(heads=0, kv_heads=0, head_dim=b.head_dim, ffn=0) for b in layout)
    less = profiler().engine(model, "causal-lm", Build(layout=bare), TARGET, tmp_path / "bare")
    found = measure.measure([whole, less], TARGET, processes=1, seconds=0.05)
    assert found.engines[1].prefill.ratio < 0.7
    assert found.engines[1].decode is not None


@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen3"])
@pytest.mark.parametrize(
    "grid",
    [
        GridFact(bits=4, group_size=16),
        GridFact(bits=4, group_size=16, zero=True),
        GridFact(bits=8, group_size=None, format="fp8"),
    ],
    ids=("plain", "zero", "fp8"),
)
def test_every_family_has_stand_ins(kind: str, grid: GridFact, tiny: Any, tmp_path: Path) -> None:
    model, task = _folder(tiny(kind), tmp_path), _TASKS.get(kind, "causal-lm")
    build = Build(layout=_uneven(model, task))
    plan = {n: Planned(grid=grid, pattern="2:4") for n in _names(model, task, build)}
    branches = {next(iter(plan)): 3}
    made = _whole.stand_in(model, task, Build(layout=build.layout, plan=plan, branches=branches))
    assert tree.ranks(made.model) == branches
    assert tree.layout(made.model) == build.layout
    for name, linear in tree.block_linears(made.model).items():
        made.grids[name].check(name, linear.weight, made.masks[name])
        assert made.grids[name].fact == plan[name].grid
        assert not linear.weight[~made.masks[name]].any()


def test_what_cannot_be_planned_is_told(tmp_path: Path) -> None:
    layout = _uneven("demo", "causal-lm")
    last = _names("demo", "causal-lm", Build(layout=layout))[-1]  # reads 32 neurons
    wide = Build(layout=layout, plan={last: Planned(grid=GridFact(bits=4, group_size=64))})
    for build, told in (
        (wide, "32 inputs have no groups of 64"),
        (Build(layout=layout, plan={"x": Planned()}), "x: is planned"),
    ):
        with pytest.raises(BadSettings, match=told):
            profiler().engine("demo", "causal-lm", build, TARGET, tmp_path / "e")
    with pytest.raises(BadSettings, match="no exporter writes engines for 'abacus'"):
        profiler().engine("demo", "causal-lm", wide, Target(runtime="abacus"), tmp_path / "e")
    assert not list(tmp_path.iterdir())


def test_parts_of_a_runtime_without_stacks_are_exported_whole(tiny: Any, tmp_path: Path) -> None:
    config = tiny("llama").model.config
    layout = tree.layout(tiny("llama").model)[0]
    attention, ffn = (Choice(part=p) for p in parts_of(layout, "llama", config.hidden_size))
    shop = Wholesale(config, "causal-lm", (attention, ffn), Target(runtime="torch"), tmp_path / "trace")
    folders = [shop.build((ffn, ffn), tmp_path / "ffn"), shop.build((attention, ffn, ffn), tmp_path / "both", 300)]
    for folder, past in zip(folders, ([], [0]), strict=True):
        manifest = json.loads((folder / "engine.json").read_text())
        assert [p["layer"] for p in manifest["past"]] == past
    found = measure.measure(folders, Target(runtime="torch", prompt=4, generate=2), processes=1, seconds=0.01)
    assert all(e.prefill.ms > 0 and e.decode for e in found.engines)
    coded = Choice(part=ffn.part, precision="int4-g16")
    with pytest.raises(BadSettings, match="torch has no kernels for codes"):
        Wholesale(config, "causal-lm", (attention, coded), Target(runtime="torch"), tmp_path / "trace")
