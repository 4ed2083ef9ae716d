"""llm-compressor: SparseGPT and Wanda; RTN, GPTQ and AWQ; and codes on top of 2:4."""

from __future__ import annotations

import _case
import llmcompressor
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, forward_quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import ConstantPruningModifier, SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache

HEAD = ["re:.*lm_head"]
PRUNING = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}


def pruning(method: str, pattern: str):
    structure = {"mask_structure": pattern} if ":" in pattern else {}
    return PRUNING[method](targets=["Linear"], ignore=HEAD, sparsity=0.5, **structure)


def quantizing(method: str, form: str) -> list:
    asked = _case.Grid.of(form)
    weights = QuantizationArgs(
        num_bits=asked.bits, group_size=asked.group_size, symmetric=asked.symmetric, strategy="group"
    )
    groups = {"all": QuantizationScheme(targets=["Linear"], weights=weights)}
    if method == "gptq":
        return [GPTQModifier(config_groups=groups, ignore=HEAD)]
    rounding = QuantizationModifier(config_groups=groups, ignore=HEAD)
    return [AWQModifier(), rounding] if method == "awq" else [rounding]


def recipe(method: str, form: str) -> list:
    """`2:4 then gptq` prunes with SparseGPT first, and asks for the zeros to be kept."""
    if method in PRUNING:
        return [pruning(method, form)]
    first, _, last = method.rpartition(" then ")
    kept = ConstantPruningModifier(targets=["re:.*(q|k|v|o|gate|up|down)_proj.weight"], start=0)
    return [*([pruning("sparsegpt", first), kept] if first else []), *quantizing(last, form)]


def pin_nothing(self, *_) -> None:
    """AWQ pins memory for an accelerator, and stops where there is none."""


def change(model, tokenizer, calibration: torch.Tensor, method: str, form: str):
    IntermediatesCache.pin_memory = pin_nothing
    rows = {"input_ids": calibration.tolist(), "attention_mask": torch.ones_like(calibration).tolist()}
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict(rows),
        recipe=recipe(method, form),
        num_calibration_samples=len(calibration),
        max_seq_length=calibration.shape[1],
        batch_size=8,
    )
    for module in model.modules():  # codes are applied in the forward: weights become what these stand for
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            module.weight.data = forward_quantize(module, module.weight.data, "weight", scheme.weights)
    return model


if __name__ == "__main__":
    _case.main("llm-compressor", llmcompressor.__version__, change)
