"""Quantize a case with this project's passes: the same command line and files as the scripts of the peers.

python -m benchmarks.low_bit.ours CASE METHOD FORM OUT
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._passes import context_of, through
from benchmarks.peers import _case
from compress import registry, tree
from compress.artifact import Artifact

# As published, on the grid of all others: no refinement, the weight itself as the target, spans as scales.
PLAIN = {"sequential": "block", "reference": "quantized", "steps": "span", "refine": "none"}
# Name in the tables -> passes one after the other, with settings where these are not the defaults.
METHODS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "rtn": (("rtn", {}),),
    "rtn, search": (("rtn", {"steps": "search"}),),
    "gptq": (("gptq", {}),),
    "gptq, plain": (("gptq", PLAIN),),
    "awq": (("awq", {}),),
}


def ready(use: str) -> bool:
    """Return whether there is such a pass."""
    return use in registry.names("passes")


def grid(form: str) -> dict[str, Any]:
    """Return the settings that ask for a grid."""
    return _case.Grid.of(form)._asdict()


def quantized(artifact: Artifact, method: str, form: str, calibration: Tensor) -> Artifact:
    """Return the artifact with codes."""
    for use, settings in METHODS[method]:
        with tempfile.TemporaryDirectory() as folder:
            context = context_of(Path(folder), calibration=calibration)
            artifact = through(use, {**settings, **grid(form)}, artifact, context)
    return artifact


def change(model: Any, tokenizer: Any, calibration: Tensor, method: str, form: str) -> Any:
    """Return the quantized model."""
    tree.linearise_(model)
    with torch.no_grad():
        return quantized(Artifact(model=model, tokenizer=tokenizer), method, form, calibration).model


if __name__ == "__main__":
    _case.main("compress", "", change)
