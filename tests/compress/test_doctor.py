"""The doctor on machines that lack this or that."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
import textwrap
import types
from importlib import metadata
from typing import Any

import pytest

from compress import doctor, registry
from compress.contracts import Exporter
from compress.doctor import Finding, lines


def install(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Pretend that these distributions have these versions (None = not installed); `_` stands for `-`."""
    real = metadata.version
    wanted = {n.replace("_", "-"): v for n, v in versions.items()}

    def version(name: str) -> str:
        if name not in wanted:
            return real(name)
        if (found := wanted[name]) is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


def test_this_machine_is_told_whole() -> None:
    found = doctor.doctor()
    whats = {f.what for f in found}
    assert {"python", "compress", "torch", "transformers", "tokenizers", "onnx", "onnxruntime"} <= whats
    assert {"cpu", "memory", "gpu", "passes", "exporters", "solvers", "cbc", "highs", "disk"} <= whats
    assert {f.level for f in found if f.what in ("python", "torch", "cpu", "passes", "solvers", "cbc")} == {"ok"}
    assert all(f.text and "\n" not in f.text for f in found)
    assert all(bool(f.mend) for f in found if f.level == "error")
    assert "magnitude" in next(f.text for f in found if f.what == "passes")


def test_both_runtimes_are_an_error_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    finding = only(doctor.check_runtime())
    assert finding.level == "error"
    assert "both installed" in finding.text
    assert finding.mend.startswith(
        "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'compress-engine[cpu]'"
    )


def test_no_runtime_is_an_error_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, onnxruntime=None, onnxruntime_gpu=None)
    finding = only(doctor.check_runtime())
    assert (finding.level, finding.text) == ("error", "not installed, so no engine can be verified or run")
    assert finding.mend.startswith("pip install 'compress-engine[cpu]'")


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_one_runtime_is_right(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("onnxruntime")
    install(monkeypatch, **{"onnxruntime": None, "onnxruntime_gpu": None, name.replace("-", "_"): "1.31.1"})
    finding = only(doctor.check_runtime())
    assert finding.level == "ok"
    assert finding.text.startswith(f"{name} 1.31.1, built with ")
    assert "CPUExecutionProvider" in finding.text


def test_a_broken_runtime_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu=None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    finding = only(doctor.check_runtime())
    assert finding.level == "error"
    assert "but broken" in finding.text
    assert finding.mend == "pip install --force-reinstall onnxruntime"


def test_missing_and_broken_libraries_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, onnx=None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    found = {f.what: f for f in doctor.check_libraries()}
    assert (found["onnx"].level, found["onnx"].text) == ("error", "not installed")
    assert found["tokenizers"].level == "error"
    assert "but broken" in found["tokenizers"].text
    assert found["torch"].level == "ok"


def test_a_plug_in_that_fails_to_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "passes.magnitude":
            raise ImportError("no module named 'kernels'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    found = {f.what: f for f in doctor.check_plugins()}
    assert found["passes/magnitude"].level == "error"
    assert "no module named 'kernels'" in found["passes/magnitude"].text
    assert "magnitude" not in found["passes"].text


def test_an_exporter_that_cannot_work_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    names = registry.names("exporters")
    assert names
    for name in names:
        plugin = registry.load("exporters", name, Exporter)
        monkeypatch.setattr(plugin, "available", lambda self: "its compiler is not installed; pip install it")
    found = {f.what: f for f in doctor.check_plugins() if f.what.startswith("exporters/")}
    assert set(found) == {f"exporters/{n}" for n in names}
    assert {(f.level, f.text) for f in found.values()} == {
        ("warn", "not available: its compiler is not installed; pip install it")
    }


@pytest.mark.parametrize(
    ("here", "levels"),
    [({"cbc": "2.10.3", "highs": "1.15"}, ["ok", "ok"]), ({"cbc": None, "highs": "1.15"}, ["ok", "ok"]),
     ({"cbc": "2.10.3", "highs": None}, ["ok", "ok"]), ({"cbc": None, "highs": None}, ["error", "error"])],
)  # fmt: skip
def test_one_program_for_solvers_is_enough(
    here: dict[str, str | None], levels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solvers.versions", lambda: here)
    solvers, *programs = doctor.check_solvers()
    assert (solvers.level, solvers.text) == ("ok", "exhaustive, greedy, lagrangian, mip, random, uniform")
    assert [f.what for f in programs] == ["cbc", "highs"]
    assert [f.level for f in programs] == levels
    assert all(f.text == here[f.what] for f in programs if here[f.what])


def test_a_gpu_without_its_runtime_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Card:
        name, total_memory, major, minor = "NVIDIA H200", 139 * 2**30, 9, 0

    install(monkeypatch, onnxruntime_gpu=None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card)
    card, runtime = doctor.check_gpu()
    assert (card.level, card.text) == ("ok", "NVIDIA H200, 139 GiB, capability 9.0")
    assert (runtime.level, runtime.mend) == (
        "warn",
        "pip uninstall -y onnxruntime, then pip install 'compress-engine[gpu]'",
    )


def test_a_driver_that_torch_does_not_reach_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert only(doctor.check_gpu()).level == "warn"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert only(doctor.check_gpu()).level == "ok"


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**30}))
    finding = only(doctor.check_disk())
    assert (finding.level, finding.text.startswith("1.0 GiB free")) == ("warn", True)


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> list[Finding]:
        raise RuntimeError("libcuda.so.1: cannot open\nmore")

    monkeypatch.setitem(doctor.CHECKS, "gpu", fails)
    found = [f for f in doctor.doctor() if f.what == "gpu"]
    assert [(f.level, f.text) for f in found] == [("error", "RuntimeError: libcuda.so.1: cannot open")]


def test_a_machine_without_torch_gets_a_diagnosis() -> None:
    script = """
        import sys
        sys.modules["torch"] = None
        from compress.doctor import doctor, lines
        found = doctor()
        print("\\n".join(lines(found)))
        assert {f.level for f in found if f.what in ("torch", "cpu", "gpu")} == {"error"}
        assert {f.level for f in found if f.what in ("python", "disk")} <= {"ok", "warn"}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lines_align_and_put_the_mend_below() -> None:
    findings = [Finding("ok", "cpu", "fast"), Finding("error", "runtime", "twice", "pip uninstall one")]
    assert lines(findings) == [
        "ok     cpu      fast",
        "error  runtime  twice",
        "                -> pip uninstall one",
    ]
    assert lines([]) == []


def test_tensorrt_is_told_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, object] = {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found.get(name))
    absent = only(doctor.check_tensorrt())
    assert absent.level == "ok"
    assert "pip install 'compress-engine[trt-rtx]'" in absent.text
    found["tensorrt_rtx"] = object()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", types.SimpleNamespace(__version__="1.7"))
    assert only(doctor.check_tensorrt()) == Finding("ok", "tensorrt-rtx", "1.7")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", types.SimpleNamespace())
    assert only(doctor.check_tensorrt()).level == "error"
