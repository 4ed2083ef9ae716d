"""What this machine has for compress, what it lacks, and what would mend it.

Every check stands alone: what is missing or broken becomes a finding, never a traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compress import installed, registry
from compress.contracts import Exporter, Pass

Level = Literal["ok", "warn", "error"]

DISTRIBUTION = "compress-engine"
LIBRARIES = ("torch", "transformers", "tokenizers", "onnx")

_PROGRAMS = "pip install highspy, or pip install --force-reinstall pulp, which brings CBC"
_INSTALL = f"pip install '{DISTRIBUTION}[cpu]', or '{DISTRIBUTION}[gpu]' on a machine with an NVIDIA GPU"
# What makes engines and passes faster, as `torch.cpu` spells it.
_FEATURES = (
    "avx2", "avx512_f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "neon", "dot", "i8mm", "bf16", "fp16_arith", "sve", "sve2", "sme",
)  # fmt: skip
_GIB = 2**30
_SHORT_MEMORY, _SHORT_DISK = 2 * _GIB, 5 * _GIB


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        level: `error`: something cannot work; `warn`: something less will.
        what: what was looked at.
        text: what is there.
        mend: what would help; empty where nothing is wrong.
    """

    level: Level
    what: str
    text: str
    mend: str = ""


def doctor() -> list[Finding]:
    """Return all findings; slow for what it imports (torch among others), and it never raises."""
    findings: list[Finding] = []
    for what, check in CHECKS.items():
        try:
            findings += check()
        except Exception as error:  # a broken library may raise anything; that is the finding
            findings.append(Finding("error", what, _said(error), "reinstall what the message names"))
    return findings


def lines(findings: Sequence[Finding]) -> list[str]:
    """Return findings as aligned text; what would mend one stands below it."""
    width = max((len(f.what) for f in findings), default=0)
    found = []
    for f in findings:
        found.append(f"{f.level:<5}  {f.what:<{width}}  {f.text}".rstrip())
        if f.mend:
            found.append(f"{'':<5}  {'':<{width}}  -> {f.mend}")
    return found


