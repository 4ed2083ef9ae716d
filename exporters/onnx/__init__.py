"""An engine for onnxruntime: one ONNX graph with explicit past tensors, its tokenizer, and a script that runs it.

Runtime `onnxruntime-tensorrt` asks for the TensorRT execution provider on a GPU, and for CUDA's where that cannot;
one that was asked for and is not there is an error, where onnxruntime itself would go on with another in silence.

A decoder's graph reads a prompt and writes token after token (`exporters/_graph`): `input_ids` `[batch, sequence]`,
`attention_mask` `[batch, total]`, `position_ids` `[batch, sequence]` and `past_key_values.<layer>.key` and `.value`
`[batch, heads, past, head_dim]` give `logits` `[batch, sequence, vocabulary]` and `present.<layer>.key` and `.value`;
total = past + sequence, and past may be 0.  An encoder's takes `input_ids`, `attention_mask` and, if the model tells
types apart, `token_type_ids`, and gives `logits` `[batch, labels]` or, averaged over the real tokens, `embedding`.

Codes: a quantized linear multiplies by the artifact's own codes, packed and never rounded anew; its floats are not in
the file.  `form = "nbits"`: 2, 3 (in 4) and 4 bits, in groups of a multiple of 16 or whole rows, for MatMulNBits, all
else for DequantizeLinear; `form = "qdq"`: all for DequantizeLinear, INT4 or INT8.  A real offset is a second term: the
sum of the inputs of each group, times its offset.

Kernels: `exact` ones compute in floats, as the model does; `level 4` rounds inputs to 8 bits block by block, `integer`,
only where the codes ask for it, all at once, by a step found when they come (`activation = "dynamic"`) or, as
QuantizeLinear and DequantizeLinear, by the codes' own ("static").  Which are used is measured on the target's request
and the calibration data, and stated in `engine.json`.  Helps: on the CPU, 4 bits in groups of 128 at level 4 decode
fastest, and 8 bits in whole rows with integer inputs prefill fastest.  Hurts: exact kernels are hardly faster than
floats, and 8 bits are then floats in memory.

Precision: that of the target.  In fp16 weights, keys and values are float16; logits and embeddings are float32 always.
Keeps: zeros stay zeros, under the parameters' own names (linears of the blocks stored transposed, `[in, out]`).
Size: weights beyond 1.8 GB go to a side file.
Cost: seconds per block, and once more the size of the weights in memory.
"""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compress import installed
from compress.contracts import DataUse, Engine, Export, Exporter, Settings, Target, Variant
from compress.errors import BadSettings
from compress.facts import Facts

if TYPE_CHECKING:
    from compress.artifact import Artifact
    from compress.context import Context

GRAPH = "model.onnx"
THROUGH_TENSORRT = "onnxruntime-tensorrt"
SCRIPT = Path(__file__).with_name("_run.py")


class OnnxSettings(Settings):
    """Settings of the ONNX export."""

    opset: Literal[20, 21] | None = Field(
        None, description="version of the ONNX operators; by default the lowest that holds the model: 20, or 21"
    )
    form: Literal["nbits", "qdq"] = Field(
        "nbits",
        description="how codes are written: 'nbits' for the packed operator of onnxruntime, 'qdq' for DequantizeLinear "
        "of INT4 and INT8, which other runtimes read too",
    )
    kernels: Literal["auto", "exact", "fast"] = Field(
        "auto",
        description="what multiplies by codes: 'exact' kernels, the 'fast'est, or 'auto', the fastest whose loss, "
        "measured on the calibration data, stays within the tolerance",
    )
    tolerance: float = Field(
        0.005,
        ge=0,
        description="what kernels may lose where kernels = 'auto', over exact ones: nats a token (0.005 is half a "
        "percent of perplexity), nats a text of a classifier, else the share of the outputs' energy",
    )


