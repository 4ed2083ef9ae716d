"""How the clock (`bench.py`, which this file stands beside) opens and calls plans of TensorRT and TensorRT-RTX.

Stand-alone: it needs numpy, torch for the device's memory, and the runtime that built the plan.  A plan has a profile
for prompts and, of a decoder, one for single tokens behind a past; shapes within them are free.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
LOCAL = "local.json"  # written by kit.py, of a plan that was built on this machine
_LEAST = (8, 0)  # capability that plans for all GPUs need
TYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64, "INT32": torch.int32,
}  # fmt: skip


def described(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of the plan in an engine folder, one built on this machine before the one it came with."""
    local = folder / LOCAL
    found: dict[str, Any] = json.loads(local.read_text(encoding="utf-8")) if local.is_file() else manifest["tensorrt"]
    return found


def refusal(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Return why the plan of an engine folder cannot run on this machine, and what would do; None where it can."""
    about = described(folder, manifest)
    flavour, rebuild = about["flavour"], f"`python {folder / 'kit.py'} --rebuild` builds the plan anew, here"
    if not torch.cuda.is_available():
        return f"no CUDA device, or no driver ({about['driver']} needed): torch {torch.__version__} finds no GPU here"
    if about["plan"] is None:
        return f"holds no plan, since {flavour} builds only where the GPU is; {rebuild}"
    try:
        trt: Any = importlib.import_module(MODULES[flavour])
    except ImportError as error:
        return f"made for {flavour}, which is not here ({error}); install it, version {about['version']}, or {rebuild}"
    if str(trt.__version__) != about["version"]:
        return f"built by {flavour} {about['version']}, here is {trt.__version__}; {rebuild}"
    capability = torch.cuda.get_device_capability()
    here, able = ".".join(map(str, capability)), about["compute_capabilities"]
    if (able and here not in able) or (not able and capability < _LEAST):
        wanted = ", ".join(able) or f"{_LEAST[0]}.{_LEAST[1]} and later"
        return f"built for compute capability {wanted}, this GPU has {here}; {rebuild}"
    return None


def invalid(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Return that the runtime itself takes its plan to be invalid on this GPU, where `refusal` found nothing."""
    about = described(folder, manifest)
    trt: Any = importlib.import_module(MODULES[about["flavour"]])
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if not hasattr(runtime, "get_engine_validity"):
        return None  # of TensorRT-RTX alone
    validity, why = runtime.get_engine_validity((folder / about["plan"]).read_bytes())
    if validity != trt.EngineValidity.INVALID:
        return None
    return (
        f"{about['flavour']} {about['version']} takes the plan to be invalid on {torch.cuda.get_device_name()} ({why})"
    )


class Session:
    """A plan on the GPU, called with tensors of torch.

    Args:
        folder: the engine.
        manifest: the content of its `engine.json`.

    Raises:
        ValueError: the plan cannot run on this machine; the message says what would do.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        if why := refusal(folder, manifest):
            raise ValueError(f"{folder}: {why}")
        about = described(folder, manifest)
        self.trt: Any = importlib.import_module(MODULES[about["flavour"]])
        self.versions = {about["flavour"]: about["version"], "torch": str(torch.__version__)}
        self.versions["gpu"] = torch.cuda.get_device_name()
        self._runtime = self.trt.Runtime(self.trt.Logger(self.trt.Logger.ERROR))
        self.engine = self._runtime.deserialize_cuda_engine((folder / about["plan"]).read_bytes())
        if self.engine is None:
            mend = f"`python {folder / 'kit.py'} --rebuild` builds it anew"
            raise ValueError(f"{folder}: {about['flavour']} does not load the plan on {self.versions['gpu']}; {mend}")
        if about["weight_streaming"]:
            self.engine.weight_streaming_budget_v2 = self.engine.get_weight_streaming_automatic_budget()
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._contexts: dict[int, Any] = {}
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.types = {n: TYPES[self.engine.get_tensor_dtype(n).name] for n in names}
        read = self.trt.TensorIOMode.INPUT
        self.inputs = [n for n in names if self.engine.get_tensor_mode(n) == read]
        self.outputs = [n for n in names if n not in self.inputs]

    def bound(self, given: Mapping[str, torch.Tensor]) -> tuple[Callable[[], None], dict[str, torch.Tensor]]:
        """Return a call that runs the plan on these tensors of the GPU once more, and the tensors that it fills.

        Raises:
            ValueError: shapes beyond the plan's profiles.
        """
        decodes = any(t.shape[2] > 0 for n, t in given.items() if n.startswith("past_key_values."))
        context = self._context(int(decodes and self.engine.num_optimization_profiles > 1))
        held = {n: given[n].to(self.types[n]).contiguous() for n in self.inputs}
        for name, tensor in held.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise ValueError(f"{name} of shape {tuple(tensor.shape)}: outside what the plan was built for")
        shapes = {n: tuple(context.get_tensor_shape(n)) for n in self.outputs}
        made = {n: torch.empty(shape, dtype=self.types[n], device="cuda") for n, shape in shapes.items()}
        nothing = torch.empty(1, device="cuda")  # a tensor of size 0 needs an address too
        for name, tensor in (held | made).items():
            context.set_tensor_address(name, (tensor if tensor.numel() else nothing).data_ptr())

        def run(_: Any = (held, nothing)) -> None:  # what the addresses point to has to live
            if not context.execute_async_v3(self.stream.cuda_stream):
                raise ValueError("the runtime could not run the plan")

        return run, made

    def captured(self, run: Callable[[], None]) -> Callable[[], None]:
        """Return a decode call that was made once as a CUDA graph; the call itself where it cannot be captured."""
        context = self._context(self.engine.num_optimization_profiles - 1)
        able = getattr(context, "is_stream_capturable", None)  # of TensorRT-RTX, which may compile while it runs
        if able is not None and not able(self.stream.cuda_stream):
            self.versions["decode"] = "without a CUDA graph"
            return run
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            run()
        self.versions["decode"] = "as a CUDA graph"
        replay: Callable[[], None] = graph.replay
        return replay

    def __call__(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs for arrays; those that the plan does not read are left aside."""
        tensors = {n: torch.from_numpy(np.ascontiguousarray(given[n])).cuda() for n in self.inputs}
        torch.cuda.synchronize()
        run, made = self.bound(tensors)
        run()
        self.stream.synchronize()
        return {n: (t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy() for n, t in made.items()}

    def layers(self) -> list[dict[str, str]]:
        """Return name, metadata and kernel of every layer, each empty where the engine inspector does not tell."""
        inspector = self.engine.create_engine_inspector()
        told = json.loads(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON) or "{}")
        keys = {"name": "Name", "metadata": "Metadata", "kernel": "TacticName"}
        layers = [layer for layer in told.get("Layers", ()) if isinstance(layer, dict)]
        return [{ours: str(layer.get(theirs) or "") for ours, theirs in keys.items()} for layer in layers]

    def kernels(self) -> dict[str, str]:
        """Return by layer which kernel was chosen, or that it is unknown."""
        return {layer["name"]: layer["kernel"] or "unknown" for layer in self.layers()}

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            context = self._contexts[profile] = self.engine.create_execution_context()
            context.set_optimization_profile_async(profile, self.stream.cuda_stream)
            self.stream.synchronize()
        return self._contexts[profile]


class Opened:
    """The plan of an engine folder, for the clock.

    Args:
        folder: the engine.
        manifest: the content of its `engine.json`.
        args: device and batch.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], args: argparse.Namespace) -> None:
        if args.device != "cuda":
            raise ValueError(f"TensorRT runs on device cuda alone, got {args.device}")
        self._session = Session(folder, manifest)
        self.versions, self._args, self._manifest = self._session.versions, args, manifest

    @property
    def decoder(self) -> bool:
        """Whether the plan writes one token after another."""
        return "position_ids" in {i["name"] for i in self._manifest["inputs"]} or bool(self._manifest["past"])

    def caller(self, past: int, new: int) -> Callable[[], None]:
        """Return a call that runs `new` tokens per sequence after `past` cached ones; single tokens as a CUDA graph."""
        stream = self._session.stream
        run, _ = self._session.bound(self._given(past, new))
        torch.cuda.synchronize()
        run()  # what is chosen or compiled when shapes are new, is so now
        stream.synchronize()
        call = self._session.captured(run) if past and new == 1 else run

        def timed() -> None:
            with torch.cuda.stream(stream):
                call()
            stream.synchronize()

        return timed

    def _given(self, past: int, new: int) -> dict[str, torch.Tensor]:
        """Return random inputs on the GPU, by name."""
        batch, generator = self._args.batch, torch.Generator().manual_seed(0)
        given = {
            "input_ids": torch.randint(32, (batch, new), generator=generator),
            "attention_mask": torch.ones(batch, past + new, dtype=torch.int64),
            "token_type_ids": torch.zeros(batch, new, dtype=torch.int64),
            "position_ids": torch.arange(past, past + new).expand(batch, new),
        }
        for layer in self._manifest["past"]:
            for part in ("key", "value"):
                shape = (batch, layer["heads"], past, layer["head_dim"])
                given[f"past_key_values.{layer['layer']}.{part}"] = torch.randn(shape, generator=generator)
        return {n: t.cuda() for n, t in given.items()}
