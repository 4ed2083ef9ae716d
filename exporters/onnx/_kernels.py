"""Which kernel multiplies by the codes of which linear, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compress.errors import BadSettings
from compress.facts import Facts, GridFact
from compress.grid import groups
from exporters._graph import Bytes, Kernel, packing

Form = Literal["nbits", "qdq"]
Speed = Literal["exact", "level 4", "integer"]
_LEVEL, _FOLD = "session.qdq_matmulnbits_accuracy_level", "session.disable_quant_qdq"


@dataclass(frozen=True)
class Way:
    """One choice of kernels for all linears with codes.

    Attributes:
        name: `exact`: inputs stay floats.  `level 4`: they are rounded to 8 bits, a scale for each block.  `integer`:
            where the grid asks for integers, they are rounded with one scale for all, found when they come or the
            grid's own, elsewhere as at `level 4`.
        kernels: by linear.
        session: what onnxruntime must be told before it opens the graph.
    """

    name: Speed
    kernels: Mapping[str, Kernel]
    session: Mapping[str, str]


def ways(facts: Facts, form: Form, precision: str, device: str) -> list[Way]:
    """Return the choices there are for a model with codes: the exact one, then others that differ from it.

    Only the CPU's kernels have levels, and integers are rounded from float32 alone.
    """
    names: list[Speed] = ["exact"]
    if device == "cpu":
        names.append("level 4")
        if precision == "fp32" and any(g.activation != "none" for g in facts.grids.values()):
            names.append("integer")
    made = [_way(name, facts, form) for name in names]
    return [w for i, w in enumerate(made) if (w.kernels, w.session) not in [(m.kernels, m.session) for m in made[:i]]]


def _way(name: Speed, facts: Facts, form: Form) -> Way:
    kernels = {n: _kernel(name, fact, facts.shapes[n][1], form) for n, fact in facts.grids.items()}
    floats = [n for n, k in kernels.items() if k.operator == "DequantizeLinear"]
    if not floats:
        return Way(name, kernels, {})
    if form == "nbits" or not all(_fast(name, facts.grids[n], facts.shapes[n][1]) for n in floats):
        if any(k.operator == "QuantizeLinear" for k in kernels.values()):
            return _way("level 4", facts, form)  # what is dequantized when loaded rules out their integer kernels
        return Way(name, {n: Kernel(k.operator) if n in floats else k for n, k in kernels.items()}, {_FOLD: "1"})
    return Way(name, kernels, {_LEVEL: str(kernels[floats[0]].level)})


def _kernel(name: Speed, fact: GridFact, inputs: int, form: Form) -> Kernel:
    if name == "integer" and fact.activation != "none":
        return Kernel("MatMulInteger") if fact.activation == "dynamic" else Kernel("QuantizeLinear", unsigned=True)
    held = form == "nbits" and packing.block_size(fact, inputs) and not (fact.bits == 8 and name == "exact")
    return Kernel("MatMulNBits" if held else "DequantizeLinear", 0 if name == "exact" else 4)


def _fast(name: Speed, fact: GridFact, inputs: int) -> bool:
    """Tell whether onnxruntime makes a DequantizeLinear and its MatMul one kernel that is worth it.

    It takes groups that are blocks of MatMulNBits, and rows; and of 8 bits that kernel is tens of times slower than
    one of floats unless it rounds its inputs.  All others are as fast as floats once dequantized when loaded.
    """
    whole = groups(inputs, fact.group_size) == 1
    return (whole or fact.group_size in packing.BLOCKS) and not (fact.bits == 8 and name == "exact")


def opset(facts: Facts, form: Form, asked: int | None) -> int:
    """Return the version of the operators: the one asked for, else the lowest that holds the codes.

    Raises:
        BadSettings: the one that is asked for does not hold them, or they are no integers.
    """
    for name, grid in facts.grids.items():
        inputs = facts.shapes[name][1]
        for fact in grid.possible:
            if fact.format != "int":
                what = f"{name}: onnxruntime multiplies by integers, got codes of {fact.told}"
                raise BadSettings(f"{what}; [[export]] use = 'tensorrt' takes these")
            in_rows = fact.bits == 8 and groups(inputs, fact.group_size) == 1
            if in_rows or _kernel("exact", fact, inputs, form).operator != "DequantizeLinear":
                continue
            if asked == 20:
                what = f"{name} has codes of {fact.bits} bits in groups of {fact.group_size or inputs}"
                sizes = ", ".join(map(str, reversed(packing.BLOCKS)))
                holds = f"; of fewer bits also groups of {sizes} and their multiples" if form == "nbits" else ""
                raise BadSettings(f"{what}; opset 20 holds whole rows of 8 bits{holds}, got 20; use 21", key="opset")
            return 21
    return asked or 20


def described(made: Way, facts: Facts, sizes: Mapping[str, Bytes]) -> dict[str, Any]:
    """Return what the manifest says of codes: of every linear what is integer, how it is multiplied, its bytes."""
    layers = {}
    for name in (n for n in facts.shapes if n in facts.grids):
        fact, kernel = facts.grids[name], made.kernels[name]
        layers[name] = {
            "bits": fact.bits,
            "stored_bits": packing.stored_bits(fact.bits, kernel.operator == "MatMulNBits"),
            "group_size": fact.group_size,
            "zero": fact.zero,
            "offset": fact.offset,
            "activation": fact.activation,
            "kernel": _told(kernel, made.session),
            "bytes": sizes[name].after,
            "bytes_before": sizes[name].before,
        }
    return {"kernels": made.name, "simulated": _simulated(layers, made), "layers": layers}


def _told(kernel: Kernel, session: Mapping[str, str]) -> str:
    """Return in words what multiplies."""
    if kernel.operator == "MatMulInteger":
        return "MatMulInteger"
    if kernel.operator == "QuantizeLinear":
        return "QDQ, integer"
    if kernel.operator == "DequantizeLinear" and _FOLD in session:
        return "float, dequantized when loaded"
    return f"{'QDQ' if kernel.operator == 'DequantizeLinear' else kernel.operator}, level {kernel.level}"


def _simulated(layers: Mapping[str, Mapping[str, Any]], made: Way) -> list[str]:
    """Return what the codes ask for and the file or its kernels do not do."""
    asked = [n for n, layer in layers.items() if layer["activation"] != "none"]
    floats = [n for n in asked if made.name == "exact"]
    wider = [n for n, layer in layers.items() if layer["stored_bits"] != layer["bits"]]
    told = []
    if floats:
        told.append(f"inputs of 8 bits: {_some(floats)} read floats")
    for bits in sorted({layers[n]["bits"] for n in wider}):
        names = [n for n in wider if layers[n]["bits"] == bits]
        told.append(f"codes of {bits} bits: {_some(names)} hold them in {layers[names[0]]['stored_bits']}")
    return told


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more linears"
