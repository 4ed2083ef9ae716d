"""The plain folder opens without us."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.artifact import Artifact
from compress.context import Context
from exporters.safetensors import Safetensors


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_plain_transformers_opens_it(kind: str, tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = tiny(kind)
    exporter = Safetensors(Safetensors.Settings())
    written = exporter.export(artifact, tmp_path, Context(folder=tmp_path), None)
    assert {"config.json", "model.safetensors", "tokenizer.json", "compress.json"} <= set(written.files)
    assert all((tmp_path / name).is_file() for name in written.files)
    ids = torch.arange(2, 20)[None]
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        # GPT-2's linears are Conv1D there, which add the bias within the product: one rounding apart.
        torch.testing.assert_close(opened(ids).logits, artifact.model(ids).logits, atol=1e-6, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("the fox") == artifact.tokenizer.encode("the fox")
    assert exporter.runtimes == ()
