"""What the parts of a model cost by a latency profile, on the page of a run that has chosen by it, or on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.measure import digits
from compress.report import plots
from compress.report.html import Html, document, part, tag

_PHASES = {"prefill": "Reading the prompt", "decode": "Writing one token"}


def costs(content: Mapping[str, Any]) -> Html | None:
    """Return what the profiles say that a run has chosen by."""
    found = content.get("profiles") or []
    cards = [tag("div", tag("h3", p["name"]), *(tag("p", a, cls="about") for a in p["about"]), *_figures(p), cls="card")
             for p in found]  # fmt: skip
    about = "The latency profile by which blocks were chosen: what one more copy of a part adds to an engine's time."
    return part("What parts cost", about, *cards) if cards else None


def page(profile: Mapping[str, Any]) -> str:
    """Return the page of one profile."""
    name = profile["name"]
    return document(
        f"{name}: latency profile",
        tag("h1", name),
        *(tag("p", line, cls="soft") for line in profile["about"]),
        *(tag("div", figure, cls="card") for figure in _figures(profile)),
        tag("footer", "Written by compress. The figures for programs: the profile itself, which is JSON."),
    )


def _figures(profile: Mapping[str, Any]) -> list[Html]:
    """Return a plot for every request."""
    return [
        tag(
            "figure",
            tag("figcaption", tag("strong", f"{c['length']} tokens, batch {c['batch']}"), "; ms of each part, with the "
                "95 % interval; ! = doubtful"),
            _plot(c["parts"]),
        )
        for c in profile["costs"]
    ]  # fmt: skip


def _plot(parts: Sequence[Mapping[str, Any]]) -> Html:
    """Return parts by shape, each with its precisions, a panel for each phase."""
    phases = [p for p in _PHASES if any(p in part["times"] for part in parts)]
    groups: dict[str, list[tuple[str, list[plots.Span | None]]]] = {}
    for p in parts:
        groups.setdefault(p["shape"], []).append((p["precision"], [_span(p["times"].get(phase)) for phase in phases]))
    return plots.spans(groups, [_PHASES[p] for p in phases])


def _span(time: Sequence[float] | None) -> plots.Span | None:
    if time is None:
        return None
    ms, half, flagged = time
    return plots.Span(ms, half, f"{digits(ms)}{' !' if flagged else ''}")
