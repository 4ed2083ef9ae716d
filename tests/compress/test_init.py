"""The file that `init` writes passes its own check, whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress import init, settings
from compress.artifact import Artifact
from compress.errors import BadModel, BadPipeline, BadSettings


def save(artifact: Artifact, folder: Path) -> Path:
    artifact.model.save_pretrained(folder)
    artifact.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen3"])
def test_the_file_has_no_fault(kind: str, tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    model = save(tiny(kind), tmp_path / "a model")
    path = init.write(str(model), tmp_path / "p.toml")
    read = settings.read(path)
    assert settings.check(read)[-1].masks
    assert [e.use for e in read.passes] == ["magnitude", "perp"]
    assert (read.targets[0].device, read.targets[0].prompt + read.targets[0].generate) == ("cpu", 128)


def test_an_encoder_is_reconstructed(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    path = init.write(str(save(tiny("bert", task="embedding"), tmp_path / "m")), tmp_path / "p.toml")
    read = settings.read(path)
    assert settings.check(read)[-1].masks
    assert (read.model.task, read.targets[0].generate, read.passes[1].plugin.settings.mode) == (
        "embedding", 0, "reconstruct",
    )  # fmt: skip


def test_a_classifier_needs_labelled_data(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    model = str(save(tiny("bert"), tmp_path / "m"))
    with pytest.raises(BadSettings, match="for classification, which needs labelled data; give --data"):
        init.write(model, tmp_path / "p.toml")
    (tmp_path / "examples.jsonl").write_text('{"text": "good", "label": 1}\n')
    path = init.write(model, tmp_path / "p.toml", data=str(tmp_path / "examples.jsonl"))
    assert settings.check(path)[-1].trained


def test_the_gpu_file_asks_for_the_gpu(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    path = init.write(str(save(tiny("llama"), tmp_path / "m")), tmp_path / "p.toml", target="cuda")
    read = settings.read(path)
    assert (read.compute.device, read.targets[0].device, read.targets[0].precision) == ("cuda", "cuda", "fp16")
    if not torch.cuda.is_available():
        with pytest.raises(BadPipeline, match=r"compute.device: no such GPU, got 'cuda'.*\n.*target\[1\].device"):
            settings.check(read)


def test_comments_stand_in_one_column(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    text = init.write(str(save(tiny("llama"), tmp_path / "m")), tmp_path / "p.toml").read_text()
    assert "\t" not in text
    columns = {
        line.index(" # ") for line in text.splitlines() if " # " in line and not line.startswith(("#", "source"))
    }
    assert columns == {29}


def test_a_file_is_never_overwritten(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("mine")
    with pytest.raises(BadSettings, match="is there already"):
        init.write("demo", tmp_path / "p.toml")
    assert (tmp_path / "p.toml").read_text() == "mine"


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="no such folder"):
        init.write("/nowhere/at/all", tmp_path / "p.toml")
    assert not (tmp_path / "p.toml").exists()
