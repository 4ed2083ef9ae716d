"""Which distributions bring a runtime, and what versions are installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu")  # one of them: they write the same files
RUNTIMES: Mapping[str, tuple[str, ...]] = {  # of a target; one of its distributions is enough
    "onnxruntime": ONNXRUNTIME,
    "onnxruntime-tensorrt": ONNXRUNTIME,
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "torch": ("torch",),
    "torch-compiled": ("torch",),
}


def bringing(runtime: str) -> list[str]:
    """Return the installed distributions that bring a runtime."""
    return [name for name in RUNTIMES[runtime] if version(name) is not None]


def version(distribution: str) -> str | None:
    """Return the version of a distribution, None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
