"""What compressed-tensors can say of codes: which grids it takes, and the `quantization_config` that tells of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from compress import tree
from compress.errors import BadSettings
from compress.facts import Facts, GridFact
from compress.families import families

PACKED = "pack-quantized"
PLAIN = "int-quantized"
VERSION = "0.20.0"  # of the library that first packs codes of 3 bits without gaps

_STEPS: Mapping[str, Mapping[str, Any]] = {
    "dynamic": {"dynamic": True, "strategy": "token"}, "static": {"dynamic": False, "strategy": "tensor"},
}  # fmt: skip
_FLOAT = "format = 'float' writes the weights that the codes stand for"


def check(facts: Facts) -> None:
    """Raise `BadSettings` unless the codes of such a model, as they may turn out, can be written."""
    if families()[facts.family].transposed:
        what = f"linears of {facts.family} are stored [in, out], for which compressed-tensors has no codes"
        raise BadSettings(f"{what}; {_FLOAT}", key="format")
    if facts.branches or len(set(facts.layout)) > 1 or any(0 in (b.heads, b.ffn) for b in facts.layout):
        what = "blocks differ or have branches, and what opens such folders opens no packed codes"
        raise BadSettings(f"{what}; {_FLOAT}", key="format")
    for name, fact in facts.grids.items():
        for possible in fact.possible:
            if reason := _unsaid(possible, facts.shapes[name][1]):
                raise BadSettings(f"compressed-tensors: {name}: {reason}, or {_FLOAT}", key="format")
    kinds = {possible for fact in facts.grids.values() for possible in fact.possible}
    if len(kinds) > 1 and any(kind.zero for kind in kinds):
        what = f"transformers opens codes with zeros only where all linears are alike, and here are {len(kinds)} kinds"
        raise BadSettings(f"{what}; quantize symmetrically, or all linears alike, or {_FLOAT}", key="format")


def config(model: PreTrainedModel, grids: Mapping[str, GridFact]) -> dict[str, Any]:
    """Return the `quantization_config` of a model, of which a pattern tells for every linear what it holds.

    A pattern fits with and without the prefix of a task model: whoever opens the model under another head must meet
    codes too, or its linears would start at random.  `dequantize` is for transformers: it then turns codes into floats
    as it reads them, which is the only way to those with zeros, and with scales in float32 whatever it computes in; but
    it takes all linears for the first kind, and inputs for floats.
    """
    linears = tree.block_linears(model)
    beside = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in linears]
    stack = tree.family(model).blocks
    kinds = {fact: [n for n in linears if grids.get(n) == fact] for fact in dict.fromkeys(grids.values())}
    formats = {_format(fact) for fact in kinds}
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "dequantize": len(kinds) == 1 and PLAIN not in formats,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": _group(f, _patterns(n, stack)) for i, (f, n) in enumerate(kinds.items())},
        "ignore": [*_patterns((n for n in linears if n not in grids), stack), *beside],
        "kv_cache_scheme": None,
    }


def split(model: PreTrainedModel, grids: Mapping[str, GridFact]) -> str | None:
    """Return a linear whose grid differs from that of one that servers join with it into one; None if none does."""
    table = tree.family(model)
    for block in tree.blocks(model):
        for joined in (table.qkvo[:-1], table.up):
            names = [f"{block}.{inner}" for inner in joined]
            if odd := next((n for n in names if grids.get(n) != grids.get(names[0])), None):
                return odd
    return None


def _unsaid(fact: GridFact, inputs: int) -> str | None:
    """Return why compressed-tensors cannot say a grid, or not by us, and what else would do."""
    if fact.format != "int":
        return f"codes of {fact.told} are not written here, integers are; quantize to these"
    if fact.offset:
        return "its codes have a real offset and there are integer zeros only; train them without the offset"
    if fact.group_size and inputs % fact.group_size:
        return f"groups of {fact.group_size} do not divide its {inputs} inputs; quantize with a group_size that does"
    if fact.activation != "none" and (fact.bits != 8 or fact.zero or fact.group_size is not None):
        return f"integer inputs go with symmetric weights of 8 bits in whole rows, not with {fact.told}; take these"
    return None


def _format(fact: GridFact) -> str:
    return PACKED if fact.activation == "none" else PLAIN


def _group(fact: GridFact, targets: list[str]) -> dict[str, Any]:
    """Return the entry of one kind of grid."""
    weights = {"num_bits": fact.bits, "type": "int", "symmetric": not fact.zero, "dynamic": False}
    rows = {"strategy": "channel"} if fact.group_size is None else {"strategy": "group", "group_size": fact.group_size}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, **_STEPS.get(fact.activation, {})}
    return {
        "targets": targets,
        "weights": weights | rows,
        "input_activations": None if fact.activation == "none" else inputs,
        "output_activations": None,
        "format": _format(fact),
    }


def _patterns(names: Iterable[str], stack: str) -> list[str]:
    """Return a pattern for each place within a block, which lists the blocks; `stack` is the path of their list."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        index, _, place = f".{name}".partition(f".{stack}.")[2].partition(".")
        blocks.setdefault(place, []).append(index)
    return [
        rf"re:(.*\.)?{re.escape(stack)}\.({'|'.join(found)})\.{re.escape(place)}$" for place, found in blocks.items()
    ]
