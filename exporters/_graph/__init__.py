"""Build ONNX graphs from models: one for prefill and decode of a decoder, or one for an encoder.

A decoder's graph takes `input_ids`, `attention_mask`, `position_ids` and, for every layer that keeps keys and values,
`past_key_values.<layer>.key` and `.value`; it returns `logits` and the `present` of those layers.  The past may have
length 0, so that one graph reads a prompt and then writes token after token.  Layers without attention have no past.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from transformers import PreTrainedModel

from compress import files
from compress.engines.twin import twin
from compress.facts import Task
from compress.grid import Grid
from exporters._graph.calls import Call, decoder_call, encoder_call
from exporters._graph.products import Bytes, Kernel, replace_
from exporters._graph.tracing import trace
from exporters._graph.wrappers import KeyValues

__all__ = [
    "TYPES", "Bytes", "Call", "Graph", "Kernel", "KeyValues", "decoder", "decoder_call", "encoder", "encoder_call",
    "with_codes", "write",
]  # fmt: skip

SIDE_FILE_BYTES = 1_800_000_000  # weights beyond this go to a side file: a protobuf file ends at 2 GiB
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph, and the layers that have a past."""

    model: ir.Model
    past: tuple[KeyValues, ...] = ()

    def inputs(self) -> list[dict[str, Any]]:
        """Return name, type and shape (a number or a name per axis) of every input, in order."""
        return [_described(v) for v in self.model.graph.inputs]

    def outputs(self) -> list[dict[str, Any]]:
        """Return name, type and shape (a number or a name per axis) of every output, in order."""
        return [_described(v) for v in self.model.graph.outputs]


def decoder(model: PreTrainedModel, precision: str, opset: int) -> Graph:
    """Return the graph of a causal model, keys and values in the precision, logits always float32."""
    with twin(model, TYPES[precision], "cpu") as same:
        call = decoder_call(same)
        traced = trace(call, opset)
    layers = call.past
    for value, layer in zip(traced.graph.outputs[1:], (k for k in layers for _ in range(2)), strict=True):
        value.shape = ir.Shape(["batch", layer.heads, "total", layer.head_dim])  # traced as past + sequence
    return Graph(model=traced, past=layers)


def encoder(model: PreTrainedModel, task: Task, precision: str, opset: int) -> Graph:
    """Return the graph of a model that reads a text at once, its output always float32.

    It takes `token_type_ids` if the model tells types apart.
    """
    with twin(model, TYPES[precision], "cpu") as same:
        return Graph(model=trace(encoder_call(same, task), opset))


def with_codes(
    graph: Graph, grids: Mapping[str, Grid], kernels: Mapping[str, Kernel]
) -> tuple[Graph, dict[str, Bytes]]:
    """Return the graph with linears that multiply by their codes, and what each takes; the one given stays.

    Raises:
        BadModel: the graph has no one product with such a linear's weight.
    """
    model = graph.model.clone()
    sizes = {name: replace_(model, name, grids[name], kernel) for name, kernel in kernels.items()}
    if any(kernel.operator == "QuantizeLinear" for kernel in kernels.values()):
        model.graph.sort()  # a linear may read what another one, behind it so far, has rounded
    return Graph(model=model, past=graph.past), sizes


def write(graph: Graph, path: Path) -> tuple[str, ...]:
    """Write a graph, its weights beside it when they are large, and return the names of the files."""
    weights = (v.const_value for v in graph.model.graph.initializers.values())
    size = sum(w.nbytes for w in weights if w is not None)
    side = f"{path.name}.data" if size > SIDE_FILE_BYTES else None
    with files.disk_errors(path):
        ir.save(graph.model, path, external_data=side)
    return (path.name, side) if side else (path.name,)


def _described(value: ir.Value) -> dict[str, Any]:
    assert value.dtype is not None
    assert value.shape is not None
    shape = [axis if isinstance(axis, int) else str(axis.value) for axis in value.shape]
    return {"name": value.name, "dtype": str(value.dtype.numpy()), "shape": shape}
