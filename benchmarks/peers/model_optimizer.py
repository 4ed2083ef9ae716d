"""NVIDIA Model Optimizer: SparseGPT and magnitude, 2:4 only."""

from __future__ import annotations

import _case
import modelopt
import modelopt.torch.sparsity as mts
import torch


def prune(model, tokenizer, calibration: torch.Tensor, method: str, pattern: str):
    if method == "magnitude":
        return mts.export(mts.sparsify(model, mode="sparse_magnitude"))
    batches = [{"input_ids": batch} for batch in calibration.split(8)]
    config = {"data_loader": batches, "collect_func": lambda batch: batch["input_ids"]}
    return mts.export(mts.sparsify(model, mode="sparsegpt", config=config))


if __name__ == "__main__":
    _case.main("modelopt", modelopt.__version__, prune)
