"""GPTQModel: GPTQ; it wants four cores, or what looks like them."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.metadata import version

import _case
import torch

if (os.cpu_count() or 1) < 4:
    os.cpu_count = lambda: 4

from gptqmodel import GPTQModel, QuantizeConfig


def change(model, tokenizer, calibration: torch.Tensor, method: str, form: str):
    asked = _case.Grid.of(form)
    config = QuantizeConfig(
        bits=asked.bits, group_size=asked.group_size, sym=asked.symmetric, device="cpu", offload_to_disk=False
    )
    opened = GPTQModel.load(f"{sys.argv[1]}/model", config, dtype=torch.float32)
    opened.quantize(
        [{"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)} for ids in calibration], batch_size=1
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        opened.save(folder)
        saved = GPTQModel.load(folder, device="cpu")  # what it hands out, read by itself
        packed = {n: m for n, m in saved.model.named_modules() if hasattr(m, "dequantize_weight")}
        return {f"{n}.weight": m.dequantize_weight().T.float().contiguous() for n, m in packed.items()}


if __name__ == "__main__":
    _case.main("gptqmodel", version("gptqmodel"), change)
