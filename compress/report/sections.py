"""The parts of the page below its headline; each returns None where the run has nothing to say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from compress.measure import digits
from compress.report import plots, words
from compress.report.codes import codes
from compress.report.costs import costs
from compress.report.gains import gains
from compress.report.html import Html, changed, facts, join, part, plain, table, tag
from compress.report.timing import speed

_CURVES = 8  # plots of one step
_PARITY = {
    "shapes": "input shapes compared",
    "logits": "outputs, at most",
    "past": "keys and values, at most",
    "agreement": "equal best choices, share",
}
Section = Callable[[Mapping[str, Any]], Html | None]


# -- quality ----------------------------------------------------------------------------------------------------


def quality(content: Mapping[str, Any]) -> Html | None:
    """Return every metric of dense, compressed and engine, with intervals."""
    measured = content.get("quality") or {}
    tables = {p: {m["name"]: m for m in measured.get(p, ())} for p in ("dense", "compressed", "delta", "engine")}
    names = list(dict.fromkeys(n for p in ("dense", "compressed", "engine") for n in tables[p]))
    if not names:
        return None
    shown = [p for p in ("dense", "compressed", "delta", "engine") if tables[p]]
    heads = {"dense": "Dense", "compressed": "Compressed", "delta": "Change", "engine": "Engine"}

    def cell(part: str, name: str) -> Any:
        metric = tables[part].get(name)
        if not metric:
            return ""
        if part == "delta":
            between = words.interval(metric, signed=True)
            main: Any = changed(words.moved(metric, tables["dense"].get(name)))
        else:
            between, main = words.interval(metric), words.amount(metric, metric["value"])
        return join([main, " ", tag("small", f"({between})") if between else None])

    rows = [
        [join([words.metric_name(n), " ", tag("small", words.direction(n))]), *(cell(p, n) for p in shown)]
        for n in names
    ]
    source = f" Data: {measured['data']}." if measured.get("data") else ""
    about = "On data that neither training nor calibration saw; in brackets the 95 % interval. A change is measured on "
    about += f"the same examples before and after, so its interval is narrower.{source}"
    return part("Quality", about, tag("div", table(["", *(heads[p] for p in shown)], rows), cls="card"))


# -- where the zeros are ----------------------------------------------------------------------------------------


def layers(content: Mapping[str, Any]) -> Html | None:
    """Return the share of zeros per layer."""
    found = content.get("layers") or []
    if not any(layer["sparsity"] > words.PRUNED for layer in found):
        return None
    patterns = sorted({str(layer["pattern"]) for layer in found if layer.get("pattern")})
    about = f"Share of zero weights in each linear layer, {words.sparsity(found):.1%} in all"
    about += f"; pattern {', '.join(patterns)}." if patterns else "."
    shown = {x["name"]: plots.Cell(f"{x['sparsity']:.1%}".replace(".0%", "%"), x["sparsity"], _shape(x)) for x in found}
    return part("Where the zeros are", about, tag("div", plots.by_layer(shown), cls="card"))


def _shape(layer: Mapping[str, Any]) -> str:
    return " x ".join(map(str, layer["shape"]))


# -- how it was made --------------------------------------------------------------------------------------------


def training(content: Mapping[str, Any]) -> Html | None:
    """Return the curves that steps recorded."""
    figures = []
    for step in content.get("steps", ()):
        curves = [(k, v) for k, v in (step.get("measured") or {}).items() if _is_curve(v) and _finite(v)]
        for name, points in curves[:_CURVES]:
            first, last = (plots.smooth([p[1] for p in plots.thinned(points)])[i] for i in (0, -1))
            rates = [p[2] for p in points if len(p) > 2]
            peak = f"; learning rate at most {max(rates):.2g}" if rates else ""
            text = f"{plain(name)}: {digits(first)} at the start, {digits(last)} at the end{peak}"
            caption = tag("figcaption", tag("strong", step["name"]), ", ", text)
            figures.append(tag("figure", caption, plots.curve(points, "step", plain(name))))
        if len(curves) > _CURVES:
            figures.append(tag("p", f"{step['name']}: {len(curves) - _CURVES} more curves in report.json.", cls="soft"))
    about = "What each training step recorded: every value faint, the running mean strong."
    return part("Training", about, tag("div", *figures, cls="card")) if figures else None


def _is_curve(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(
            isinstance(p, list | tuple) and len(p) > 1 and all(isinstance(x, int | float) for x in p) for p in value
        )
    )


def _finite(points: Any) -> bool:
    return any(math.isfinite(p[0]) and math.isfinite(p[1]) for p in points)


def lineage(content: Mapping[str, Any]) -> Html | None:
    """Return the steps with settings, notes, seconds."""
    items = []
    for step in content.get("steps", ()):
        took = words.duration(step["seconds"]) if step.get("seconds") is not None else ""
        badges = [tag("span", text, cls="badge") for text in (took, "cached" if step.get("cached") else "") if text]
        use = f" ({step['use']})" if step["use"] != step["name"] else ""
        measured = [(k, v) for k, v in (step.get("measured") or {}).items() if k != "seconds" and not _is_curve(v)]
        pairs = [*(step.get("settings") or {}).items(), *measured]
        more = tag("details", tag("summary", "settings and figures"), facts(pairs)) if pairs else None
        notes = tag("ul", *(tag("li", note) for note in step["notes"])) if step.get("notes") else None
        items.append(tag("li", tag("strong", f"{step['index']}. {step['name']}"), use, *badges, notes, more))
    about = "Every step from the dense model on, in order, with what it took; a cached step was made by an earlier run."
    return part("How it was made", about, tag("div", tag("ol", *items, cls="steps"), cls="card")) if items else None


# -- trust ------------------------------------------------------------------------------------------------------


def parity(content: Mapping[str, Any]) -> Html | None:
    """Return how close each engine is to the model it was made from."""
    cards = []
    for engine in content.get("engines", ()):
        found = [(_PARITY.get(k, k), v) for k, v in (engine.get("parity") or {}).items()]
        pairs = [("folder", tag("code", engine["folder"])), ("export", engine.get("export"))]
        taken = (engine.get("choice") or {}).get("chosen", "exact")
        compared = None if taken == "exact" else f"with exact kernels, before those of '{taken}' were taken"
        compared = f"not run: {engine['not_run']}" if engine.get("not_run") else compared
        pairs += [*(engine.get("settings") or {}).items(), ("compared", compared), *found]
        cards.append(
            tag("div", tag("h3", engine["target"]), facts((k, v) for k, v in pairs if v is not None), cls="card")
        )
    about = (
        "Each engine was reloaded in its runtime and compared with the model it was made from; too large a difference "
    )
    about += "fails the run."
    return part("Is the engine the model?", about, *cards) if cards else None


def truth(content: Mapping[str, Any]) -> Html | None:
    """Return what was measured and what was only simulated."""
    names = {"Measured": "measured", "Simulated": "simulated", "Not run": "not_run"}
    lists = {title: content.get(key) for title, key in names.items()}
    cards = [
        tag("div", tag("h3", title), tag("ul", *(tag("li", item) for item in items)), cls="card words")
        for title, items in lists.items()
        if items
    ]
    about = "Measured: on the real engine, on the machine below. Simulated: in floating point, with no such kernel."
    about += " Not run: made for a device that is not here, and never opened." if content.get("not_run") else ""
    return part("What was measured, what was simulated", about, tag("div", *cards, cls="two")) if cards else None


def machine(content: Mapping[str, Any]) -> Html | None:
    """Return the machine and the versions."""
    parts = {"Machine": content.get("machine"), "Versions": content.get("versions")}
    cards = [tag("div", tag("h3", n), facts(f.items()), cls="card") for n, f in parts.items() if f]
    return (
        part("Where it ran", "Figures hold for this machine and these versions.", tag("div", *cards, cls="two"))
        if cards
        else None
    )


SECTIONS: tuple[Section, ...] = (quality, speed, gains, layers, codes, costs, training, lineage, parity, truth, machine)
