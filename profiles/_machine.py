"""What a profile was taken on, and in what it differs from what it is to be used for."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from compress.contracts import Target
from compress.errors import UserFault

OPTIONS = {"inter_op_threads": "1", "session.intra_op.allow_spinning": "0"}  # as `compress.bench` opens engines
_ISA = re.compile(r"avx.*|amx_.*|f16c|fma|sse4_2|asimd.*|sve.*|i8mm|bf16|fphp")
_DISTRIBUTIONS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}


class ForeignProfile(UserFault):
    """A profile of another device, runtime, version or options than those it is to be used for."""


class Machine(BaseModel):
    """Where engines run: hardware, runtime and the runtime's options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(description="cpu or cuda")
    model: str = Field(description="of the processor or the GPU, as it names itself")
    features: tuple[str, ...] = Field((), description="instruction sets of the processor that kernels choose by")
    cores: int = Field(ge=1, description="cores of the processor")
    memory_mib: float = Field(gt=0, description="of the device")
    driver: str | None = Field(None, description="of the GPU")
    system: str = Field(description="the operating system")
    runtime: str = Field(description="that loads the engines")
    version: str = Field(description="of the runtime")
    options: dict[str, str] = Field({}, description="of the runtime")
    threads: int = Field(ge=1, description="of one operator")
    precision: str = Field("fp32", description="floating-point type of the graph")


def here(target: Target) -> Machine:
    """Return this machine as the target uses it."""
    names = _DISTRIBUTIONS.get(target.runtime, (target.runtime,))
    versions = [v for v in map(_version, names) if v]
    model, features, memory, driver = _processor() if target.device == "cpu" else _gpu()
    return Machine(
        device=target.device, model=model, features=features, cores=os.cpu_count() or 1, memory_mib=memory,
        driver=driver, system=f"{platform.system()} {platform.machine()}", runtime=target.runtime,
        version=versions[0] if versions else "not installed", options=OPTIONS, threads=target.threads,
        precision=target.precision,
    )  # fmt: skip


def differences(taken: Machine, wanted: Machine) -> list[str]:
    """Return what makes times of one machine mean little on the other, a short text each."""
    found = []
    for key in ("device", "model", "runtime", "version", "threads", "precision", "driver", "options", "features"):
        ours, theirs = getattr(taken, key), getattr(wanted, key)
        if ours == theirs:
            continue
        if key == "features":
            ours, theirs = (" ".join(sorted(set(a) - set(b))) or "none" for a, b in ((ours, theirs), (theirs, ours)))
        elif key == "options":
            keys = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
            ours, theirs = (", ".join(f"{k}={o.get(k)}" for k in keys) for o in (ours, theirs))
        found.append(f"{key} {ours}, wanted {theirs}")
    return found


def trust(what: str, taken: Machine, wanted: Machine, *, allow_foreign: bool) -> str | None:
    """Return a warning for a profile that is used although it is foreign, None for one of that very machine.

    Raises:
        ForeignProfile: it is foreign and that is not allowed.
    """
    found = differences(taken, wanted)
    if not found:
        return None
    told = f"{what}: taken on another machine: {'; '.join(found)}"
    if not allow_foreign:
        raise ForeignProfile(f"{told}; take one there with `compress profile`, or allow it with --allow-foreign")
    return f"{told}; used all the same, as allowed"


def clock_mhz() -> float | None:
    """Return the mean clock of the cores now, None where the system does not tell."""
    found = [float(v) for v in re.findall(r"^cpu MHz\s*: ([\d.]+)$", _cpuinfo(), re.MULTILINE)]
    return sum(found) / len(found) if found else None


def _processor() -> tuple[str, tuple[str, ...], float, None]:
    import psutil

    info = _cpuinfo()
    model = re.search(r"^(?:model name|Model)[ \t]*: (.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)[ \t]*: (.+)$", info, re.MULTILINE)
    features = sorted(f for f in (flags[1].split() if flags else ()) if _ISA.fullmatch(f))
    return model[1] if model else platform.machine(), tuple(features), psutil.virtual_memory().total / 2**20, None


def _gpu() -> tuple[str, tuple[str, ...], float, str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise UserFault("device 'cuda': no nvidia-smi here, so that the GPU cannot be told; is the driver installed?")
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        raise UserFault(f"device 'cuda': nvidia-smi says: {' '.join(done.stdout.split()) or 'nothing'}")
    name, memory, driver = (t.strip() for t in done.stdout.splitlines()[0].split(","))
    return name, (), float(memory), driver


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
