"""Trace a module to an ONNX graph that holds the module and nothing of its making."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import torch

from exporters._graph.calls import Call


def trace(call: Call, opset: int) -> ir.Model:
    """Return the graph of a call, the names of its parameters without `model`; tracing twice gives the same bytes.

    Args:
        call: what to trace.
        opset: version of the ONNX operators.
    """
    with _quiet():
        program = torch.onnx.export(
            call.module.eval(), call.arguments, dynamo=True, dynamic_shapes=call.shapes, input_names=call.inputs,
            output_names=call.outputs, opset_version=opset, optimize=False, verbose=False,
        )  # fmt: skip
        assert program is not None
        _transpose_weights_(program.model.graph)
        program.optimize()
    _scrub_(program.model)
    return program.model


def _transpose_weights_(graph: ir.Graph) -> None:
    """Store transposed, under its own name, what the graph transposes anyway; tied embeddings are read both ways."""
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or weight.const_value is None or not weight.is_initializer() or len(weight.uses()) != 1:
            continue
        weight.const_value = _transposed(weight.const_value, list(node.attributes["perm"].as_ints()))
        weight.shape = ir.Shape(weight.const_value.shape)
        node.outputs[0].replace_all_uses_with(weight)
        graph.remove(node, safe=True)


def _transposed(tensor: ir.TensorProtocol, axes: Sequence[int]) -> ir.LazyTensor:
    """Return the tensor transposed at the moment when it is read, so that no second copy of all weights is held."""

    def read() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy().transpose(axes)), name=tensor.name)

    sizes = tensor.shape.numpy()
    shape = ir.Shape([sizes[axis] for axis in axes])
    return ir.LazyTensor(read, dtype=tensor.dtype, shape=shape, name=tensor.name)


def _scrub_(model: ir.Model) -> None:
    """Drop source lines, paths and the shapes of values within the graph."""
    graph = model.graph
    for holder in (model, graph, *graph, *graph.inputs, *graph.initializers.values()):
        holder.metadata_props.clear()
        holder.doc_string = None
    for value in (v for node in graph for v in node.outputs):
        value.metadata_props.clear()
        if not value.is_graph_output():
            value.type = value.shape = None
    for value in list(graph.initializers.values()):
        if value.name:
            value.name = value.name.removeprefix("model.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's chatter; its errors are exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
