"""Plans of TensorRT-RTX, built ahead of time without a GPU; their kit; and all that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress import files, registry
from compress.context import Context
from compress.contracts import Exporter, Target
from compress.engines import Engines

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
TARGET = Target(runtime="tensorrt-rtx", device="cuda", prompt=8, generate=2)


def _exporter(**settings: Any) -> Exporter:
    found = registry.load("exporters", "tensorrt", Exporter)
    return found(found.Settings(**settings))


@pytest.fixture(scope="session")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an engine folder of a tiny llama, made once and only to be read."""
    made = tmp_path_factory.mktemp("tensorrt")
    Engines().build(tiny("llama"), _exporter(), TARGET, made, Context(folder=made))
    return made


def test_a_folder_is_made_without_a_gpu(folder: Path) -> None:
    manifest = files.read_json(folder / "engine.json")
    assert manifest["tensorrt"]["sha256"] == files.sha256(folder / "model.plan")
