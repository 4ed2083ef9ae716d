"""Refuse model folders that are not whole, in one line that names what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress import tensors, tree
from compress.errors import BadModel


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
