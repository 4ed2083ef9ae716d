"""Safetensors files one tensor at a time: nothing is mapped into memory, nothing is held but what was asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import files
from compress.errors import BadModel

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class Layout:
    """A tensor's dtype and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its file, and its first byte there."""

    path: Path
    layout: Layout
    start: int

    def read(self) -> Tensor:
        """Return the tensor, in memory of its own.

        Raises:
            BadModel: the file ends before the tensor does.
        """
        flat = torch.empty(self.layout.size, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(self.start)
            if file.readinto(flat.numpy().data) != self.layout.size:
                raise BadModel(f"{self.path}: truncated while it was read; fetch it again")
        return flat.view(self.layout.dtype).view(self.layout.shape)


def places(path: Path) -> dict[str, Place]:
    """Return where each tensor of a safetensors file lies.

    Raises:
        BadModel: the file is truncated, or no such file.
    """
    start, header = _header(path)
    return {name: _place(path, start, name, entry) for name, entry in header.items()}


def check(path: Path) -> None:
    """Raise `BadModel` where a safetensors file is truncated or no such file; reads its header alone."""
    _header(path)


def write(path: Path, layouts: Mapping[str, Layout], get: Callable[[str], Tensor]) -> None:
    """Write a safetensors file atomically; same tensors, same bytes.

    Args:
        path: the file.
        layouts: what it will hold.
        get: returns a tensor of that dtype and shape; asked once for each name, and not held.
    """
    names = sorted(layouts, key=lambda n: (-layouts[n].dtype.itemsize, n))  # so that every tensor lies aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        layout = layouts[name]
        offsets = [end, end + layout.size]
        header[name] = {"dtype": _NAMES[layout.dtype], "shape": list(layout.shape), "data_offsets": offsets}
        end += layout.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = get(name).detach().cpu().contiguous()
            assert Layout(tensor.dtype, tuple(tensor.shape)) == layouts[name], name
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are equal to the last bit, so that -0 is not 0 and NaN is itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8).to(a.device))


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the data begin, and what the file says of each tensor."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little") if len(start) == 8 else size
        if length > size - 8:
            raise BadModel(f"{path}: truncated or no safetensors file ({size} bytes); fetch it again")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise BadModel(f"{path}: no safetensors file (its header is not JSON); fetch it again") from None
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != size:
        raise BadModel(f"{path}: truncated: {size} bytes where its header promises {end}; fetch it again")
    return 8 + length, header


def _place(path: Path, start: int, name: str, entry: Mapping[str, Any]) -> Place:
    if entry["dtype"] not in _DTYPES:
        raise BadModel(f"{path}: {name} is stored as {entry['dtype']}, which is not read; convert it where it is from")
    layout = Layout(_DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return Place(path, layout, start + entry["data_offsets"][0])
