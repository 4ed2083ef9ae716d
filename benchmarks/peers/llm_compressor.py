"""llm-compressor: SparseGPT and Wanda."""

from __future__ import annotations

import _case
import llmcompressor
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

MODIFIERS = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}


def prune(model, tokenizer, calibration: torch.Tensor, method: str, pattern: str):
    rows = {"input_ids": calibration.tolist(), "attention_mask": torch.ones_like(calibration).tolist()}
    structure = {"mask_structure": pattern} if ":" in pattern else {}
    modifier = MODIFIERS[method](targets=["Linear"], ignore=["re:.*lm_head"], sparsity=0.5, **structure)
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict(rows),
        recipe=modifier,
        num_calibration_samples=len(calibration),
        max_seq_length=calibration.shape[1],
        batch_size=8,
    )
    return model


if __name__ == "__main__":
    _case.main("llm-compressor", llmcompressor.__version__, prune)
