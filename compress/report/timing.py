"""What the clock found, on the page: tiles for the headline, bars and a table below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.measure import Figures, Measurement, Phase, Time, cautions, labels
from compress.report import plots, words
from compress.report.html import Html, changed, part, table, tag


def latency_of(engine: Mapping[str, Any]) -> Measurement | None:
    """Return what was measured of an engine, if anything was."""
    return Measurement.model_validate(engine["latency"]) if engine.get("latency") else None


def tile(what: str, now: str, was: str | None, change: words.Change | None) -> Html:
    """Return one figure of the headline, beside the dense model's."""
    return tag(
        "div",
        tag("div", what, cls="what"),
        tag("div", now, cls="big"),
        tag("div", f"dense: {was}", cls="was") if was else None,
        tag("div", changed(change), cls="change") if change else None,
        cls="tile",
    )


def engine_tiles(target: str, measured: Measurement) -> list[Html]:
    """Return an engine's time, memory and size; beside the dense engine's when that was timed too."""
    now, was = measured.engines[-1], measured.engines[0] if len(measured.engines) > 1 else None
    return [
        tile(
            f"One request on {target}",
            words.milliseconds(now.request.ms),
            words.milliseconds(was.request.ms) if was else None,
            words.sped(now.request) if was else None,
        ),
        tile(
            f"Peak memory on {target}",
            words.mib(now.memory_mib),
            words.mib(was.memory_mib) if was else None,
            words.shrunk(now.memory_mib, was.memory_mib) if was else None,
        ),
        tile(
            f"Engine file for {target}",
            words.mib(now.file_mib),
            words.mib(was.file_mib) if was else None,
            words.shrunk(now.file_mib, was.file_mib) if was else None,
        ),
    ]


def speed(content: Mapping[str, Any]) -> Html | None:
    """Return per engine the times, memory and size beside the dense engine's."""
    measured = [(engine["target"], latency_of(engine)) for engine in content.get("engines", ())]
    cards = [_card(target, m, content.get("warnings", ())) for target, m in measured if m]
    cards += [_idle(engine) for engine in content.get("engines", ()) if engine.get("not_run")]
    about = "Engines are timed in turns on the same machine; in brackets the 95 % interval of the ratio."
    return part("Speed, memory and size", about, *cards) if cards else None


def _idle(engine: Mapping[str, Any]) -> Html:
    """Return what stands in place of the figures of an engine that was never opened."""
    more = f"Figures of its target: compress evaluate {engine['folder']} --import takes them."
    said = (tag("p", text) for text in (f"Not run: {engine['not_run']}.", more))
    return tag("div", tag("h3", engine["target"]), *said, cls="card")


def _card(target: str, measured: Measurement, said: Sequence[str]) -> Html:
    request, engines = measured.request, measured.engines
    names = ["Dense", "Compressed"] if len(engines) == 2 else labels([e.folder for e in engines])
    m = measured.machine
    what = ", ".join(f"{k} {v}" for k, v in request.items())
    how = f"{what}. Clock: {measured.clock}, {measured.cache}, {measured.processes} processes. "
    how += f"{m['cpu']}, {m['cores']} cores, load {measured.load_average:.1f}."
    rows = [
        ["Tokens per second", *(f"{e.tokens_per_second:,.0f}" for e in engines)],
        ["Peak memory", *(words.mib(e.memory_mib) for e in engines)],
        ["Engine file", *(words.mib(e.file_mib) for e in engines)],
        ["Loading", *(words.milliseconds(1000 * e.load_seconds) for e in engines)],
        ["Spread of the blocks", *(_spreads(e) for e in engines)],
    ]
    flags = [flag for flag in cautions(measured) if flag not in said]
    return tag(
        "div",
        tag("h3", target),
        tag("p", how, cls="about"),
        *_charts(measured, names),
        table(["", *names], rows),
        tag("p", "Caution: ", "; ".join(flags), ".", cls="soft") if flags else None,
        cls="card",
    )


def _charts(measured: Measurement, names: Sequence[str]) -> list[Html]:
    request, engines = measured.request, measured.engines
    charts: list[tuple[str, list[Time]]] = [(f"Reading {request['prompt']} tokens", [e.prefill for e in engines])]
    decodes: list[Phase] = [e.decode for e in engines if e.decode]
    if len(decodes) == len(engines):
        charts.append((f"Writing one token after {request['prompt']}", [*decodes]))
        charts.append((f"A whole request, {request['generate']} tokens written", [e.request for e in engines]))
    parts = []
    for what, times in charts:
        verdict = changed(words.sped(times[-1])) if len(times) > 1 else None
        parts.append(tag("h3", what, ": " if verdict else None, verdict))
        parts.append(plots.bars([(n, t.ms, words.milliseconds(t.ms)) for n, t in zip(names, times, strict=True)]))
    return parts


def _spreads(engine: Figures) -> str:
    phases = (("prefill", engine.prefill), ("decode", engine.decode))
    return ", ".join(f"{name} {phase.spread:.0%}" for name, phase in phases if phase)
