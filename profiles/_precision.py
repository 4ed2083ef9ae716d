"""How a part's linears are stored and multiplied, by one short name that profiles, solvers and people share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from compress.errors import BadSettings
from compress.facts import GridFact

_FORM = re.compile(r"int([2-8])(?:-g(\d+))?(-dynamic|-exact)?")
_PATTERN = re.compile(r"dense|unstructured|([1-9]\d*):([1-9]\d*)")
BYTES: Mapping[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2}  # of one float
FORMS = "fp32, fp16, bf16, int<2 to 8>, int4-g128 (in groups), with -dynamic (inputs of 8 bits too) or -exact (kernels)"


@dataclass(frozen=True)
class Precision:
    """What a name says.

    Attributes:
        name: the name.
        floats: of the graph; None where it does not matter, since linears are codes.
        grid: of the codes; None = floats.
        kernels: which multiply by codes: `fast` ones round their inputs to 8 bits.
    """

    name: str
    floats: Literal["fp32", "fp16", "bf16"] | None
    grid: GridFact | None = None
    kernels: Literal["exact", "fast"] = "fast"


def parse(name: str) -> Precision:
    """Return what a name of a precision says.

    Raises:
        BadSettings: it names none.
    """
    if name in BYTES:
        return Precision(name, name)  # type: ignore[arg-type]
    found = _FORM.fullmatch(name)
    if not found or found[2] == "0":
        raise BadSettings(f"must be one of {FORMS}, got {name!r}", key="precision")
    bits, size, suffix = int(found[1]), found[2], found[3]
    if suffix == "-dynamic" and (bits != 8 or size):
        what = "inputs of 8 bits multiply whole rows of 8 bits"
        raise BadSettings(f"{what}, got {name!r}; use int8-dynamic", key="precision")
    group, activation = int(size) if size else None, "dynamic" if suffix == "-dynamic" else "none"
    fact = GridFact(bits=bits, group_size=group, activation=activation)  # type: ignore[arg-type]
    return Precision(name, None, fact, "exact" if suffix == "-exact" else "fast")


def of(fact: GridFact | None, floats: str = "fp32", *, exact: bool = False) -> str:
    """Return the name for a linear's codes, or of floats where there are none.

    Raises:
        BadSettings: codes are floats, or inputs static, of which no profile tells.
    """
    if fact is None:
        return floats
    if fact.format != "int" or fact.activation == "static":
        what = f"codes of {fact.told}{', and inputs with static steps' if fact.activation == 'static' else ''}"
        raise BadSettings(f"profiles tell of {FORMS}, got {what}; measure the engine", key="precision")
    group = f"-g{fact.group_size}" if fact.group_size else ""
    dynamic = fact.activation == "dynamic" and fact.bits == 8 and not group and not exact
    return f"int{fact.bits}{group}{'-dynamic' if dynamic else '-exact' if exact else ''}"


def check_pattern(pattern: str) -> str:
    """Return a sparsity pattern that is one.

    Raises:
        BadSettings: it is none.
    """
    found = _PATTERN.fullmatch(pattern)
    if not found or (found[1] and int(found[1]) >= int(found[2])):
        raise BadSettings(f"must be dense, unstructured or N:M with N < M, got {pattern!r}", key="pattern")
    return pattern


def stored(bits: int) -> int:
    """Return the bits that a code takes in a file."""
    return next(b for b in (2, 4, 8) if b >= bits)
