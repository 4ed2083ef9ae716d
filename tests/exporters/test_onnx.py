"""Graphs of every family against the model, byte for byte and number for number."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from transformers import PreTrainedModel

from compress import blocks, files, measure, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Target
from compress.engines import Engines
from compress.errors import BadSettings, Unavailable, UserFault
from exporters import _graph
from exporters.onnx import Onnx, OnnxSettings

Tiny = Callable[..., Artifact]
EngineOf = Callable[..., Path]

COMMON = ("llama", "qwen3", "opt", "gpt2")
RARE = ("mistral", "qwen2", "llama-tied")
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in RARE]


def build(artifact: Artifact, folder: Path, opset: Any = 20) -> dict[str, Any]:
    target = Target(prompt=16, generate=4)
    return Engines().build(artifact, Onnx(OnnxSettings(opset=opset)), target, folder, Context(folder=folder))


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(folder / "model.onnx").graph.initializer}


def reference(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The model's own way with a padded batch: its own masks, no cache."""
    positions = torch.from_numpy(np.maximum(mask.cumsum(1) - 1, 0))
    with torch.no_grad():
        logits: Any = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), position_ids=positions).logits
    return np.asarray(logits.numpy())


# -- decoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*COMMON, *SLOW])
def test_reading_piece_by_piece_equals_reading_at_once(kind: str, tiny: Tiny, engine_of: EngineOf) -> None:
    ids = np.random.default_rng(3).integers(2, 384, (3, 21))
    mask = np.ones_like(ids)
    mask[0, :5], mask[2, :1] = 0, 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    expected = reference(tiny(kind).model, ids, mask)
    engine = Engines().open(engine_of(kind))
    past = engine.empty_past(3)
    for start, end in ((0, 12), (12, 13), (13, 20), (20, 21)):
        logits, past = engine.step(ids[:, start:end], mask[:, :end], positions[:, start:end], past)
        real = mask[:, start:end] > 0
        # Sums in another order differ by a few 1e-7; the tokens of padding may be anything, but finite.
        np.testing.assert_allclose(logits[real], expected[:, start:end][real], atol=2e-6)
        assert np.isfinite(logits).all()
    assert all(array.shape[2] == 21 for pair in past for array in pair)
    engine.close()


@pytest.mark.parametrize("kind", [*COMMON, *SLOW])
def test_the_graph_is_valid_and_says_what_it_takes(kind: str, engine_of: EngineOf) -> None:
    folder = engine_of(kind)
    graph = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 20)]
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.graph.input, *graph.graph.output)
    }
    heads, width = (4, 8) if kind in ("opt", "gpt2") else (2, 16 if kind in ("qwen3", "llama-tied") else 8)
    pasts = {f"past_key_values.{i}.{p}": ["batch", heads, "past", width] for i in (0, 1) for p in ("key", "value")}
    presents = {f"present.{i}.{p}": ["batch", heads, "total", width] for i in (0, 1) for p in ("key", "value")}
    assert shapes == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "total"],
        "position_ids": ["batch", "sequence"],
        **pasts,
        "logits": ["batch", "sequence", 384],
        **presents,
    }
    manifest = files.read_json(folder / "engine.json")
    assert {v["name"]: v["shape"] for v in (*manifest["inputs"], *manifest["outputs"])} == shapes


