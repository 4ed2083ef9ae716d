"""Refuse model folders that are not whole, in one line that names what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress import tensors, tree
from compress.errors import BadModel

_KEYS = ("quantization_config", "compression_config")  # where `config.json` tells of codes
_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")  # where ModelOpt, AutoGPTQ, AutoAWQ do
_PARTS = (
    "weight_packed", "weight_scale", "weight_scale_inv", "weight_zero_point", "qweight", "qzeros", "scales", "absmax",
    "SCB",
)  # fmt: skip  # tensors that codes alone have beside them


def check_floats(folder: Path, config: Any) -> None:
    """Refuse a folder that says of its weights that they are codes."""
    found = next((f for f in (getattr(config, key, None) for key in _KEYS) if f), None)
    beside = next((name for name in _FILES if (folder / name).is_file()), None)
    if found or beside:
        method = found.get("quant_method") if isinstance(found, Mapping) else None
        raise BadModel(_quantized(folder, f"by {method}" if method else f"as {beside or 'config.json'} says"))


def check_weights(folder: Path) -> None:
    """Refuse pickles and truncated safetensors before any library reads them."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
        if pickled:
            raise BadModel(
                f"{folder}: holds only {pickled[0]}, a pickle, which can run any code when loaded and is refused; "
                "convert it to safetensors where it comes from"
            )
        raise BadModel(f"{folder}: no *.safetensors in it")
    for path in weights:
        tensors.check(path)


def check_complete(folder: Path, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Refuse a folder whose tensors are not those of its configuration; warn of a task head that is not there."""
    for key, found, wanted in sorted(report["mismatched_keys"]):
        what = f"{key} is {list(found)} where the configuration asks for {list(wanted)}"
        raise BadModel(f"{folder}: {what}; weights and configuration do not belong together")
    if codes := sorted(k for k in report["unexpected_keys"] if k.rpartition(".")[2] in _PARTS):
        raise BadModel(_quantized(folder, f"as {codes[0]} tells"))
    missing = sorted(report["missing_keys"])
    needed = {id(p) for n, p in tree.backbone(model).named_parameters() if not n.startswith("pooler.")}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for key in missing:
        if id(parameters.get(key)) in needed or key.partition(".")[0] == tree.family(model).head:
            raise BadModel(f"{folder}: {key} is missing ({len(missing)} tensors in all); fetch the model again")
    for key in sorted(report["unexpected_keys"]):
        if f"{tree.family(model).blocks}." in key and key.endswith(".weight"):
            raise BadModel(f"{folder}: holds {key}, for which the configuration has no place; fetch the model again")
    if missing:
        warnings.warn(f"{folder}: {', '.join(missing)} are not in it and start at random; train them", stacklevel=3)


def check_tokenizer(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with more entries than the model embeds."""
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if len(tokenizer) > rows:
        raise BadModel(
            f"{folder}: the tokenizer has {len(tokenizer)} entries but the model embeds {rows}; "
            "they do not belong together"
        )


def _quantized(folder: Path, how: str) -> str:
    return (
        f"{folder}: its weights are quantized, {how}, and compress starts from floats; give the model that it was made "
        "from, or the artifact that it was exported from"
    )
