"""What tests of the ground share: pipelines over a tiny model, foreign plug-ins, and engines that fit in the head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifact import Artifact

TEXT = "the quick brown fox jumps over the lazy dog; a model is pruned and retrained, and no zero is lost. "
HIDDEN, VOCABULARY, HEADS, HEAD = 96, 64, 2, 8


def lay(root: Path, artifact: Artifact) -> Path:
    """Lay a model and a text, `model` and `text.txt`, into a folder; return the folder."""
    artifact.model.save_pretrained(root / "model")
    artifact.tokenizer.save_pretrained(root / "model")
    (root / "text.txt").write_text(TEXT * 60)
    return root


def head(run: Path, model: Path, text: Path, compute: str = "threads = 1", task: str = "", **windows: int) -> str:
    """Return how a pipeline file begins: all but passes, targets and exports; `windows` are those of each data."""
    kind = f'task = "{task}"\n' if task else ""
    data = (f'[data.{n}]\nsource = "{text}"\nwindows = {count}\nlength = 32\n' for n, count in windows.items())
    return f'\n[run]\nfolder = "{run}"\n[compute]\n{compute}\n[model]\nsource = "{model}"\n{kind}{"".join(data)}'


def steps_in(run: Path) -> list[str]:
    """Return the names of the steps that a run folder keeps, without their keys: `01-dense`."""
    return sorted(step.name.rpartition("-")[0] for step in (run / "steps").iterdir())


def install(site: Path, module: str, code: str, **passes: str) -> None:
    """Install a module into a folder, as pip would, whose classes are passes of these names."""
    about = site / f"{module}-1.0.dist-info"
    about.mkdir(parents=True)
    (site / f"{module}.py").write_text(code)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    points = "".join(f"{name} = {module}:{which}\n" for name, which in passes.items())
    (about / "entry_points.txt").write_text(f"[compress.passes]\n{points}")


@pytest.fixture
def small_engine(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of engine folders: `small_engine("a", layers=2)`; `decoder=False` for an encoder."""

    def make(name: str, *, layers: int = 2, decoder: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        onnx.save(_model(layers, decoder), folder / "model.onnx")
        manifest = {
            "graph": "model.onnx",
            "target": {"name": "cpu", "prompt": 32, "generate": 8, "runtime": "onnxruntime"},
        }
        (folder / "engine.json").write_text(json.dumps(manifest), encoding="utf-8")
        return folder

    return make


def _model(layers: int, decoder: bool) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {"embedding": rng.standard_normal((VOCABULARY, HIDDEN))}
    nodes = [helper.make_node("Gather", ["embedding", "input_ids"], ["x0"])]
    for i in range(layers):
        weights[f"w{i}"] = rng.standard_normal((HIDDEN, HIDDEN)) / HIDDEN**0.5
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"]))
        nodes.append(helper.make_node("Tanh", [f"y{i}"], [f"x{i + 1}"]))
    weights["head"] = rng.standard_normal((HIDDEN, VOCABULARY if decoder else 3))
    inputs = [_value("input_ids", ["batch", "new"], TensorProto.INT64)]
    inputs.append(_value("attention_mask", ["batch", "total"], TensorProto.INT64))
    outputs = [_value("logits", ["batch", "new", VOCABULARY] if decoder else ["batch", 3])]
    integers = {"axis": np.array([1]), "shape": np.array([0, 0, HEADS, HEAD])}
    if decoder:
        weights["keys"] = rng.standard_normal((HIDDEN, HEADS * HEAD))
        inputs.append(_value("position_ids", ["batch", "new"], TensorProto.INT64))
        nodes.append(helper.make_node("MatMul", [f"x{layers}", "head"], ["logits"]))
        nodes.append(helper.make_node("MatMul", ["x0", "keys"], ["k0"]))
        nodes.append(helper.make_node("Reshape", ["k0", "shape"], ["k1"]))
        nodes.append(helper.make_node("Transpose", ["k1"], ["k2"], perm=[0, 2, 1, 3]))
        for kind in ("key", "value"):
            inputs.append(_value(f"past_key_values.0.{kind}", ["batch", HEADS, "past", HEAD]))
            outputs.append(_value(f"present.0.{kind}", ["batch", HEADS, "total", HEAD]))
            nodes.append(helper.make_node("Concat", [inputs[-1].name, "k2"], [outputs[-1].name], axis=2))
    else:
        nodes.append(helper.make_node("ReduceMean", [f"x{layers}", "axis"], ["mean"], keepdims=0))
        nodes.append(helper.make_node("MatMul", ["mean", "head"], ["logits"]))
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()]
    constants += [numpy_helper.from_array(v, n) for n, v in integers.items() if n in used]
    graph = helper.make_graph(nodes, "small", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _value(name: str, shape: list[str | int], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
