"""Multiply by codes instead of by the floats that they stand for: one linear's product in a traced graph, replaced.

The graph keeps the linear's bias, and whatever stands beside it; the floats leave the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compress.errors import BadModel
from compress.grid import Grid, bounds
from exporters._graph import packing

Operator = Literal["MatMulNBits", "DequantizeLinear", "MatMulInteger", "QuantizeLinear"]
_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Kernel:
    """How a linear multiplies by its codes.

    Attributes:
        operator: `MatMulNBits`, which reads packed codes; `DequantizeLinear` before a MatMul of floats; `MatMulInteger`
            of inputs that are rounded to 8 bits, one scale for all that come at once; or `QuantizeLinear` and back of
            static inputs beside `DequantizeLinear` of the weight, of which runtimes make one product of codes.
        level: of MatMulNBits, its accuracy: 0 computes in floats, 4 rounds inputs to 8 bits, a scale for each block.
        unsigned: of QuantizeLinear, whether integers are held as uint8 about 128, for which x86 has its fast kernels,
            and not as int8 about 0, as TensorRT needs them; they stand for the same.
    """

    operator: Operator
    level: int = 0
    unsigned: bool = False


@dataclass(frozen=True)
class Bytes:
    """What one linear's weight takes in the file, before and after."""

    before: int
    after: int


def replace_(model: ir.Model, name: str, grid: Grid, kernel: Kernel) -> Bytes:
    """Let a linear of the graph multiply by its codes; its floats are no longer in the graph.

    Args:
        model: a traced graph.
        name: of the linear, whose weight has the name `<name>.weight`.
        grid: what its weight is.
        kernel: how to multiply.

    Raises:
        BadModel: nothing in the graph multiplies by such a weight.
    """
    weight = model.graph.initializers.get(f"{name}.weight")
    uses = list(weight.uses()) if weight is not None else []
    if weight is None or len(uses) != 1 or uses[0].node.op_type not in ("MatMul", "Gemm") or uses[0].idx != 1:
        raise BadModel(f"{name}: has codes, and the traced graph has no one product with its weight to put them in")
    node = uses[0].node
    assert weight.const_value is not None
    assert weight.dtype is not None
    before = weight.const_value.nbytes
    given = node.inputs[0]
    assert given is not None
    made = _Product(name, weight.dtype)
    result = _WAYS[kernel.operator](made, given, grid, kernel)
    if grid.offset is not None:
        result = made.node("Add", result, _offset(made, given, grid, result))
    if node.op_type == "Gemm" and len(node.inputs) > 2:
        result = made.node("Add", result, node.inputs[2])
    _put_(model, node, made, result)
    del model.graph.initializers[f"{name}.weight"]
    return Bytes(before, sum(v.const_value.nbytes for v in made.constants if v.const_value is not None))


class _Product:
    """Nodes and constants of one linear, under its name."""

    def __init__(self, name: str, dtype: ir.DataType) -> None:
        self.name, self.dtype = name, dtype
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def node(self, operator: str, *inputs: ir.Value | None, domain: str = "", count: int = 1, **attributes: Any) -> Any:
        """Add a node and return its outputs, one alone as it is."""
        name = f"{self.name}.{operator}.{len(self.nodes)}"
        node = ir.node(operator, inputs, attributes, domain=domain, num_outputs=count, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}.{index}"
        self.nodes.append(node)
        return node.outputs[0] if count == 1 else node.outputs

    def constant(self, part: str, values: np.ndarray) -> ir.Value:
        """Add a constant of any type."""
        tensor = ir.tensor(np.asarray(values, order="C"), name=f"{self.name}.{part}")
        value = ir.val(tensor.name, const_value=tensor, dtype=tensor.dtype, shape=tensor.shape.numpy())
        self.constants.append(value)
        return value

    def floats(self, part: str, values: Tensor) -> ir.Value:
        """Add a constant of the graph's floating-point type."""
        return self.constant(part, values.numpy().astype(self.dtype.numpy()))


