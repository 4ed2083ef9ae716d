"""An ONNX graph, loaded by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress import files
from compress.contracts import Engine, Past, Target
from compress.errors import Unavailable

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS: Mapping[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
TENSORRT = "TensorrtExecutionProvider"  # what it cannot take, CUDA's does
# Without this the GPU rounds float32 factors to 10 bits, which is another precision than the one asked for.
_OPTIONS: Mapping[str, dict[str, str]] = {"cuda": {"use_tf32": "0"}}


class OnnxEngine(Engine):
    """A decoder or an encoder on onnxruntime.

    Args:
        folder: holds `engine.json` and the graph that it names.
        target: device and threads.
        missing: why onnxruntime is not available, if it is not.

    Raises:
        Unavailable: onnxruntime or the device is not here.
    """

    def __init__(self, folder: Path, target: Target, missing: str | None = None) -> None:
        if missing:
            raise Unavailable(missing)
        self.manifest: Mapping[str, Any] = files.read_json(folder / "engine.json")
        self._session = _open(folder / self.manifest["graph"], target, self.manifest)
        self._inputs = {i.name: i.type for i in self._session.get_inputs()}
        self._past = [n for n in self._inputs if n.startswith("past_key_values.")]
        self._type = np.dtype(np.float16 if self.manifest["precision"] == "fp16" else np.float32)

    def step(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, position_ids: np.ndarray, past: Past
    ) -> tuple[np.ndarray, Past]:
        """Run a decoder over new tokens, as the contract says."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        given |= zip(self._past, (array for pair in past for array in pair), strict=True)
        logits, *present = self._session.run(None, {n: a for n, a in given.items() if n in self._inputs})
        return logits, list(zip(present[::2], present[1::2], strict=True))

    def encode(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """Run an encoder, as the contract says."""
        types = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": types}
        result: np.ndarray = self._session.run(None, {n: a for n, a in given.items() if n in self._inputs})[0]
        return result

    def empty_past(self, batch: int) -> Past:
        """Return the past of length 0."""
        shapes = [(batch, p["heads"], 0, p["head_dim"]) for p in self.manifest["past"]]
        return [(np.zeros(s, self._type), np.zeros(s, self._type)) for s in shapes]

    def providers(self) -> tuple[str, ...]:
        """Return the execution providers really used."""
        return tuple(self._session.get_providers())

    def kernels(self) -> Mapping[str, str]:
        """Return what multiplies by the codes of each linear that has some."""
        layers = self.manifest.get("codes", {}).get("layers", {})
        return {name: layer["kernel"] for name, layer in layers.items()}

    def close(self) -> None:
        """Free the engine's memory."""
        del self._session


def _open(graph: Path, target: Target, manifest: Mapping[str, Any]) -> onnxruntime.InferenceSession:
    import onnxruntime

    device = PROVIDERS[target.device]
    provider = manifest.get("provider", device)
    if provider not in onnxruntime.get_available_providers():
        raise Unavailable(
            f"device {target.device!r}: this onnxruntime has no {provider}, only "
            f"{', '.join(onnxruntime.get_available_providers())}; pip uninstall onnxruntime, "
            "then pip install 'compress-engine[gpu]'"
        )
    if target.device == "cuda":
        onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip put them
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = target.threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in manifest.get("session", {}).items():
        options.add_session_config_entry(name, value)
    options.log_severity_level = 3  # errors
    wanted = [*([(TENSORRT, {})] if provider == TENSORRT else []), (device, _OPTIONS.get(target.device, {}))]
    session = onnxruntime.InferenceSession(str(graph), options, providers=wanted)
    if session.get_providers()[0] != provider:
        raise Unavailable(
            f"device {target.device!r}: asked for {provider} and got {session.get_providers()[0]}; "
            "is the device's driver there, and CUDA, cuDNN (and TensorRT) of the versions that onnxruntime-gpu needs?"
        )
    return session
