"""What the engine inspector's names of kernels say: which of them leave zeros out, or multiply by codes.

Stand-alone, for the kit.  A name counts only where it says so: kernels of XMMA spell the types of their factors and
results; those of CUTLASS and cuBLAS, and older ones, what they are; of what Myelin fuses, or makes itself, the name
tells nothing, and the answer is unknown, not no.  Weights that the inspector tells to be sparse are no sparse kernels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_NARROW = r"(?:int|i|s|u)[48](?!\d|v\d)|e4m3|e5m2|e2m1|fp[48]"  # u4v4 is a stride
_WIDE = r"bf16|tf32|f16|f32"
_SPELLED = re.compile(rf"_xmma_\w*?_(?:({_NARROW})|{_WIDE})(?:{_NARROW}|{_WIDE})_")  # factors, then results
_GEMM = r"(?:volta|turing|ampere|hopper|cutlass)\w*?"
_SAYS = {
    "sparse": re.compile(r"sparse|sptensor|spgemm|spmma"),
    "low-bit": re.compile(rf"(?<![a-z0-9])(?:{_NARROW})|ig?mma|weight.?only"),
}
_DENIES = {
    "sparse": re.compile(rf"_xmma_\w*(?:gem[mv]|fprop)|{_GEMM}_[his]\d*gemm"),
    "low-bit": re.compile(rf"{_GEMM}_[hs]\d*(?:sp)?gemm"),
}
Layer = Mapping[str, str]
Eligible = Mapping[str, Mapping[str, Sequence[str]]]


def says(kernel: str, use: str) -> bool | None:
    """Return whether a kernel of that name is of a use, `sparse` or `low-bit`; None where the name does not tell."""
    name = kernel.lower()
    spelled = _SPELLED.search(name)
    if use == "low-bit" and spelled:
        return spelled[1] is not None
    if _SAYS[use].search(name):
        return True
    return False if _DENIES[use].search(name) else None


def used(layers: Sequence[Layer], eligible: Eligible) -> list[str]:
    """Return in words how many of the linears that could have such kernels do, for some of the plan's profiles.

    Args:
        layers: of the plan: `name`, `metadata` and `kernel`, empty where the inspector does not tell.
        eligible: by use the linears whose kernels could be of it, each with its nodes in the ONNX graph: the product
            first, then what makes its weight of codes.  Nothing is said of uses without linears.
    """
    told = []
    for use, linears in eligible.items():
        if not linears:
            continue
        found = [_verdict(use, nodes, layers) for nodes in linears.values()]
        unknown, every = found.count(None), len(found)
        many = f"{found.count(True)} of {every}" if unknown < every else f"unknown how many of {every}"
        rest = f", unknown of {unknown}" if 0 < unknown < every else ""
        told.append(f"{many} eligible layers use {use} kernels{rest}")
    return told


def _verdict(use: str, nodes: Sequence[str], layers: Sequence[Layer]) -> bool | None:
    """Return whether some profile's kernel of a linear is of a use; None where one that is not known could be."""
    product, *others = nodes
    profiles: dict[str, set[bool | None]] = {}
    for layer in layers:
        inside = _nodes(layer)
        if _plain(product) not in inside:
            continue
        said = says(layer["kernel"], use)
        if use == "low-bit" and said is False and any(_plain(n) in inside for n in others):
            said = None  # the layer reads codes, whatever it multiplies
        profiles.setdefault(_profile(layer["name"]), set()).add(said)
    each = [True if True in p else False if False in p else None for p in profiles.values()]
    if True in each:
        return True
    return None if None in each or not each else False


def _nodes(layer: Layer) -> set[str]:
    """Return the nodes of the ONNX graph that a layer is made of, by its metadata, or else by its name."""
    told = re.findall(r"\[ONNX Layer: ([^\]]*)\]", layer["metadata"])
    if not told:
        bare = re.sub(r" ?\[profile \d+\]$", "", layer["name"], flags=re.IGNORECASE)
        told = [re.sub(r"_myl\d+_\d+$", "", bare)]
    return {_plain(name) for t in told for name in re.split(r" ?\+ ?|[\x1e\x1f]", t)}


def _plain(name: str) -> str:
    """Return a node's name as Myelin writes it."""
    return name.strip().replace(".", "_")


def _profile(name: str) -> str:
    """Return which profile a layer is of; layers of the first have no suffix."""
    found = re.search(r"\[profile (\d+)\]$", name, flags=re.IGNORECASE)
    return found[1] if found else "0"
