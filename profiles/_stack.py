"""Cut a traced model between its blocks, and put blocks together in any order and number: tracing once is enough.

Every node of the graph belongs to the last block whose weights, keys or values have flowed into it; a block so ends
just before the next one's first weight, a norm's sums among it.  What then passes from block to block are the same few
values everywhere (the residual, and where a norm begins without weights, the normalised one), so that any block fits
behind any other of the same width.  The last traced block, of the shape of the first, is never used: what follows it
does not read all that a block would, and begins without weights where it pools.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compress import files
from compress.errors import CompressError

SIDE_FILE_BYTES = 1_800_000_000  # weights beyond this go to a side file: a protobuf file ends at 2 GiB
_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)$")
_PRESENT = re.compile(r"present\.(\d+)\.(key|value)$")


@dataclass(frozen=True, kw_only=True)
class Names:
    """What is called how in the traced model.

    Attributes:
        blocks: the blocks' names, first to last.
        outside: parameters that are in no block.
        embedding: of these, what tokens are looked up in; a head that is tied to it is another name of it.
    """

    blocks: tuple[str, ...]
    outside: frozenset[str]
    embedding: frozenset[str]


class Pieces:
    """A traced model, cut between its blocks.

    Args:
        model: its last block has the shape of the first; no two parameters are equal, since such are stored once.
        names: of its parts.

    Raises:
        CompressError: something else than the residual passes from block to block.
    """

    def __init__(self, model: ir.Model, names: Names) -> None:
        self.model, self.names = model, names
        self._prefixes = {f"{name}.": i for i, name in enumerate(names.blocks)}
        self._levels: dict[ir.Value, int] = {}
        self._embedded: set[ir.Value] = set()
        self.nodes: dict[int, list[ir.Node]] = {i: [] for i in range(len(names.blocks) + 1)}
        for node in model.graph:
            level = self._level(node)
            self._levels |= dict.fromkeys(node.outputs, level)
            if level >= 0:
                self.nodes[level].append(node)
        self._part_tail()
        self.streams = {i: self._stream(i) for i in self.nodes}
        *between, last = (len(s) for s in self.streams.values())
        if len(set(between)) != 1 or last > between[0]:
            counts = ", ".join(str(len(s)) for s in self.streams.values())
            raise CompressError(f"the traced model cannot be cut between its blocks: {counts} values pass there")

    def block_of(self, made: ir.Value | ir.Node) -> int | None:
        """Return the block that a parameter's or a node's name says, None where it says none."""
        return next((i for prefix, i in self._prefixes.items() if (made.name or "").startswith(prefix)), None)

    def is_shared(self, value: ir.Value) -> bool:
        """Tell whether a value depends on no block: masks, positions, constants and what is outside the blocks."""
        return self._levels.get(value, -1) < 0

    def _part_tail(self) -> None:
        """Give what the last block has beyond the first, which is like it, to what stands behind the blocks."""
        last = len(self.names.blocks)
        first, end = self.nodes[0], self.nodes[last - 1]
        if [n.op_type for n in first] != [n.op_type for n in end[: len(first)]]:
            raise CompressError("the traced model cannot be cut between its blocks: the last one is unlike the first")
        self.nodes[last - 1], more = end[: len(first)], end[len(first) :]
        self.nodes[last] = [*more, *self.nodes[last]]
        self._levels |= {value: last for node in more for value in node.outputs}

    def _level(self, node: ir.Node) -> int:
        """Return the last block that has flowed into a node: -1 none yet, the number of blocks behind them all."""
        given = [v for v in node.inputs if v is not None]
        if any(v in self._embedded or v.name in self.names.embedding for v in given):
            self._embedded.update(node.outputs)
        if node.op_type == "Shape" and any(v.is_graph_input() for v in given):
            return -1  # batch and length, which all blocks have in common
        named = self.block_of(node)  # of a linear with codes, whose first node reads the residual alone
        level = max([-1 if named is None else named, *(self._input_level(v) for v in given)])
        last = len(self.names.blocks)
        return last if level >= 0 and any(v.name in self.names.outside for v in given) else level

    def _input_level(self, value: ir.Value) -> int:
        if value.is_initializer():
            return -1 if (block := self.block_of(value)) is None else block
        if value.is_graph_input():
            found = _PAST.match(value.name or "")
            return int(found[1]) if found else -1
        return self._levels[value]

    def _stream(self, level: int) -> list[ir.Value]:
        """Return what a block reads of those before it, in the order in which it was computed."""
        read = {v for n in self.nodes[level] for v in n.inputs if v is not None and not v.is_initializer()}
        before = {v for v in read if 0 <= self._levels.get(v, -1) < level}
        if far := [v for v in before if self._levels[v] < level - 1]:
            names = ", ".join(str(v.name) for v in far)
            raise CompressError(f"the traced model cannot be cut between its blocks: {names} pass over one")
        if not before:
            before = {v for v in read if self._levels.get(v) == -1 and v in self._embedded}
        places = {id(o): k for k, node in enumerate(self.model.graph) for o in node.outputs}
        return sorted(before, key=lambda v: places[id(v)])


def stack(pieces: Pieces, order: Sequence[int], vocabulary: int | None = None) -> ir.Model:
    """Return a model of some of the blocks, each copy with weights of its own in the file.

    Args:
        pieces: what was cut.
        order: which block stands where; at least one, and never the last that was traced.
        vocabulary: of the embedding and the head, when not the traced one.
    """
    made = _Stack(pieces, vocabulary)
    for place, block in enumerate(order):
        made.add(block, place)
    return made.finish()


def write(model: ir.Model, path: Path) -> None:
    """Write a model, its weights beside it when they are large."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    with files.disk_errors(path):
        ir.save(model, path, external_data=f"{path.name}.data" if size > SIDE_FILE_BYTES else None)


