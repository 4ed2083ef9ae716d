"""The grid of a quantized linear: codes and what they stand for, which exporters pack as they are.

A weight is `scale * (code - zero)`, or `scale * code + offset`, with one scale (and zero, and offset) for every
`group_size` neighbours along the inputs, the last group of a row being shorter where they do not divide it.  Codes are
integers, or floats of 8 bits (E4M3 without infinities: 1 bit of sign, 4 of exponent, 3 of mantissa), which only scale.
What a linear reads may be meant to become codes as well (`compress/reading.py`).  `compress/grids.py` keeps grids on
disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compress.errors import BrokenPromise
from compress.facts import Activation, Format, GridFact

BITS = (2, 3, 4, 8)
DTYPES: Mapping[Format, torch.dtype] = {"int": torch.int8, "fp8": torch.float8_e4m3fn}  # of codes
FP8_MOST = 448.0  # the largest float of 8 bits


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The codes of one linear's weight and what they stand for.

    Attributes:
        bits: of a code: 2, 3, 4 or 8.
        group_size: inputs that share a scale; None = a whole row.
        codes: int8 `[out, in]`, from -2^(bits-1) to 2^(bits-1) - 1; or float8_e4m3fn, then of 8 bits, symmetric and
            beside inputs that stay floats or are `static`.
        scale: float32 `[out, groups]`, above 0.
        zero: int8 `[out, groups]`, the code that stands for 0; None = 0 (symmetric).
        offset: float32 `[out, groups]`, added to the weight; None = none.  Never together with `zero`.
        activation: what the linear reads: floats (`none`), integers of 8 bits, scaled when they come (`dynamic`), or
            symmetric codes of 8 bits, of the weight's format, scaled by `input_scale` (`static`; the weight then has
            8 bits, in whole rows).
        input_scale: float32 scalar, above 0: what is read stands for its code times this; None unless `static`.

    Raises:
        ValueError: they do not fit each other, a code is out of range, or a scale is not finite and above 0.
    """

    bits: int
    group_size: int | None
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    offset: Tensor | None = None
    activation: Activation = "none"
    input_scale: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` unless this is a grid."""
        if self.bits not in BITS:
            raise ValueError(f"codes of {self.bits} bits; there are grids of {', '.join(map(str, BITS))}")
        if self.codes.dtype not in DTYPES.values() or self.codes.dim() != 2:
            what = f"{self.codes.dtype} {list(self.codes.shape)}"
            raise ValueError(f"codes must be int8 [out, in], or float8_e4m3fn, got {what}")
        if self.group_size is not None and not 0 < self.group_size <= self.codes.shape[1]:
            raise ValueError(f"group_size {self.group_size} does not fit {self.codes.shape[1]} inputs")
        if self.zero is not None and self.offset is not None:
            raise ValueError("a grid has a zero or an offset, not both")
        expected = (self.codes.shape[0], groups(self.codes.shape[1], self.group_size))
        kinds = {"scale": torch.float32, "zero": torch.int8, "offset": torch.float32}
        for name, dtype in kinds.items():
            given = getattr(self, name)
            if given is not None and (given.dtype != dtype or tuple(given.shape) != expected):
                what = f"{given.dtype} {list(given.shape)}"
                raise ValueError(f"{name} must be {dtype} {list(expected)}, got {what}")
        if not bool((self.scale > 0).all() and self.scale.isfinite().all()):
            raise ValueError("every scale must be finite and above 0")
        if self.offset is not None and not bool(self.offset.isfinite().all()):
            raise ValueError("every offset must be finite")
        self._check_inputs()
        if self.codes.dtype != torch.int8:
            self._check_floats()
            return
        low, high = bounds(self.bits)
        for name, given in (("code", self.codes), ("zero", self.zero)):
            if given is not None and given.numel() and not low <= int(given.min()) <= int(given.max()) <= high:
                raise ValueError(f"every {name} of {self.bits} bits must be from {low} to {high}")

    def _check_inputs(self) -> None:
        given = self.input_scale
        if (given is not None) != (self.activation == "static"):
            raise ValueError(f"static inputs have an input_scale and no others do, got {self.activation!r}")
        if given is None:
            return
        if given.dtype != torch.float32 or given.dim():
            raise ValueError(f"input_scale must be a torch.float32 scalar, got {given.dtype} {list(given.shape)}")
        if not bool((given > 0) & given.isfinite()):
            raise ValueError("input_scale must be finite and above 0")
        if self.bits != 8 or self.zero is not None or self.offset is not None or self.scale.shape[1] != 1:
            raise ValueError("static inputs go with symmetric codes of 8 bits in whole rows")

    def _check_floats(self) -> None:
        if self.bits != 8 or self.zero is not None or self.offset is not None or self.activation == "dynamic":
            what = "codes that are floats have 8 bits, no zero, no offset"
            raise ValueError(f"{what}, and beside them inputs are floats, or static")
        if bool(self.codes.float().isnan().any()):
            raise ValueError("every code must be a number")

    @property
    def fact(self) -> GridFact:
        """What is known of it without its values."""
        return GridFact(
            bits=self.bits,
            group_size=self.group_size,
            zero=self.zero is not None,
            offset=self.offset is not None,
            activation=self.activation,
            format=next(f for f, dtype in DTYPES.items() if dtype == self.codes.dtype),
        )

    def dequantized(self) -> Tensor:
        """Return the weight, float32 `[out, in]`."""
        steps = self.codes.float()
        if self.zero is not None:
            steps -= self._spread(self.zero.float())
        weight = steps.mul_(self._spread(self.scale))
        return weight if self.offset is None else weight.add_(self._spread(self.offset))

    def check(self, name: str, weight: Tensor, mask: Tensor | None) -> None:
        """Raise `BrokenPromise` unless a linear's weight is what the codes stand for, and 0 where its mask prunes."""
        if weight.shape != self.codes.shape:
            raise BrokenPromise(f"{name}: has codes {list(self.codes.shape)} for a weight {list(weight.shape)}")
        stands_for = self.dequantized().to(weight)
        if not torch.equal(stands_for, weight):
            off = int((stands_for != weight).sum())
            raise BrokenPromise(f"{name}: {off} of {weight.numel()} weights differ from what their codes stand for")
        if mask is not None and bool(stands_for[~mask.to(weight.device)].any()):
            raise BrokenPromise(f"{name}: codes that the mask prunes do not stand for 0")

    def to(self, device: torch.device) -> Grid:
        """Return the grid on a device."""
        moved = {n: t.to(device) for n, t in self.tensors.items()}
        return Grid(bits=self.bits, group_size=self.group_size, activation=self.activation, **moved)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names of the attributes; without those that are None."""
        every = {"codes": self.codes, "scale": self.scale, "zero": self.zero, "offset": self.offset}
        every["input_scale"] = self.input_scale
        return {n: t for n, t in every.items() if t is not None}

    def _spread(self, values: Tensor) -> Tensor:
        return spread(values, self.codes.shape[1], self.group_size)


def bounds(bits: int) -> tuple[int, int]:
    """Return the lowest and the highest code that is an integer."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def groups(inputs: int, group_size: int | None) -> int:
    """Return how many groups a row has."""
    return -(-inputs // group_size) if group_size else 1


def spread(values: Tensor, inputs: int, group_size: int | None) -> Tensor:
    """Return for every input the value of its group: `[out, groups]` -> `[out, inputs]`."""
    if group_size is None:
        return values.expand(-1, inputs)
    return values.repeat_interleave(group_size, dim=1)[:, :inputs]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return rows of codes as rows of bytes, uint8 `[rows, ceil(columns * bits / 8)]`.

    A code is stored as `code + 2^(bits-1)`; code k of a row begins at bit `k * bits`, lowest bits first.
    """
    rows, columns = codes.shape
    eighths = -(-columns // 8)  # of a row: eight codes fill `bits` bytes
    unsigned = codes.to(torch.int16) - bounds(bits)[0]
    eights = functional.pad(unsigned, (0, -columns % 8)).reshape(rows, eighths, 8)
    words = torch.zeros(rows, eighths, dtype=torch.int64, device=codes.device)
    for k in range(8):
        words |= eights[..., k].long() << (bits * k)
    packed = words.view(torch.uint8).view(rows, eighths, 8)[..., :bits].reshape(rows, eighths * bits)
    return packed[:, : -(-columns * bits // 8)].contiguous()


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Return the codes that `pack` packed, int8 `[rows, columns]`."""
    rows, eighths = len(packed), -(-columns // 8)
    eights = functional.pad(packed, (0, eighths * bits - packed.shape[1])).view(rows, eighths, bits)
    words = functional.pad(eights, (0, 8 - bits)).view(torch.int64)[..., 0]
    codes = torch.empty(rows, eighths, 8, dtype=torch.int8, device=packed.device)
    for k in range(8):
        codes[..., k] = (words >> (bits * k) & (2**bits - 1)) + bounds(bits)[0]
    return codes.view(rows, eighths * 8)[:, :columns].contiguous()