def check_versions() -> list[Finding]:
    """Python and compress itself."""
    python = Finding("ok", "python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    found = installed.version(DISTRIBUTION)
    if found is None:
        return [python, Finding("warn", "compress", "runs from its folder, not installed", "pip install -e .")]
    return [python, Finding("ok", "compress", found)]


def check_libraries() -> list[Finding]:
    """The libraries that everything needs: there, and whole enough to import."""
    findings = []
    for name in LIBRARIES:
        version = installed.version(name)
        if version is None:
            findings.append(Finding("error", name, "not installed", f"pip install {DISTRIBUTION}"))
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            mend = f"pip install --force-reinstall {name}"
            findings.append(Finding("error", name, f"{version}, but broken: {_said(error)}", mend))
        else:
            findings.append(Finding("ok", name, version))
    return findings


def check_runtime() -> list[Finding]:
    """Exactly one of the two distributions of onnxruntime: they write the same files, so that both break each other."""
    there = {name: version for name in installed.ONNXRUNTIME if (version := installed.version(name))}
    if not there:
        return [Finding("error", "onnxruntime", "not installed, so no engine can be verified or run", _INSTALL)]
    if len(there) > 1:
        text = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other"
        return [Finding("error", "onnxruntime", text, f"pip uninstall -y {' '.join(there)}, then {_INSTALL}")]
    ((name, version),) = there.items()
    try:
        providers = importlib.import_module("onnxruntime").get_available_providers()
    except Exception as error:
        mend = f"pip install --force-reinstall {name}"
        return [Finding("error", "onnxruntime", f"{name} {version}, but broken: {_said(error)}", mend)]
    return [Finding("ok", "onnxruntime", f"{name} {version}, built with {', '.join(providers)}")]


def check_tensorrt() -> list[Finding]:
    """TensorRT and TensorRT-RTX, of which either builds engines for NVIDIA GPUs; nobody needs them else."""
    found = []
    for module, flavour in {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}.items():
        if importlib.util.find_spec(module) is None:
            continue
        try:
            found.append(Finding("ok", flavour, str(importlib.import_module(module).__version__)))
        except Exception as error:
            mend = f"pip install --force-reinstall {flavour}, or pip uninstall it"
            found.append(Finding("error", flavour, f"installed, but broken: {_said(error)}", mend))
    none = Finding("ok", "tensorrt", f"not installed; pip install '{DISTRIBUTION}[trt-rtx]' for engines of NVIDIA GPUs")
    return found or [none]


def check_cpu() -> list[Finding]:
    """Model, cores and the instructions that matter; memory."""
    import psutil
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    features = [f for f in _FEATURES if capabilities.get(f)]
    model = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = Finding("ok", "cpu", f"{model}, {usable} cores; {' '.join(features) or 'no feature known'}")
    memory = psutil.virtual_memory()
    text = f"{memory.total / _GIB:.1f} GiB, {memory.available / _GIB:.1f} free"
    if memory.available < _SHORT_MEMORY:
        return [cpu, Finding("warn", "memory", text, "close what uses it; a pass holds the model more than once")]
    return [cpu, Finding("ok", "memory", text)]


def check_gpu() -> list[Finding]:
    """GPUs that torch reaches, and whether the runtime would reach them too."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            text = f"a driver is there, but torch {torch.__version__} reaches no GPU"
            return [Finding("warn", "gpu", text, "install the torch build of the driver's CUDA version (pytorch.org)")]
        return [Finding("ok", "gpu", "none; passes and engines run on the CPU")]
    findings = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        text = f"{card.name}, {card.total_memory / _GIB:.0f} GiB, capability {card.major}.{card.minor}"
        findings.append(Finding("ok", "gpu", text))
    if installed.version("onnxruntime-gpu") is None:
        mend = f"pip uninstall -y onnxruntime, then pip install '{DISTRIBUTION}[gpu]'"
        findings.append(Finding("warn", "gpu", "engines cannot use it: onnxruntime-gpu is not installed", mend))
    return findings


def check_plugins() -> list[Finding]:
    """Every plug-in imports, and every exporter can work here."""
    return [*_room("passes", Pass), *_room("exporters", Exporter)]


def check_solvers() -> list[Finding]:
    """Every solver imports, and what runs their programs is here: CBC, which PuLP brings, or HiGHS; either does."""
    solvers = importlib.import_module("solvers")  # a room of plug-ins, which the ground imports by name alone
    versions: dict[str, str | None] = solvers.versions()
    findings = _room("solvers", solvers.Solver)
    for name, version in versions.items():
        if version or any(versions.values()):
            findings.append(Finding("ok", name, version or "not here; the other one does"))
        else:
            findings.append(Finding("error", name, "not here, so no choice can be solved for", _PROGRAMS))
    return findings


def check_disk() -> list[Finding]:
    """Room for run folders where the command was started."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    text = f"{free / _GIB:.1f} GiB free in {here}"
    if free < _SHORT_DISK:
        return [Finding("warn", "disk", text, "a run keeps every step's weights; free some, or set [run] folder")]
    return [Finding("ok", "disk", text)]


CHECKS: dict[str, Callable[[], list[Finding]]] = {
    "python": check_versions,
    "libraries": check_libraries,
    "onnxruntime": check_runtime,
    "tensorrt": check_tensorrt,
    "cpu": check_cpu,
    "gpu": check_gpu,
    "plug-ins": check_plugins,
    "solvers": check_solvers,
    "disk": check_disk,
}


def _room(room: str, contract: type[Any]) -> list[Finding]:
    """Return what fails to import or to work of a room's plug-ins, and the names of the others."""
    findings, loaded = [], []
    for name in registry.names(room):
        try:
            plugin = registry.load(room, name, contract)
            missing = plugin(plugin.Settings.model_construct()).available() if room == "exporters" else None
        except Exception as error:
            mend = f"mend or remove {room}/{name}.py, or the package that brings it"
            findings.append(Finding("error", f"{room}/{name}", _said(error), mend))
            continue
        loaded.append(name)
        if missing:
            findings.append(Finding("warn", f"{room}/{name}", f"not available: {missing}"))
    return [*findings, Finding("ok", room, ", ".join(loaded) or "none")]


def _said(error: BaseException) -> str:
    words = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