class _Stack:
    """A graph in the making."""

    def __init__(self, pieces: Pieces, vocabulary: int | None) -> None:
        self._pieces, self._vocabulary = pieces, vocabulary
        self._old = pieces.model.graph
        self._nodes: list[ir.Node] = []
        self._inputs: dict[str, ir.Value] = {}
        self._outputs: list[ir.Value] = []
        self._constants: dict[str, ir.Value] = {}
        self._shared: dict[ir.Value, ir.Value] = {}  # old to new
        self._streams: list[ir.Value] = []
        self._traced = next(
            v.shape[0] for n, v in self._old.initializers.items() if n in pieces.names.embedding and v.shape
        )
        for value in self._old.inputs:
            if not _PAST.match(value.name or ""):
                self._input(value, value.name or "", self._shared)

    def add(self, block: int, place: int) -> None:
        """Put a copy of a block behind what is there."""
        scope: dict[ir.Value, ir.Value] = {}
        for value in self._old.inputs:
            found = _PAST.match(value.name or "")
            if found and int(found[1]) == block:
                self._input(value, f"past_key_values.{place}.{found[2]}", scope)
        self._enter(block, scope)
        for node in self._pieces.nodes[block]:
            self._copy(node, scope, f"{place}:", place)
        following = self._pieces.streams[block + 1]
        self._streams = [scope[v] for v in following]
        self._outputs += [scope[v] for v in self._old.outputs if v in scope]

    def finish(self) -> ir.Model:
        """Put the final norm and the head behind, and return the whole."""
        last, scope = len(self._pieces.names.blocks), dict[ir.Value, ir.Value]()
        self._enter(last, scope)
        for node in self._pieces.nodes[last]:
            self._copy(node, scope, "", None)
        heads = [scope[v] for v in self._old.outputs if v in scope]
        graph = ir.Graph(
            list(self._inputs.values()), [*heads, *self._outputs], nodes=self._nodes,
            initializers=list(self._constants.values()), opset_imports=dict(self._old.opset_imports), name="stack",
        )  # fmt: skip
        return ir.Model(graph, ir_version=self._pieces.model.ir_version)

    def _enter(self, block: int, scope: dict[ir.Value, ir.Value]) -> None:
        """Let what the block reads of others be what the ones before it, or the embedding, have made here."""
        wanted = self._pieces.streams[block]
        if not self._streams:
            self._streams = [self._take(v, self._shared, "") for v in self._pieces.streams[0]]
        scope |= zip(wanted, self._streams[len(self._streams) - len(wanted) :], strict=True)

    def _copy(self, node: ir.Node, scope: dict[ir.Value, ir.Value], prefix: str, place: int | None) -> None:
        inputs = [None if v is None else self._take(v, scope, prefix) for v in node.inputs]
        made = ir.Node(
            node.domain, node.op_type, inputs, list(node.attributes.values()), overload=node.overload,
            num_outputs=len(node.outputs), name=f"{prefix}{node.name}",
        )  # fmt: skip
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name = f"{prefix}{old.name}"
            if old.is_graph_output():
                found = _PRESENT.match(old.name or "")
                new.name = f"present.{place}.{found[2]}" if found else old.name
                new.type, new.shape = old.type, self._resized(old.shape)
            scope[old] = new
        self._nodes.append(made)

    def _take(self, value: ir.Value, scope: dict[ir.Value, ir.Value], prefix: str) -> ir.Value:
        """Return what stands here for a value of the traced graph, made now if it is not there yet."""
        if value in scope:
            return scope[value]
        if value in self._shared:
            return self._shared[value]
        if value.is_initializer():
            own = self._pieces.block_of(value) is not None
            name = f"{prefix}{value.name}" if own else value.name or ""
            return self._constant(value, name, scope if own else self._shared)
        if value.is_graph_input():  # its batch and length alone: any keys will do
            return next(v for n, v in self._inputs.items() if _PAST.match(n))
        producer = value.producer()
        assert producer is not None
        assert self._pieces.is_shared(value), value.name
        self._copy(producer, self._shared, "", None)
        return self._shared[value]

    def _input(self, old: ir.Value, name: str, scope: dict[ir.Value, ir.Value]) -> None:
        self._inputs[name] = scope[old] = ir.Value(name=name, shape=old.shape, type=old.type)

    def _constant(self, old: ir.Value, name: str, scope: dict[ir.Value, ir.Value]) -> ir.Value:
        tensor = old.const_value
        assert tensor is not None
        if self._vocabulary and old.name in self._pieces.names.outside and self._traced in tensor.shape.numpy():
            rng = np.random.default_rng(0)
            sizes = [self._vocabulary if n == self._traced else n for n in tensor.shape.numpy()]
            tensor = ir.tensor((rng.standard_normal(sizes, np.float32) / 32).astype(tensor.numpy().dtype), name=name)
        made = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), const_value=tensor)
        made.dtype = tensor.dtype
        self._constants[name] = scope[old] = made
        return made

    def _resized(self, shape: ir.Shape | None) -> ir.Shape | None:
        if shape is None or not self._vocabulary:
            return shape
        return ir.Shape([self._vocabulary if axis == self._traced else axis for axis in shape])
