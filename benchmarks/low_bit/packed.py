"""Zeros counted in the files that are handed out, by readers of their own that share no line with the writers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file

from benchmarks._ledger import Row

Bools = NDArray[np.bool_]


def of_onnx(graph: Path) -> Row:
    """Count the zeros of every MatMulNBits of a graph."""
    return _counted(_onnx(graph))


def of_compressed_tensors(folder: Path) -> Row:
    """Count the zeros of every packed weight of a folder."""
    return _counted(_compressed_tensors(folder))


def _onnx(graph: Path) -> Iterator[Bools]:
    model = onnx.load(graph)
    held = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        about = {a.name: a.i for a in node.attribute}
        bits, inputs = about["bits"], about["K"]
        packed = numpy_helper.to_array(held[node.input[1]])
        rows, blocks, _ = packed.shape
        codes = _fields(packed.reshape(rows, -1), bits).reshape(rows, blocks, -1)
        zero = np.full((rows, blocks, 1), 2 ** (bits - 1))
        if len(node.input) > 3 and node.input[3]:
            given = numpy_helper.to_array(held[node.input[3]]).reshape(rows, -1)
            zero = _fields(given, bits)[:, :blocks, None]
        yield (codes == zero).reshape(rows, -1)[:, :inputs]


def _compressed_tensors(folder: Path) -> Iterator[Bools]:
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for name in (n for n in tensors if n.endswith(".weight_packed")):
            stem = name.removesuffix("_packed")
            rows, inputs = map(int, tensors[f"{stem}_shape"])
            words = tensors[name].view(np.uint8)
            groups = tensors[f"{stem}_scale"].shape[1]
            bits = next(b for b in (2, 3, 4, 8) if words.shape[1] == 4 * -(-inputs * b // 32))
            codes = _fields(words, bits)[:, :inputs]
            zero = np.full((rows, groups), 2 ** (bits - 1))
            if f"{stem}_zero_point" in tensors:  # packed along the rows
                turned = np.ascontiguousarray(tensors[f"{stem}_zero_point"].T).view(np.uint8)
                zero = _fields(turned, bits)[:, :rows].T
            yield codes == zero.repeat(-(-inputs // groups), axis=1)[:, :inputs]


def _fields(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return the numbers in rows of bytes, lowest bits first."""
    single = np.unpackbits(packed, axis=1, bitorder="little")
    whole = single[:, : single.shape[1] // bits * bits].reshape(len(packed), -1, bits)
    return (whole << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8)


def _counted(found: Iterator[Bools]) -> Row:
    zeros = size = linears = 0
    fours = True
    for each in found:
        linears, zeros, size = linears + 1, zeros + int(each.sum()), size + each.size
        fours &= each.shape[1] % 4 == 0 and bool((each.reshape(-1, 4).sum(1) >= 2).all())
    return {"linears": linears, "zeros": round(zeros / max(size, 1), 6), "two_of_four": fours and linears > 0}
