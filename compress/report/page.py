"""The page: one self-contained HTML file, its headline first, everything else below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.report import words
from compress.report.codes import summed
from compress.report.html import Html, document, tag
from compress.report.sections import SECTIONS
from compress.report.timing import engine_tiles, latency_of, tile


def page(content: Mapping[str, Any]) -> str:
    """Return the page of a summary."""
    name = content["name"]
    notes = [*content.get("warnings", ()), *words.hints(content)]
    return document(
        f"{name}: compression report",
        tag("h1", name),
        tag("p", _subject(content), cls="soft"),
        tag("p", " ".join(_verdict(content)), cls="lead"),
        tag("div", *_tiles(content), cls="tiles"),
        *(tag("p", note, cls="note") for note in notes),
        *(section(content) for section in SECTIONS),
        tag("footer", "Written by compress", f" on {content['created']}" if content.get("created") else "",
            ". The same figures for programs: ", tag("code", "report.json"), "."),
    )  # fmt: skip


def _subject(content: Mapping[str, Any]) -> str:
    model = content.get("model") or {}
    count = f"{words.parameters(model['parameters'])} parameters" if model.get("parameters") else None
    targets = ", ".join(e["target"] for e in content.get("engines", ()))
    parts = (model.get("source"), model.get("family"), model.get("task"), count, f"for {targets}" if targets else None)
    return " · ".join(str(part) for part in parts if part)


def _verdict(content: Mapping[str, Any]) -> list[str]:
    """Return what happened in whole sentences."""
    said = []
    model = content.get("model") or {}
    was, left = model.get("parameters") or 0, model.get("parameters_left") or 0
    if (fewer := words.shrunk(left, was)) and fewer.tone != "same":
        said.append(f"{words.parameters(left)} parameters where there were {words.parameters(was)}: {fewer.text}.")
    coded = [told for engine in content.get("engines", ()) if (told := summed(engine))]
    if layers := content.get("layers"):
        share = words.sparsity(layers)
        if share > words.PRUNED:
            said.append(f"{share:.0%} of the weights in the model's blocks are zero now.")
        elif not said and not coded:
            said.append("No weight was pruned.")
    said += dict.fromkeys(coded)
    dense, now, delta = main_metric(content)
    if dense and now:
        clear = words.moved(delta, dense) if delta else None
        doubt = " (no clear difference)" if clear and clear.tone == "same" else ""
        was, is_ = (words.amount(m, m["value"]) for m in (dense, now))
        said.append(f"{words.metric_name(now['name'])} on held-out data went from {was} to {is_}{doubt}.")
    for engine in content.get("engines", ()):
        if (latency := latency_of(engine)) and len(latency.engines) > 1:
            request = latency.request
            new = f" and {request['generate']} generated ones" if latency.engines[1].decode else ""
            said.append(
                f"On {engine['target']}, a request of {request['prompt']} prompt tokens{new} takes "
                f"{words.milliseconds(latency.engines[1].request.ms)}; the dense engine takes "
                f"{words.milliseconds(latency.engines[0].request.ms)}."
            )
    return said


def _tiles(content: Mapping[str, Any]) -> list[Html]:
    """Return the four figures that a reader looks for: quality, time, memory, size."""
    tiles = []
    dense, now, delta = main_metric(content)
    if now:
        change = words.moved(delta, dense) if delta else None
        was = words.amount(dense, dense["value"]) if dense else None
        what = f"{words.metric_name(now['name'])} ({words.direction(now['name'])})"
        tiles.append(tile(what, words.amount(now, now["value"]), was, change))
    for engine in content.get("engines", ()):
        if latency := latency_of(engine):
            tiles += engine_tiles(engine["target"], latency)
    return tiles


def main_metric(content: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return the first metric that both models have: dense, compressed, difference; None for what is missing."""
    quality = content.get("quality") or {}
    tables = [{m["name"]: m for m in quality.get(part, ())} for part in ("dense", "compressed", "delta")]
    if not tables[1]:  # nothing was compressed: the dense model is all there is
        return None, next(iter(tables[0].values()), None), None
    name = next((n for n in tables[1] if n in tables[0]), next(iter(tables[1])))
    return tables[0].get(name), tables[1][name], tables[2].get(name)
