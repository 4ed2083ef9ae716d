"""What is in codes in the engines, on the page: bits and bytes of every layer, and which kernels multiply by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from compress.facts import said
from compress.measure import digits
from compress.report import plots, words
from compress.report.html import Html, facts, part, table, tag

_PHASES = ("prefill", "decode", "request")
_WIDEST = 8  # bits: the strongest colour is that of the fewest


def codes(content: Mapping[str, Any]) -> Html | None:
    """Return per engine the codes of its layers and the kernels that were tried."""
    cards = [_card(engine) for engine in content.get("engines", ()) if engine.get("codes")]
    about = "Linear layers whose weights are integers (or, where it says fp8, floats of 8 bits) in the engine's file, "
    about += "packed from the very codes of the model; "
    about += "point at one for its kernel and its size."
    return part("What is in codes", about, *cards) if cards else None


def summed(engine: Mapping[str, Any]) -> str | None:
    """Return in a sentence how much of an engine is integer, None where nothing is."""
    if not engine.get("codes"):
        return None
    layers = engine["codes"]["layers"].values()
    *first, last = sorted({_told(layer) for layer in layers})
    bits = f"{', '.join(first)} and {last}" if first else last
    return f"{len(layers)} linear layers hold codes of {bits}: {_taken(layers)}."


def _taken(layers: Collection[Mapping[str, Any]]) -> str:
    now, was = (sum(layer[k] for layer in layers) for k in ("bytes", "bytes_before"))
    return f"{_size(now)} where floats take {_size(was)}"


def _card(engine: Mapping[str, Any]) -> Html:
    layers = engine["codes"]["layers"]
    kernels = Counter(layer["kernel"] for layer in layers.values())
    pairs: list[tuple[str, Any]] = [
        ("bytes of these weights", _taken(layers.values())),
        ("kernels", ", ".join(f"{name} ({count} of {len(layers)} layers)" for name, count in kernels.items())),
    ]
    if simulated := engine["codes"]["simulated"]:
        pairs.append(("only simulated, or stored wider", "; ".join(simulated)))
    cells = {name: _cell(layer) for name, layer in layers.items()}
    tried = _tried(engine.get("choice") or {}, engine.get("kernel_times") or {})
    return tag("div", tag("h3", engine["target"]), plots.by_layer(cells), facts(pairs), tried, cls="card")


def _told(layer: Mapping[str, Any]) -> str:
    return said(layer["bits"], layer.get("format", "int"))


def _cell(layer: Mapping[str, Any]) -> plots.Cell:
    group = f"groups of {layer['group_size']}" if layer["group_size"] else "whole rows"
    extra = [name for name in ("zero", "offset") if layer[name]]
    more = [group, *(f"with {name}s" for name in extra), layer["kernel"]]
    more.append(_taken([layer]))
    text = f"{_told(layer)}, {_size(layer['bytes'])}"
    return plots.Cell(text, 1 - layer["bits"] / (_WIDEST + 2), ", ".join(more))


def _tried(choice: Mapping[str, Any], times: Mapping[str, Mapping[str, float]]) -> Html | None:
    """Return what faster kernels lose, how fast they are, and which were taken."""
    if not choice.get("tried"):
        return tag("p", f"Exact kernels: {choice['why']}.", cls="soft") if choice.get("why") else None
    rows = [["exact", "0", *["1.00"] * 3, "taken" if choice["chosen"] == "exact" else ""]]
    for name, lost in choice["tried"].items():
        loses = digits(lost["lost"], 2) if lost else "not measured"
        speeds = [f"{1 / times[name][k]:.2f}" if k in times.get(name, {}) else "" for k in _PHASES]
        rows.append([name, loses, *speeds, "taken" if name == choice["chosen"] else ""])
    allowed = "any loss" if choice["tolerance"] is None else f"a loss of {digits(choice['tolerance'], 2)}"
    about = f"Kernels that were tried on {choice['windows']} windows, {allowed} allowed; loss in nats, speed as times "
    head = ["", "loses", *(f"{k} speed" for k in _PHASES), ""]
    return tag("div", tag("p", f"{about}that of exact kernels.", cls="soft"), table(head, rows))


def _size(count: float) -> str:
    return words.mib(count / 2**20) if count >= 2**20 else f"{digits(count / 2**10)} KiB"
