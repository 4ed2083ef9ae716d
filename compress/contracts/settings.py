"""Settings, and what an engine is for."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DataUse = Literal["calibration", "training"]


class Settings(BaseModel):
    """A frozen table of the pipeline file; unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PassSettings(Settings):
    """What every pass takes: which linears of the blocks it works on."""

    include: tuple[str, ...] = Field(
        (), description="name patterns (fnmatch, or any part of the name) of the linears to work on; empty = all"
    )
    exclude: tuple[str, ...] = Field((), description="name patterns of the linears to leave alone")


class Target(Settings):
    """What the engine is for: a runtime on a device, and the request whose latency counts."""

    name: str = Field("cpu", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the engine folder")
    runtime: str = Field("onnxruntime", description="the runtime that loads the engine")
    device: str = Field("cpu", description="cpu or cuda")
    threads: int = Field(1, ge=1, description="threads of one operator")
    batch: int = Field(1, ge=1, description="sequences at once")
    prompt: int = Field(128, ge=1, description="prompt tokens")
    generate: int = Field(64, ge=0, description="generated tokens (0 for encoders)")
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32", description="floating-point type of the graph; bf16 only for TensorRT"
    )
    huge_pages: bool = Field(
        False,
        description="whether the engine's process is started with memory in pages of 2 MiB, in which weights are read "
        "faster and at a steadier pace (Linux, glibc 2.35 or later: GLIBC_TUNABLES=glibc.malloc.hugetlb=1)",
    )
    max_batch: int | None = Field(
        None, ge=1, description="most sequences at once that an engine of fixed ranges (TensorRT) takes; 4, or `batch`"
    )
    max_length: int | None = Field(
        None, ge=2, description="most tokens of a sequence that such an engine takes; 1024, or prompt + generate"
    )