def _nbits(made: _Product, given: ir.Value, grid: Grid, kernel: Kernel) -> ir.Value:
    rows, inputs = grid.codes.shape
    size = packing.block_size(grid.fact, inputs)
    assert size is not None
    codes, scale, zero = packing.blocks(grid, size)
    parts: list[ir.Value] = [made.constant("codes", codes.numpy()), made.floats("scale", scale)]
    if zero is not None:
        parts.append(made.constant("zero", zero.numpy()))
    bits = packing.stored_bits(grid.bits)
    about = {"K": inputs, "N": rows, "bits": bits, "block_size": size, "accuracy_level": kernel.level}
    value: ir.Value = made.node("MatMulNBits", given, *parts, domain=_MICROSOFT, **about)
    return value


def _dequantized(made: _Product, given: ir.Value, grid: Grid, kernel: Kernel) -> ir.Value:
    parts = [made.constant("codes", packing.constants(grid.codes.t(), grid.bits))]
    parts.append(made.floats("scale", packing.columns(grid.scale)))
    if grid.zero is not None:
        parts.append(made.constant("zero", packing.constants(packing.columns(grid.zero), grid.bits)))
    blocked = {"axis": 0, "block_size": grid.group_size} if grid.scale.shape[1] > 1 else {"axis": 1}
    value: ir.Value = made.node("MatMul", given, made.node("DequantizeLinear", *parts, **blocked))
    return value


def _static(made: _Product, given: ir.Value, grid: Grid, kernel: Kernel) -> ir.Value:
    return _dequantized(made, _rounded(made, given, grid, kernel), grid, kernel)


def _rounded(made: _Product, given: ir.Value, grid: Grid, kernel: Kernel) -> ir.Value:
    """Return what static inputs stand for; linears that read the same with one step share it."""
    assert grid.input_scale is not None
    step = grid.input_scale.numpy().astype(made.dtype.numpy())
    zero = packing.constants(torch.zeros((), dtype=grid.codes.dtype), grid.bits)
    if kernel.unsigned:
        zero = np.array(-bounds(grid.bits)[0], np.uint8)
    for node in (use.node for use in given.uses() if use.node.op_type == "QuantizeLinear"):
        held = [v.const_value.numpy() for v in node.inputs[1:] if v is not None and v.const_value is not None]
        if held == [step, zero] and held[1].dtype == zero.dtype:
            (back,) = node.outputs[0].uses()
            return back.node.outputs[0]
    parts = [made.constant("input_scale", step), made.constant("input_zero", zero)]
    value: ir.Value = made.node("DequantizeLinear", made.node("QuantizeLinear", given, *parts), *parts)
    return value


def _integer(made: _Product, given: ir.Value, grid: Grid, kernel: Kernel) -> ir.Value:
    """Inputs rounded when they come; the order of the two factors is the one that onnxruntime fuses."""
    codes = made.constant("codes", grid.codes.t().numpy())
    rounded, step, zero = made.node("DynamicQuantizeLinear", given, count=3)
    product = made.node("MatMulInteger", rounded, codes, zero)
    steps = made.node("Mul", step, made.floats("scale", packing.columns(grid.scale)))
    value: ir.Value = made.node("Mul", made.node("Cast", product, to=ir.DataType.FLOAT), steps)
    return value


_WAYS = {"MatMulNBits": _nbits, "DequantizeLinear": _dequantized, "MatMulInteger": _integer, "QuantizeLinear": _static}


def _offset(made: _Product, given: ir.Value, grid: Grid, result: ir.Value) -> ir.Value:
    """Return what offsets add: the sum of the inputs of each group times its offset."""
    count, size, values = packing.offsets(grid)
    missing = count * size - grid.codes.shape[1]
    if missing:
        ends, last = (made.constant(n, np.array(v, np.int64)) for n, v in (("ends", [0, missing]), ("last", [-1])))
        given = made.node("Pad", given, ends, None, last)
    grouped = made.node("Reshape", given, made.constant("groups", np.array([-1, count, size], np.int64)))
    sums = made.node("ReduceSum", grouped, made.constant("within", np.array([2], np.int64)), keepdims=0)
    added = made.node("MatMul", sums, made.floats("offset", values))
    value: ir.Value = made.node("Reshape", added, made.node("Shape", result))
    return value


def _put_(model: ir.Model, old: ir.Node, made: _Product, result: ir.Value) -> None:
    for value in made.constants:
        model.graph.register_initializer(value)
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], made.nodes, list(old.outputs[:1]), [result])
    if any(n.domain == _MICROSOFT for n in made.nodes):
        model.opset_imports[_MICROSOFT] = 1
