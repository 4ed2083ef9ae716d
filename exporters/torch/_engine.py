"""An exported program, called by torch or compiled by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from compress import files
from compress.contracts import Engine, Past, Target
from compress.errors import Unavailable


class TorchEngine(Engine):
    """A decoder or an encoder in torch.

    Args:
        folder: holds `engine.json` and the program that it names.
        target: the device; threads are those of the process.

    Raises:
        Unavailable: the device is not here.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        if target.device == "cuda" and not torch.cuda.is_available():
            raise Unavailable("device 'cuda': torch finds no GPU here")
        self.manifest: Mapping[str, Any] = files.read_json(folder / "engine.json")
        program = torch.export.load(folder / self.manifest["graph"])
        self._device = target.device
        module: Any = move_to_device_pass(program, self._device).module()
        compiled = self.manifest["mode"] == "compiled"
        self._call: Any = torch.compile(module, dynamic=True) if compiled else module
        self._inputs = [i["name"] for i in self.manifest["inputs"]]
        self._type = np.dtype(np.float16 if self.manifest["precision"] == "fp16" else np.float32)

    def step(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, position_ids: np.ndarray, past: Past
    ) -> tuple[np.ndarray, Past]:
        """Run a decoder over new tokens, as the contract says."""
        tokens = [self._given(a) for a in (input_ids, attention_mask, position_ids)]
        pairs = [tuple(self._given(a) for a in pair) for pair in past]
        with torch.inference_mode():
            logits, present = self._call(*tokens, pairs)
        return logits.cpu().numpy(), [(k.cpu().numpy(), v.cpu().numpy()) for k, v in present]

    def encode(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """Run an encoder, as the contract says."""
        types = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": types}
        with torch.inference_mode():
            result: np.ndarray = self._call(*(self._given(given[n]) for n in self._inputs)).cpu().numpy()
        return result

    def empty_past(self, batch: int) -> Past:
        """Return the past of length 0."""
        shapes = [(batch, p["heads"], 0, p["head_dim"]) for p in self.manifest["past"]]
        return [(np.zeros(s, self._type), np.zeros(s, self._type)) for s in shapes]

    def providers(self) -> tuple[str, ...]:
        """Return how and where the program really runs."""
        return (f"torch {self.manifest['mode']} on {self._device}",)

    def close(self) -> None:
        """Free the engine's memory."""
        del self._call

    def _given(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
