"""What TensorRT takes, told before anything is built, and its refusals in our words."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from compress.contracts import Target
from compress.engines.choice import EXACT, INTEGER
from compress.errors import BadModel, BadSettings
from compress.facts import Activation, Facts, GridFact
from compress.grid import groups
from compress.installed import bringing
from exporters._graph import Bytes, Kernel

Flavour = Literal["tensorrt", "tensorrt-rtx"]
MODULES: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL: Mapping[str, str] = {
    "tensorrt": "pip install tensorrt (its libraries, some gigabytes, are fetched from NVIDIA)",
    "tensorrt-rtx": "pip install 'compress-engine[trt-rtx]'",
}
_FP8 = (8, 9)  # compute capability of the first GPUs that have floats of 8 bits
_DRIVERS = {"cu13": "580 or later", "cu12": "525 or later"}
_MENDS = {
    "zero point": "symmetric codes would do",
    "block": "a group size that divides the inputs of every linear, such as 32, would do",
    "Attention": "precision = 'fp16' would do",
    "DynamicQuantizeLinear": "codes without integer inputs would do, or activation = 'static'",
    "MatMulNBits": "[[export]] use = 'tensorrt' writes codes that it takes",
    "compute capability": "leave compute_capabilities out, or name those that it knows: 7.5, 8.0, 8.6, 8.9, 12.0, 12.1",
}  # of what the builder says or is about, what would do


def installed() -> list[Flavour]:
    """Return the flavours that can be imported here."""
    flavours: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")
    return [f for f in flavours if importlib.util.find_spec(MODULES[f])]


def driver(flavour: Flavour) -> str:
    """Return which driver engines need."""
    found = [need for name in bringing(flavour) for cuda, need in _DRIVERS.items() if name.endswith(cuda)]
    return found[0] if found else _DRIVERS["cu13"]


def flavour_of(asked: Flavour | None, target: Target) -> Flavour:
    """Return the flavour to build: the one asked for, the runtime's own, or for `tensorrt` what is installed.

    Raises:
        BadSettings: the flavour is another than the target's runtime.
    """
    if asked and target.runtime == "tensorrt-rtx" and asked != target.runtime:
        raise BadSettings(f"must be the target's runtime, 'tensorrt-rtx', got {asked!r}", key="flavour")
    if asked or target.runtime == "tensorrt-rtx":
        return asked or "tensorrt-rtx"
    return next(iter(installed()), "tensorrt")


def check_target(target: Target | None, facts: Facts) -> None:
    """Refuse targets that a plan cannot serve.

    Raises:
        BadSettings: another runtime or device, or ranges that leave the request out.
    """
    if target is None:
        raise BadSettings("needs a [[target]] with runtime = 'tensorrt-rtx' or 'tensorrt'")
    if target.runtime not in MODULES:
        raise BadSettings(f"must be 'tensorrt' or 'tensorrt-rtx', got {target.runtime!r}", key="runtime")
    if target.device != "cuda":
        raise BadSettings(f"must be 'cuda', got {target.device!r}", key="device")
    if target.max_batch is not None and target.max_batch < target.batch:
        raise BadSettings(f"must be at least batch, {target.batch}, got {target.max_batch}", key="max_batch")
    tokens = target.prompt + target.generate
    if target.max_length is not None and target.max_length < tokens:
        raise BadSettings(f"must be at least prompt + generate, {tokens}, got {target.max_length}", key="max_length")
    if target.max_length is not None and facts.positions is not None and target.max_length > facts.positions:
        what = f"the model takes at most {facts.positions} tokens"
        raise BadSettings(f"{what}, got {target.max_length}; lower it", key="max_length")


def check_codes(facts: Facts, capabilities: Sequence[str]) -> None:
    """Refuse codes that no plan holds, or none for GPUs of such compute capabilities.

    Raises:
        BadSettings: asymmetric codes, of 2 or 3 bits, or in groups that do not divide the inputs; floats of 8 bits on
            GPUs that have none.
    """
    for name, grid in facts.grids.items():
        for fact in grid.possible:
            if why := _why_not(fact, facts.shapes[name][1]):
                raise BadSettings(f"{name}: {why}")
            if fact.format == "fp8" and (old := [c for c in capabilities if _version(c) < _FP8]):
                what = f"{name} has codes of {fact.told}, for which a GPU needs 8.9 or later, got {old[0]}"
                raise BadSettings(f"{what}; leave it out, or quantize to integers", key="compute_capabilities")


def _version(capability: str) -> tuple[int, ...]:
    """Return a compute capability's numbers; what is none is the builder's to refuse."""
    return tuple(int(n) for n in capability.split(".") if n.isdecimal())


def _why_not(fact: GridFact, inputs: int) -> str | None:
    """Return why codes cannot be multiplied by, and what would do."""
    if fact.bits not in (4, 8):
        return f"TensorRT has codes of 4 and 8 bits, got {fact.bits}; bits = 4 takes the space that {fact.bits} would"
    if fact.zero or fact.offset:
        kind = "codes of their own for zero" if fact.zero else "offsets"
        return f"TensorRT multiplies by symmetric codes alone, got groups with {kind}; symmetric ones would do"
    if groups(inputs, fact.group_size) > 1 and fact.group_size and inputs % fact.group_size:
        what = f"its {inputs} inputs are no multiple of the group size, got {fact.group_size}"
        whole = [size for size in (128, 64, 32, 16) if inputs % size == 0]
        return f"{what}; {f'group_size = {whole[0]}' if whole else 'whole rows'} would do"
    return None


def refused(told: Mapping[str, Any], flavour: str) -> BadModel:
    """Return what the parser or the builder said as a fault of ours: node, words, what would do where known."""
    text, node, operator = (" ".join(str(told[k]).split()) for k in ("text", "node", "operator"))
    where = f"{node} ({operator}): " if node or operator else ""
    mend = next((m for key, m in _MENDS.items() if key.lower() in f"{text} {operator}".lower()), None)
    return BadModel(f"{where}{flavour} refuses the graph: {text}{f'; {mend}' if mend else ''}")


def kernels(facts: Facts, *, rounds: bool) -> dict[str, Kernel]:
    """Return how every linear with codes multiplies; `rounds` tells whether static inputs become codes too."""
    static = {n for n, g in facts.grids.items() if rounds and g.activation == "static"}
    return {n: Kernel("QuantizeLinear" if n in static else "DequantizeLinear") for n in facts.grids}


def described(facts: Facts, sizes: Mapping[str, Bytes], *, rounds: bool) -> dict[str, Any]:
    """Return what the manifest says of codes: of every linear what is integer, and its bytes in the graph."""
    layers = {
        n: {
            "bits": g.bits,
            "stored_bits": g.bits,
            "format": g.format,
            "group_size": g.group_size,
            "zero": g.zero,
            "offset": g.offset,
            "activation": g.activation,
            "kernel": "unknown before it is loaded",
            "bytes": sizes[n].after,
            "bytes_before": sizes[n].before,
        }
        for n, g in facts.grids.items()
    }
    asked = Counter(g.activation for g in facts.grids.values())
    floats: dict[Activation, str] = {"dynamic": "; activation = 'static' has them"}
    floats |= {} if rounds else {"static": ""}
    told = [f"inputs of 8 bits: {asked[a]} linears read floats{mend}" for a, mend in floats.items() if asked[a]]
    return {"kernels": INTEGER if rounds else EXACT, "simulated": told, "layers": layers}
