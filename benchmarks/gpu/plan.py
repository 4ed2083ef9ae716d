"""What is run on a GPU: models, ways from a model to an engine, and engines that take turns on the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.contracts import Target

DEMO = "demo"
# What is done to the model before the export: passes of this project.
CHANGES: Mapping[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "": (),
    "2:4": (("magnitude", {"pattern": "2:4"}),),
    "int4": (("rtn", {"bits": 4, "group_size": 128, "steps": "search"}),),
    "int8": (("rtn", {"bits": 8, "group_size": -1}),),
}
FLAVOURS = ("tensorrt-rtx", "tensorrt")
EXPORTERS = {"torch": "torch", "torch-compiled": "torch", "onnxruntime": "onnx", "onnxruntime-tensorrt": "onnx"}
REQUESTS, QUICK_REQUESTS = ((1, 128), (8, 128)), ((1, 128),)  # batch, prompt
BLOCKS = {1024: 2, 2048: 2, 4096: 1}  # of a random Llama, by width
QUICK_WIDTHS = (1024,)


@dataclass(frozen=True)
class Way:
    """One way from a model to an engine.

    Attributes:
        runtime: that opens it.
        precision: of its floats.
        change: what is done to the model before, a key of `CHANGES`.
        settings: of the exporter, beside its own defaults.
    """

    runtime: str
    precision: str = "fp16"
    change: str = ""
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """In words."""
        options = [f"{k} {v}" for k, v in self.settings if k != "flavour"]
        return ", ".join([f"{self.runtime} {self.precision}", *([self.change] if self.change else []), *options])

    @property
    def slug(self) -> str:
        """The name for a folder."""
        return self.name.replace(", ", "-").replace(" ", "-").replace(":", "-")

    @property
    def exporter(self) -> str:
        """Which exporter writes it."""
        return EXPORTERS.get(self.runtime, "tensorrt")

    @property
    def target(self) -> Target:
        """What its engine is for: any of the requests."""
        limits = {"max_batch": max(b for b, _ in REQUESTS), "max_length": 512}
        about = {"runtime": self.runtime, "precision": self.precision, "device": "cuda", **limits}
        return Target.model_validate({"name": self.slug, "prompt": 128, "generate": 64, **about})


def tensorrt(flavour: str, precision: str = "fp16", change: str = "", **settings: Any) -> Way:
    """Return a way to a plan of that flavour."""
    return Way(flavour, precision, change, (("flavour", flavour), *settings.items()))


def changed(flavour: str) -> tuple[Way, ...]:
    """Return the ways that show what zeros and codes gain in a flavour, the dense one first.

    The engine of 2:4 zeros is built with and without leave to use sparse kernels, since TensorRT-RTX does not tell.
    """
    return (
        tensorrt(flavour), tensorrt(flavour, change="2:4"), tensorrt(flavour, change="2:4", sparse="off"),
        tensorrt(flavour, change="int4"), tensorrt(flavour, change="int8"),
    )  # fmt: skip


REFERENCE = Way("torch")
RUNTIMES = (
    REFERENCE, Way("torch-compiled"), Way("onnxruntime"), Way("onnxruntime-tensorrt"),
    *(tensorrt(f, p) for f in FLAVOURS for p in ("fp16", "bf16", "fp32")),
)  # fmt: skip


@dataclass(frozen=True)
class Turns:
    """Engines of one model that take turns on the clock; all times are shares of the first one's that runs.

    Attributes:
        model: `demo`, or the width of a random Llama.
        about: what is compared.
        ways: to the engines.
        request: sequences at once, and tokens of the prompt.
    """

    model: str
    about: str
    ways: tuple[Way, ...]
    request: tuple[int, int]

    @property
    def key(self) -> str:
        """The name of its line."""
        return f"clock/{self.model}/{self.about}/{self.request[0]} x {self.request[1]}"


def ways(*, quick: bool) -> dict[str, tuple[Way, ...]]:
    """Return by model the ways whose engines are needed, each once."""
    found: dict[str, dict[Way, None]] = {}
    for turn in turns(quick=quick):
        for way in turn.ways:
            found.setdefault(turn.model, {}).setdefault(way)
    return {model: tuple(each) for model, each in found.items()}


def turns(*, quick: bool) -> list[Turns]:
    """Return what is timed: all runtimes on the demo model, then zeros and codes by width."""
    requests, widths = (QUICK_REQUESTS, QUICK_WIDTHS) if quick else (REQUESTS, tuple(BLOCKS))
    models = [DEMO, *map(str, widths)]
    return [
        *(Turns(DEMO, "runtimes", RUNTIMES, r) for r in requests),
        *(Turns(m, f, changed(f), r) for m in models for f in FLAVOURS for r in requests),
    ]
