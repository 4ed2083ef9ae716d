"""The report of a run: `report.json` for programs, `report.html` for people.

Both hold the same `Summary`.  Every part but the name may be missing or empty; the page then leaves it out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from compress import files
from compress.report.costs import page as profile_page
from compress.report.page import page

__all__ = [
    "FORMAT", "Costs", "Engine", "Layer", "Metric", "Model", "Part", "Profile", "Quality", "Step", "Summary",
    "profile_page", "write",
]  # fmt: skip

FORMAT = 1


class Model(TypedDict, total=False):
    """The parent: where it comes from, what it is for, which family, how many parameters, and how many are left."""

    source: str
    task: str
    parameters: int
    parameters_left: int
    family: str


class Step(TypedDict):
    """One step: `measured` holds figures, and curves as lists of `[x, y]` or `[step, value, learning rate]`."""

    index: int
    use: str
    name: str
    settings: NotRequired[dict[str, Any]]
    seconds: NotRequired[float]
    cached: NotRequired[bool]
    notes: NotRequired[list[str]]
    measured: NotRequired[dict[str, Any]]


class Layer(TypedDict):
    """One linear: its `[out, in]`, its share of zeros, and the pattern they follow."""

    name: str
    shape: list[int]
    sparsity: float
    pattern: NotRequired[str | None]


class Metric(TypedDict):
    """A quality figure with its 95 % interval; a difference to the parent in `Quality.delta`."""

    name: str
    value: float
    low: NotRequired[float | None]
    high: NotRequired[float | None]


class Quality(TypedDict, total=False):
    """Quality on held-out data: of the parent, the compressed model, their paired difference, and the engine."""

    data: str
    dense: list[Metric]
    compressed: list[Metric]
    delta: list[Metric]
    engine: list[Metric]


class Engine(TypedDict):
    """One engine: its target's name and settings, the parity that its export was held to, and the clock's figures.

    `latency` is a dumped `compress.measure.Measurement` of two engines, the parent's first, or of this one alone;
    `not_run` tells why the engine was never opened, for want of its device; then there is neither.
    `codes` and `choice` are those of `engine.json`, `kernel_times` what the variants took as shares of the exact one's.
    """

    target: str
    folder: str
    export: NotRequired[str]
    settings: NotRequired[dict[str, Any]]
    parity: NotRequired[dict[str, Any]]
    latency: NotRequired[dict[str, Any] | None]
    codes: NotRequired[dict[str, Any]]
    choice: NotRequired[dict[str, Any]]
    kernel_times: NotRequired[dict[str, Any]]
    not_run: NotRequired[str]


class Part(TypedDict):
    """What one part of a model costs: its shape and precision in words, and by phase `[ms, give or take, flagged]`."""

    shape: str
    precision: str
    times: dict[str, list[float]]


class Costs(TypedDict):
    """What parts cost for one request."""

    batch: int
    length: int
    parts: list[Part]


class Profile(TypedDict):
    """A latency profile that a pass has chosen by: its name, what it was taken on, and the costs of parts."""

    name: str
    about: list[str]
    costs: list[Costs]


class Summary(TypedDict):
    """All that a run has to tell, JSON throughout.

    `simulated`, `measured` and `not_run` say in words which figures come from where, or from nowhere; `warnings` are
    cautions for the reader.
    """

    format: int
    name: str
    created: NotRequired[str]
    model: NotRequired[Model]
    steps: NotRequired[list[Step]]
    layers: NotRequired[list[Layer]]
    quality: NotRequired[Quality]
    engines: NotRequired[list[Engine]]
    profiles: NotRequired[list[Profile]]
    versions: NotRequired[dict[str, str]]
    machine: NotRequired[dict[str, Any]]
    simulated: NotRequired[list[str]]
    measured: NotRequired[list[str]]
    not_run: NotRequired[list[str]]
    warnings: NotRequired[list[str]]


def write(folder: Path, content: Summary) -> None:
    """Write `report.json` and `report.html` into a run folder, each whole or not at all.

    Raises:
        ValueError: the content is of another format.
    """
    if content["format"] != FORMAT:
        raise ValueError(f"{folder}: a report of format {content['format']}, this version writes format {FORMAT}")
    html = page(content)
    files.write_json(folder / "report.json", content)
    files.write_atomic(folder / "report.html", html)
