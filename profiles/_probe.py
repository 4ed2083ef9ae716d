"""What hardware and runtime a machine has: stand-alone, so that it runs where there is nothing of ours.

    python _probe.py DEVICE DISTRIBUTION [DISTRIBUTION ...]

prints it as JSON; of the distributions, the version of the first that is installed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

NOT_INSTALLED = "not installed"
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_ISA = re.compile(r"avx.*|amx_.*|f16c|fma|sse4_2|asimd.*|sve.*|i8mm|bf16|fphp")


def probe(device: str, distributions: Sequence[str]) -> dict[str, Any]:
    """Return what `profiles._machine.Machine` holds of hardware and version, or a `fault` in one line."""
    found: dict[str, Any] = {
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "version": next(filter(None, map(_version, distributions)), NOT_INSTALLED),
    }
    return {**found, **(_processor() if device == "cpu" else _gpu())}


def clock_mhz() -> float | None:
    """Return the mean clock of the cores now, None where the system does not tell."""
    found = [float(v) for v in re.findall(r"^cpu MHz\s*: ([\d.]+)$", _cpuinfo(), re.MULTILINE)]
    return sum(found) / len(found) if found else None


def _processor() -> dict[str, Any]:
    info = _cpuinfo()
    model = re.search(r"^(?:model name|Model)[ \t]*: (.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)[ \t]*: (.+)$", info, re.MULTILINE)
    return {
        "model": model[1] if model else platform.machine(),
        "features": sorted(f for f in (flags[1].split() if flags else ()) if _ISA.fullmatch(f)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20,
        "cache_mib": _cache_mib(),
    }


def _gpu() -> dict[str, Any]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {"fault": "device 'cuda': no nvidia-smi, so that the GPU cannot be told; is the driver installed?"}
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        return {"fault": f"device 'cuda': nvidia-smi says: {' '.join(done.stdout.split()) or 'nothing'}"}
    name, memory, driver = (t.strip() for t in done.stdout.splitlines()[0].split(","))
    return {"model": name, "memory_mib": float(memory), "driver": driver}


def _cache_mib() -> float | None:
    """Return the MiB of the largest cache that a core reads through, None where the system does not tell."""
    sizes = [path.read_text(encoding="utf-8").strip() for path in _CACHES.glob("index*/size")]
    units = {"K": 2**-10, "M": 1.0}
    return max((float(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=None)


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], sys.argv[2:])))
