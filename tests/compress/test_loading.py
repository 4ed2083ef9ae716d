"""Opening models: what is whole opens silently, what is not gives one line that names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import loading, tree
from compress.artifact import Artifact
from compress.errors import BadModel
from compress.facts import Task
from tests.conftest import CAUSAL, ENCODERS

Tiny = Callable[..., Artifact]
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    return _folder(tiny("llama"), tmp_path / "model")


def _folder(artifact: Artifact, folder: Path) -> Path:
    folder.mkdir()
    artifact.save(folder)
    return folder


def _refused(folder: Path, task: Task = "causal-lm", **given: Any) -> str:
    with pytest.raises(BadModel) as caught:
        loading.open_source(str(folder), task, **given)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadModel) as streamed:
        loading.open_stored(loading.locate(str(folder)), task, **given)
    if "cannot be loaded (" not in str(caught.value):  # transformers' words, which only who calls it has
        assert str(streamed.value) == str(caught.value)
    return str(caught.value)


def _change(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_facts_of_the_configuration_are_those_of_the_model(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    artifact = tiny(kind)
    folder = _folder(artifact, tmp_path / "model")
    model, _ = loading.open_folder(folder, artifact.task)
    assert loading.facts_of(str(folder), artifact.task) == tree.facts(model, artifact.task)


@pytest.mark.filterwarnings("ignore:.*start at random")
@pytest.mark.parametrize(
    ("kind", "task", "labels"),
    [
        ("bert", "regression", None), ("bert", "classification", 5), ("bert", "embedding", None),
        ("llama", "classification", 3), ("llama", "embedding", None), ("qwen3", "regression", None),
    ],
)  # fmt: skip
def test_facts_know_the_task(tiny: Tiny, kind: str, task: Task, labels: int | None, tmp_path: Path) -> None:
    folder = _folder(tiny(kind, task="embedding" if kind == "bert" else None), tmp_path / "model")
    model, _ = loading.open_folder(folder, task, labels=labels)
    facts = loading.facts_of(str(folder), task, labels=labels)
    assert facts == tree.facts(model, task)
    if task != "embedding":
        assert model.config.num_labels == (labels or 1)


def test_linears_are_laid_out_alike_and_nothing_trains_by_itself(tiny: Tiny, tmp_path: Path) -> None:
    model, _ = loading.open_folder(_folder(tiny("gpt2"), tmp_path / "model"), "causal-lm")
    assert len(tree.block_linears(model)) == 8
    assert not model.training


def test_the_asked_precision(folder: Path) -> None:
    model, _ = loading.open_source(str(folder), "causal-lm", dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_nothing_is_printed_and_the_bars_come_back(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = (logging.is_progress_bar_enabled(), logging.get_verbosity())
    loading.open_source(str(folder), "causal-lm")
    loading.facts_of(str(folder), "causal-lm")
    assert capfd.readouterr() == ("", "")
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before


def test_a_missing_task_head_is_told(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"score\.weight are not in it and start at random"):
        loading.open_folder(folder, "classification")


def test_no_such_folder(tmp_path: Path) -> None:
    assert _refused(tmp_path / "nowhere") == f"{tmp_path}/nowhere: no such folder"


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json in it" in _refused(folder)


@pytest.mark.parametrize(("content", "message"), [("{", "not a valid JSON file"), ("{}", "Unrecognized model")])
def test_a_config_that_is_none(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    assert message in _refused(folder)


def test_an_unknown_architecture(folder: Path) -> None:
    _change(folder / "config.json", lambda c: c.update(model_type="mamba"))
    assert "'mamba' is not supported; supported: bert, gpt2, llama" in _refused(folder)
    _change(folder / "config.json", lambda c: c.update(model_type="unheard-of"))
    assert "unheard-of" in _refused(folder)


def test_remote_code_is_not_run_unasked(folder: Path) -> None:
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "own.py").write_text("raise SystemExit('ran')")
    _change(folder / "config.json", lambda c: c.update(own))
    assert "custom code" in _refused(folder)


def test_an_encoder_generates_nothing(tiny: Tiny, tmp_path: Path) -> None:
    folder = _folder(tiny("bert"), tmp_path / "model")
    assert "bert is an encoder" in _refused(folder, "causal-lm")
    with pytest.raises(BadModel, match="bert is an encoder"):
        loading.facts_of(str(folder), "causal-lm")


@pytest.mark.parametrize(
    ("told", "how"),
    [
        ({"quant_method": "gptq", "bits": 4}, "by gptq"),
        ({"quant_method": "awq", "bits": 4, "zero_point": True}, "by awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "by bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}, "by compressed-ten"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "by fp8"),
        ({"load_in_8bit": True}, "as config.json says"),
    ],
)
def test_a_quantized_model(folder: Path, told: dict[str, Any], how: str) -> None:
    for key in ("quantization_config", "compression_config"):
        _change(folder / "config.json", lambda c, key=key: c.update({key: told}))  # type: ignore[misc]
        assert f"its weights are quantized, {how}" in _refused(folder)
        with pytest.raises(BadModel, match="compress starts from floats; give the model that it was made from"):
            loading.facts_of(str(folder), "causal-lm")
        _change(folder / "config.json", lambda c, key=key: c.pop(key))  # type: ignore[misc]
    loading.facts_of(str(folder), "causal-lm")


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json", "quant_config.json"])
def test_a_quantized_model_told_in_a_file_of_its_own(folder: Path, name: str) -> None:
    (folder / name).write_text("{}")
    assert f"its weights are quantized, as {name} says" in _refused(folder)
    with pytest.raises(BadModel, match=name):
        loading.facts_of(str(folder), "causal-lm")


def test_scales_beside_weights_are_not_passed_over(folder: Path) -> None:
    """Weights of 8 bits bear the name that weights of floats have, so that whoever skips their scales loads noise."""
    name = "model.layers.0.mlp.up_proj"

    def quantize(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(torch.float8_e4m3fn)
        tensors[f"{name}.weight_scale"] = torch.ones(64, 1)

    _tensors(folder / WEIGHTS, quantize)
    assert f"its weights are quantized, as {name}.weight_scale tells" in _refused(folder)


def test_packed_weights_are_not_called_missing(folder: Path) -> None:
    _tensors(folder / WEIGHTS, lambda t: t.update({"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 64)}))
    _tensors(folder / WEIGHTS, lambda t: t.pop("model.layers.0.mlp.up_proj.weight"))
    assert "its weights are quantized, as model.layers.0.mlp.up_proj.qweight tells" in _refused(folder)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_safetensors(folder: Path, kept: int) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:kept])
    message = _refused(folder)
    assert message.startswith(f"{folder / WEIGHTS}: truncated")
    assert "fetch it again" in message


def test_a_file_that_only_bears_the_name(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    assert "its header is not JSON" in _refused(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt"])
def test_a_pickle_is_refused_unread(folder: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    message = _refused(folder)
    assert f"holds only {name}, a pickle, which can run any code" in message


def test_no_weights_at_all(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "no *.safetensors in it" in _refused(folder)


def test_a_missing_shard(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in _refused(folder)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("task", ["causal-lm"])
def test_a_missing_tensor_is_never_filled_with_noise(folder: Path, name: str, task: Task) -> None:
    _tensors(folder / WEIGHTS, lambda t: t.pop(name))
    assert f"{name} is missing" in _refused(folder, task)


def test_a_missing_tensor_under_another_task(tiny: Tiny, tmp_path: Path) -> None:
    folder = _folder(tiny("bert", task="embedding"), tmp_path / "model")
    _tensors(folder / WEIGHTS, lambda t: t.pop("encoder.layer.0.output.dense.weight"))
    for task in ("embedding", "classification"):
        assert "encoder.layer.0.output.dense.weight is missing" in _refused(folder, task)


def test_a_tensor_of_another_shape(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    _tensors(folder / WEIGHTS, lambda t: t.update({name: torch.zeros(3, 32)}))
    assert f"{name} is [3, 32] where the configuration asks for [64, 32]" in _refused(folder)


def test_more_layers_than_configured(folder: Path) -> None:
    _change(folder / "config.json", lambda c: c.update(num_hidden_layers=1, layer_types=None))
    assert "holds model.layers.1." in _refused(folder)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "its tokenizer cannot be loaded" in _refused(folder)


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    _change(folder / "config.json", lambda c: c.update(vocab_size=300))

    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:300].clone()

    _tensors(folder / WEIGHTS, shorten)
    assert "the tokenizer has 313 entries but the model embeds 300" in _refused(folder)


def test_a_hub_id_without_network(tmp_path: Path) -> None:
    sources = ["nobody/nothing", "nothing-of-that-name"]
    code = f"""
from compress import errors, loading
for source in {sources}:
    try:
        loading.open_source(source, "causal-lm")
    except errors.BadModel as error:
        print(error)
"""
    closed = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env=closed, cwd=root, capture_output=True, text=True, timeout=100, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(sources)
    for source, line in zip(sources, lines, strict=True):
        assert line.startswith(f"'{source}': no such folder, and the hub did not give it (")
        assert "check the name and the network" in line


def test_what_is_neither_folder_nor_hub_id() -> None:
    with pytest.raises(BadModel, match="neither a folder nor a hub id"):
        loading.locate("a b/c")
    with pytest.raises(BadModel, match="no such folder"):
        loading.locate("a/b/c")


@pytest.mark.skipif(not (loading.DEMO / "config.json").exists(), reason="the demo model is not here")
def test_the_demo_model_opens() -> None:
    model, tokenizer = loading.open_source("demo", "causal-lm")
    facts = loading.facts_of("demo", "causal-lm")
    assert facts == tree.facts(model, "causal-lm")
    assert facts.blocks >= 6
    assert len(tokenizer) == facts.vocabulary