class Onnx(Exporter):
    """Write a graph, and open it with onnxruntime."""

    Settings = OnnxSettings
    settings: OnnxSettings
    runtimes = ("onnxruntime", THROUGH_TENSORRT)
    uses = frozenset({"calibration"})

    def data_uses(self, facts: Facts) -> frozenset[DataUse]:
        """Return `calibration` for models with codes, to measure on what faster kernels lose."""
        return self.uses if facts.grids and self._faster else frozenset()

    @property
    def _faster(self) -> bool:
        return self.settings.kernels != "exact"

    def available(self) -> str | None:
        """Return why onnxruntime cannot be used here, or None."""
        there = installed.bringing("onnxruntime")
        if not there:
            return (
                "onnxruntime is not installed; pip install 'compress-engine[cpu]' (or [gpu], on a machine with a GPU)"
            )
        if len(there) > 1:
            return (
                "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; pip uninstall both, "
                "then pip install 'compress-engine[cpu]' or 'compress-engine[gpu]'"
            )
        try:
            from onnxruntime import InferenceSession  # noqa: F401
        except ImportError as error:
            return f"{there[0]} is installed but broken ({error}); pip install --force-reinstall {there[0]}"
        return None

    def plan(self, facts: Facts, target: Target | None) -> None:
        """Refuse targets that onnxruntime does not serve.

        Raises:
            BadSettings: no target, or one of another runtime or device.
        """
        if target is None:
            raise BadSettings("needs a [[target]] with runtime = 'onnxruntime'")
        if target.runtime not in self.runtimes:
            served = " or ".join(map(repr, self.runtimes))
            raise BadSettings(f"must be {served}, got {target.runtime!r}", key="runtime")
        if target.runtime == THROUGH_TENSORRT and target.device != "cuda":
            raise BadSettings(f"must be 'cuda', where TensorRT runs, got {target.device!r}", key="device")
        if target.device not in ("cpu", "cuda"):
            raise BadSettings(f"must be 'cpu' or 'cuda', got {target.device!r}", key="device")
        if target.precision == "bf16":
            raise BadSettings("onnxruntime lacks kernels of 'bf16'; 'fp16' or 'fp32' would do", key="precision")
        if facts.grids:
            from exporters.onnx import _kernels

            _kernels.opset(facts, self.settings.form, self.settings.opset)

    def export(self, artifact: Artifact, folder: Path, context: Context, target: Target | None) -> Export:
        """Write the graph and `run.py`; the model stays as it is."""
        from compress import grids, tree  # seconds of torch, which settings and `doctor` need not wait for
        from exporters import _graph
        from exporters.onnx import _kernels

        precision, device = (target.precision, target.device) if target else ("fp32", "cpu")
        known = tree.facts(artifact.model, artifact.task).after(grids=grids.facts(artifact.grids))
        opset = _kernels.opset(known, self.settings.form, self.settings.opset)
        if artifact.task == "causal-lm":
            graph = _graph.decoder(artifact.model, precision, opset)
        else:
            graph = _graph.encoder(artifact.model, artifact.task, precision, opset)
        facts = {
            "graph": GRAPH,
            "precision": precision,
            "opset": opset,
            "inputs": graph.inputs(),
            "outputs": graph.outputs(),
            "past": [{"layer": k.layer, "heads": k.heads, "head_dim": k.head_dim} for k in graph.past],
            "libraries": ["onnx", "onnxscript", *installed.bringing("onnxruntime")],
        }
        if target and target.runtime == THROUGH_TENSORRT:
            from exporters.onnx._engine import TENSORRT

            facts["provider"] = TENSORRT

        def write(way: _kernels.Way | None, folder: Path) -> Export:
            written, about = graph, dict[str, Any]()
            if way:
                written, sizes = _graph.with_codes(graph, artifact.grids, way.kernels)
                about = {"session": way.session, "codes": _kernels.described(way, known, sizes)}
            names = _graph.write(written, folder / GRAPH)
            shutil.copyfile(SCRIPT, folder / "run.py")
            return Export(files=(*names, "run.py"), facts={**facts, **about})

        if not known.grids:
            return write(None, folder)
        exact, *faster = _kernels.ways(known, self.settings.form, precision, device)
        return dataclasses.replace(
            write(exact, folder),
            variants=tuple(Variant(name=w.name, write=partial(write, w)) for w in faster if self._faster),
            tolerance=self.settings.tolerance if self.settings.kernels == "auto" else None,
        )

    def open(self, folder: Path, target: Target) -> Engine:
        """Load the graph for the target.

        Raises:
            Unavailable: onnxruntime or the target's device is not here.
        """
        from exporters.onnx._engine import OnnxEngine

        return OnnxEngine(folder, target, missing=self.available())
