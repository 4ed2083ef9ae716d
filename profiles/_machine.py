"""What a profile was taken on, and in what it differs from what it is to be used for."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from compress.contracts import Target
from compress.errors import UserFault
from compress.hosts import Host
from compress.installed import RUNTIMES
from profiles import _probe
from profiles._precision import BYTES
from profiles._probe import NOT_INSTALLED

_CACHE_MIB = 64.0  # where none is told: more than most have
_SESSION = {"inter_op_threads": "1", "session.intra_op.allow_spinning": "0"}
OPTIONS = {  # by runtime, as `compress.bench` opens engines
    "onnxruntime": _SESSION,
    "onnxruntime-tensorrt": {**_SESSION, "provider": "TensorrtExecutionProvider"},
    "torch": {"mode": "eager"},
    "torch-compiled": {"mode": "compiled", "dynamic": "1"},
}


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
    cache_mib: float | None = Field(None, gt=0, description="the largest cache of a core, where the system tells")
    driver: str | None = Field(None, description="of the GPU")
    system: str = Field(description="the operating system")
    runtime: str = Field(description="that loads the engines")
    version: str = Field(description="of the runtime")
    options: dict[str, str] = Field({}, description="of the runtime")
    threads: int = Field(ge=1, description="of one operator")
    precision: str = Field("fp32", description="floating-point type of the graph")


def cached(parameters: int, machine: Machine) -> bool:
    """Tell whether the weights of a dense model fit into the cache of a machine.

    Those that do not are read from memory for every token that is decoded, while the few copies of a part by which it
    is timed stay in the cache: so profiles for such models charge for each MiB (`profiles._fit`).
    """
    return parameters * BYTES[machine.precision] <= (machine.cache_mib or _CACHE_MIB) * 2**20


def here(target: Target, host: Host | None = None) -> Machine:
    """Return this machine, or the one that is reached there, as the target uses it.

    Raises:
        UserFault: the target's device cannot be told.
    """
    names = RUNTIMES.get(target.runtime, (target.runtime,))
    found = host.script(Path(_probe.__file__), target.device, *names) if host else _probe.probe(target.device, names)
    if fault := found.pop("fault", None):
        raise UserFault(f"{host.name}: {fault}" if host else fault)
    if host and found["version"] == NOT_INSTALLED:
        raise UserFault(f"{host.name}: has no {target.runtime}; install it there, for {host.python}")
    options = {**OPTIONS.get(target.runtime, {}), **({"huge_pages": "1"} if target.huge_pages else {})}
    return Machine(
        device=target.device, runtime=target.runtime, options=options, threads=target.threads,
        precision=target.precision, **found,
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
