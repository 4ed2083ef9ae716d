"""NVIDIA Model Optimizer: SparseGPT and magnitude, 2:4 only; RTN and AWQ, symmetric; and codes on top of 2:4."""

from __future__ import annotations

import copy

import _case
import modelopt
import modelopt.torch.quantization as mtq
import modelopt.torch.sparsity as mts
import torch

CONFIGS = {"rtn": mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG, "awq": mtq.INT4_AWQ_CFG}


def prune(model, batches: list, method: str):
    if method == "magnitude":
        return mts.sparsify(model, mode="sparse_magnitude")
    config = {"data_loader": batches, "collect_func": lambda batch: batch["input_ids"]}
    return mts.sparsify(model, mode="sparsegpt", config=config)


def quantize(model, batches: list, method: str, form: str):
    asked = _case.Grid.of(form)
    config = copy.deepcopy(CONFIGS[method])
    for entry in config["quant_cfg"]:
        if entry["quantizer_name"] == "*weight_quantizer":
            entry["cfg"] |= {"num_bits": asked.bits, "block_sizes": {-1: asked.group_size, "type": "static"}}
    model = mtq.quantize(model, config, lambda m: [m(**batch) for batch in batches])
    scales = {n: m.input_quantizer.pre_quant_scale for n, m in model.named_modules() if hasattr(m, "input_quantizer")}
    mtq.fold_weight(model)
    for name, scale in scales.items():  # of inputs: it goes into the weights
        if scale is not None:
            weight = model.get_submodule(name).weight
            weight.data = weight.data * scale.float()
    return model


def change(model, tokenizer, calibration: torch.Tensor, method: str, form: str):
    batches = [{"input_ids": batch} for batch in calibration.split(8)]
    first, _, last = method.rpartition(" then ")
    if last not in CONFIGS:
        return mts.export(prune(model, batches, last))
    if first:
        model = mts.export(prune(model, batches, "sparsegpt"))
    return quantize(model, batches, last, form)


if __name__ == "__main__":
    _case.main("modelopt", modelopt.__version__, change)
