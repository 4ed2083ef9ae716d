"""An engine folder for TensorRT-RTX, built once for all that read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress import registry
from compress.context import Context
from compress.contracts import Exporter, Target
from compress.engines import Engines


@pytest.fixture(scope="session")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an engine folder of a tiny llama, only to be read."""
    made = tmp_path_factory.mktemp("tensorrt")
    found = registry.load("exporters", "tensorrt", Exporter)
    target = Target(runtime="tensorrt-rtx", device="cuda", prompt=8, generate=2)
    Engines().build(tiny("llama"), found(found.Settings()), target, made, Context(folder=made))
    return made