def test_a_layer_without_attention_has_no_past(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    blocks.slice_(artifact.model, 0, kv_groups=torch.tensor([], dtype=torch.int64))
    manifest = build(artifact, tmp_path)
    assert manifest["past"] == [{"layer": 1, "heads": 2, "head_dim": 8}]
    assert [i["name"] for i in manifest["inputs"]][3:] == ["past_key_values.1.key", "past_key_values.1.value"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_windows_of_attention_hold(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny(kind)
    config: Any = artifact.model.config
    config.sliding_window = 8
    if kind != "mistral":  # one layer with a window, one without
        changed = config.to_dict() | {
            "use_sliding_window": True,
            "layer_types": ["full_attention", "sliding_attention"],
        }
        model = type(artifact.model)(type(config)(**changed | {"sliding_window": 8})).train(False)
        model.load_state_dict(artifact.model.state_dict())
        artifact = artifact.after(model=model)
    build(artifact, tmp_path)
    ids = np.random.default_rng(0).integers(2, 384, (1, 40))
    expected = reference(artifact.model, ids, np.ones_like(ids))
    unlimited = reference(tiny(kind).model, ids, np.ones_like(ids))
    assert np.abs(expected - unlimited).max() > 1e-3  # else this would show nothing
    engine = Engines().open(tmp_path)
    positions = np.arange(40)[None]
    _, past = engine.step(ids[:, :39], np.ones((1, 39), np.int64), positions[:, :39], engine.empty_past(1))
    logits, _ = engine.step(ids[:, 39:], np.ones((1, 40), np.int64), positions[:, 39:], past)
    np.testing.assert_allclose(logits[:, 0], expected[:, -1], atol=2e-6)


# -- encoders ---------------------------------------------------------------------------------------------------------


def encoded(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray, types: np.ndarray) -> Any:
    given = (torch.from_numpy(a) for a in (ids, mask, types))
    with torch.no_grad():
        return model(**dict(zip(("input_ids", "attention_mask", "token_type_ids"), given, strict=True)))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_encoders_ignore_padding_and_heed_types(kind: str, tiny: Tiny, engine_of: EngineOf) -> None:
    draw = np.random.default_rng(5)
    ids, types = draw.integers(2, 384, (3, 12)), draw.integers(0, 2, (3, 12))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    ids[1, 7:] = 1  # the padding token, by which RoBERTa counts positions
    expected = encoded(tiny(kind).model, ids, mask, types).logits.numpy()
    engine = Engines().open(engine_of(kind))
    np.testing.assert_allclose(engine.encode(ids, mask, types), expected, atol=1e-6)
    alone = engine.encode(ids[1:2, :7], mask[1:2, :7], types[1:2, :7])
    np.testing.assert_allclose(alone[0], expected[1], atol=1e-6)
    assert np.abs(engine.encode(ids, mask) - expected).max() > 1e-4  # without types it is another text
    onnx.checker.check_model(onnx.load(engine_of(kind) / "model.onnx"), full_check=True)
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2", "opt"])
@pytest.mark.parametrize("task", ["regression", "embedding", "classification"])
def test_every_task_of_texts(kind: str, task: str, tiny: Tiny, engine_of: EngineOf) -> None:
    ids = np.random.default_rng(5).integers(2, 384, (2, 12))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    engine = Engines().open(engine_of(kind, task))
    found = engine.encode(ids, mask)
    model: Any = tiny(kind, task).model
    for row, length in ((0, 12), (1, 7)):  # one by one, since a model without a padding token takes no padded batch
        with torch.no_grad():
            result = model(input_ids=torch.from_numpy(ids[row : row + 1, :length]))
        expected = result.last_hidden_state.mean(1) if task == "embedding" else result.logits
        np.testing.assert_allclose(found[row], expected[0].numpy(), atol=2e-6)
    engine.close()


# -- weights ----------------------------------------------------------------------------------------------------------


def test_zeros_stay_zeros_under_their_names(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    linears = tree.block_linears(artifact.model)
    masks = {
        n: torch.rand(m.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5 for n, m in linears.items()
    }
    for name, mask in masks.items():
        linears[name].weight.data *= mask
    before = {n: t.clone() for n, t in artifact.model.state_dict().items()}
    build(artifact.after(masks=masks), tmp_path)
    found = tensors(tmp_path)
    for name in masks:
        weight = found[f"{name}.weight"].T
        assert np.array_equal(weight, before[f"{name}.weight"].numpy())
        assert (weight[~masks[name].numpy()] == 0).all()
        assert np.count_nonzero(weight) == int(masks[name].sum())
    after = artifact.model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())


def test_a_tied_embedding_is_stored_once(tiny: Tiny) -> None:
    model = tiny("llama-tied").model
    sizes = model.config.to_dict() | {"vocab_size": 4096, "num_hidden_layers": 1}
    wide = type(model)(type(model.config)(**sizes)).train(False)
    graph = _graph.decoder(wide, "fp32", 20)
    large = [v for v in graph.model.graph.initializers.values() if v.const_value and v.const_value.size >= 4096 * 32]
    assert len(large) == 1


def test_float16_is_of_the_graph_and_logits_stay_float32(tiny: Tiny, engine_of: EngineOf) -> None:
    folder = engine_of("llama", None, "fp16")
    manifest = files.read_json(folder / "engine.json")
    types = {v["name"]: v["dtype"] for v in (*manifest["inputs"], *manifest["outputs"])}
    assert manifest["precision"] == "fp16"
    assert {t for n, t in types.items() if "key" in n or "value" in n} == {"float16"}
    assert types["logits"] == "float32"
    found, model = tensors(folder), tiny("llama").model
    for name, linear in tree.block_linears(model).items():
        assert np.array_equal(found[f"{name}.weight"].T, linear.weight.detach().half().numpy())
    assert found["model.rotary_emb.inv_freq"].dtype == np.float32
    figures = files.read_json(folder / "measured.json")["parity"]
    assert 0 < figures["logits"]["difference"] < 2e-3 * figures["logits"]["magnitude"]
    engine = Engines().open(folder)
    assert engine.empty_past(2)[0][0].dtype == np.float16
    # Padding alone has no allowed key; in float16 its scores must not overflow and poison the rest.
    ids, mask = np.full((1, 6), 7), np.array([[0, 0, 0, 1, 1, 1]])
    logits, past = engine.step(ids, mask, np.maximum(mask.cumsum(1) - 1, 0), engine.empty_past(1))
    assert np.isfinite(logits).all()
    assert all(np.isfinite(array).all() for pair in past for array in pair)
    engine.close()


def test_large_weights_go_to_a_side_file(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graph, "SIDE_FILE_BYTES", 1000)
    manifest = build(tiny("bert"), tmp_path, opset=21)  # verified on the way
    assert {"model.onnx", "model.onnx.data"} <= set(manifest["files"])
    assert (tmp_path / "model.onnx").stat().st_size < (tmp_path / "model.onnx.data").stat().st_size
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 21)]


# -- the same again ---------------------------------------------------------------------------------------------------


def test_exporting_changes_nothing_says_nothing_and_repeats_itself(
    tiny: Tiny, engine_of: EngineOf, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = engine_of("llama")
    artifact = tiny("llama")
    before = {n: t.clone() for n, t in artifact.model.state_dict().items()}
    artifact.model.train()
    artifact.model.model.layers[0].eval()
    capfd.readouterr()
    Onnx(OnnxSettings()).export(artifact, tmp_path, Context(folder=tmp_path), Target())
    assert (tmp_path / "model.onnx").read_bytes() == (first / "model.onnx").read_bytes()
    assert capfd.readouterr() == ("", "")
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert artifact.model.training
    assert not artifact.model.model.layers[0].training
    assert all(p.requires_grad for p in artifact.model.parameters())
    after = artifact.model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())


def test_nothing_of_the_making_is_in_the_graph(engine_of: EngineOf) -> None:
    content = (engine_of("llama") / "model.onnx").read_bytes()
    for word in (b".py", b"stack_trace", str(Path.cwd()).encode(), b"site-packages"):
        assert word not in content


AGAIN = """
import sys, torch, transformers as tf
from pathlib import Path
from compress import tree
from exporters import _graph
torch.manual_seed(0)
model = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.from_pretrained(sys.argv[1])).eval()
_graph.write(_graph.decoder(model, "fp32", 20), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    tiny("qwen3").model.config.save_pretrained(tmp_path)
    written = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.onnx"
        command = [sys.executable, "-c", AGAIN, str(tmp_path), str(path)]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(command, check=True, env=environment, cwd=tmp_path)
        written.append(path.read_bytes())
    assert written[0] == written[1]


# -- what is missing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ((), "onnxruntime is not installed; pip install"),
        (("onnxruntime", "onnxruntime-gpu"), "both installed and overwrite each other; pip uninstall both"),
    ],
)
def test_runtimes_that_are_missing_or_doubled(
    installed: tuple[str, ...], words: str, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = engine_of("llama")

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("compress.installed.metadata.version", version)
    assert words in (Onnx(OnnxSettings()).available() or "")
    with pytest.raises(Unavailable, match=words):
        Engines().open(folder)


def test_a_broken_runtime_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime is installed but broken" in (Onnx(OnnxSettings()).available() or "")


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this one has CUDA")
def test_a_device_that_is_not_here(engine_of: EngineOf) -> None:
    with pytest.raises(Unavailable, match=r"device 'cuda': this onnxruntime has no CUDAExecutionProvider, only .*CPU"):
        Engines().open(engine_of("llama"), Target(device="cuda"))


@pytest.mark.skipif("TensorrtExecutionProvider" in onnxruntime.get_available_providers(), reason="this one has it")
def test_an_engine_for_tensorrts_provider_never_runs_with_another(tiny: Tiny, tmp_path: Path) -> None:
    artifact, (folder, work) = tiny("llama"), (tmp_path / "engine", tmp_path / "work")
    folder.mkdir()
    target = Target(runtime="onnxruntime-tensorrt", device="cuda", prompt=8, generate=2)
    found = Onnx(OnnxSettings()).export(artifact, folder, Context(folder=work), target)
    assert found.facts["provider"] == "TensorrtExecutionProvider"
    with pytest.raises(BadSettings, match="where TensorRT runs"):
        Onnx(OnnxSettings()).plan(tree.facts(artifact.model, "causal-lm"), Target(runtime="onnxruntime-tensorrt"))
    (folder / "engine.json").write_text(json.dumps(dict(found.facts)))
    with pytest.raises(Unavailable, match="has no TensorrtExecutionProvider"):
        Onnx(OnnxSettings()).open(folder, target)
    with pytest.raises(UserFault, match="asked for TensorrtExecutionProvider, got CPU"):  # nor is it timed with one
        measure.measure([folder], Target(prompt=8, generate=2), processes=1, seconds=0.02)


@pytest.mark.parametrize(
    ("target", "key"),
    [
        (Target(runtime="abacus"), "runtime"),
        (Target(device="abacus"), "device"),
        (Target(runtime="onnxruntime-tensorrt"), "device"),
        (None, None),
    ],
)
def test_targets_that_it_does_not_serve(target: Target | None, key: str | None, tiny: Tiny) -> None:
    artifact = tiny("llama")
    facts = tree.facts(artifact.model, artifact.task)
    Onnx(OnnxSettings()).plan(facts, Target(device="cuda"))
    with pytest.raises(BadSettings) as caught:
        Onnx(OnnxSettings()).plan(facts, target)
    assert caught.value.key == key
