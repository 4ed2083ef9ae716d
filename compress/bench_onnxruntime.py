"""How the clock (`bench.py`, which this file stands beside) opens and calls graphs of onnxruntime."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

PROVIDERS: dict[str, Any] = {  # on the GPU in true fp32
    "cpu": ("CPUExecutionProvider", {}), "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"})
}  # fmt: skip
TYPES = {"tensor(int64)": "i8", "tensor(int32)": "i4", "tensor(float)": "f4", "tensor(float16)": "f2"}


class Opened:
    """The graph of an engine folder, on the device that was asked for, and on no other.

    Args:
        folder: the engine.
        manifest: the content of its `engine.json`.
        args: device, threads and batch.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], args: argparse.Namespace) -> None:
        self.versions = {"onnxruntime": ort.__version__}
        options, providers = ort.SessionOptions(), [PROVIDERS[args.device]]
        if other := manifest.get("provider"):  # which leaves to the device's own what it cannot take
            providers.insert(0, (other, {}))
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = args.threads, 1, 4
        if args.device == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # finds CUDA and cuDNN where pip put them
        for entry in {"session.intra_op.allow_spinning": "0", **manifest.get("session", {})}.items():
            options.add_session_config_entry(*entry)
        graph = str(folder / manifest.get("graph", "model.onnx"))
        self._args, self._session = args, ort.InferenceSession(graph, options, providers=providers)
        if (got := self._session.get_providers()[0]) != providers[0][0]:
            raise ValueError(f"asked for {providers[0][0]}, got {got}; is it in this onnxruntime, is the driver there?")

    @property
    def decoder(self) -> bool:
        """Whether the graph writes one token after another: only such a graph takes positions or a past."""
        names = [i.name for i in self._session.get_inputs()]
        return any(n == "position_ids" or n.startswith("past_key_values.") for n in names)

    def caller(self, past: int, new: int) -> Callable[[], None]:
        """Return a call that runs `new` tokens per sequence after `past` cached ones; all stays on the device."""
        binding = self._session.io_binding()
        for name, array in self._feeds(past, new).items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self._args.device, 0))
        for output in self._session.get_outputs():
            binding.bind_output(output.name, self._args.device)

        def run() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def _feeds(self, past: int, new: int) -> dict[str, np.ndarray]:
        """Return an array for every input of the graph."""
        rng, inputs, batch = np.random.default_rng(0), self._session.get_inputs(), self._args.batch
        vocabulary = self._session.get_outputs()[0].shape[-1] if self.decoder else None
        tokens = rng.integers(0, vocabulary if isinstance(vocabulary, int) else 32, (batch, new))
        arrays = {"input_ids": tokens, "attention_mask": np.ones((batch, past + new)), "token_type_ids": 0 * tokens}
        arrays["position_ids"] = np.tile(np.arange(past, past + new), (batch, 1))
        for i in inputs:
            if i.name.startswith("past_key_values."):
                arrays[i.name] = rng.standard_normal((batch, i.shape[1], past, i.shape[3]))
            elif i.name not in arrays:
                raise ValueError(f"the clock cannot fill the input {i.name!r}; it knows {', '.join(arrays)}")
        return {i.name: np.ascontiguousarray(arrays[i.name], dtype=TYPES[i.type]) for i in inputs}
