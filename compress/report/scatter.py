"""Points with intervals in both directions, of several series, each beside where it was expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.report.html import Html, tag
from compress.report.plots import WIDTH, frame

Place = Callable[[float, float], tuple[float, float]]

_HEIGHT = 380
_ROOM = 0.06  # of the range, beyond the outermost points


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point.

    Attributes:
        x: where it is.
        y: likewise.
        across: ends of the interval of x.
        up: of the interval of y.
        guess: the x that was expected.
        solid: whether x was measured; else it is drawn hollow.
        more: what a pointer on it shows.
    """

    x: float
    y: float
    across: tuple[float, float] | None = None
    up: tuple[float, float] | None = None
    guess: float | None = None
    solid: bool = True
    more: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one kind: what they are called, which of the page's colours they have, whether a line joins them."""

    name: str
    marks: Sequence[Mark]
    colour: int
    joined: bool = False


def scatter(series: Sequence[Series], x_label: str, y_label: str) -> Html:
    """Return a plot of series, whose keys stand above; there is at least one point."""
    marks = [m for s in series for m in s.marks]
    xs = [x for m in marks for x in (m.x, *(m.across or ()), *([m.guess] if m.guess is not None else []))]
    ys = [y for m in marks for y in (m.y, *(m.up or ()))]
    at, axes = frame(_roomy(xs), _roomy(ys), x_label, height=_HEIGHT)
    drawn = [tag("g", *_drawn(s, at), cls=f"s{s.colour}") for s in series]
    hollow = any(m.guess is not None or not m.solid for m in marks)
    keys = [tag("span", tag("i"), s.name, cls=f"s{s.colour}") for s in series if s.marks]
    expected = tag("span", tag("i", cls="open"), "predicted") if hollow else None
    svg = tag(
        "svg", tag("title", f"{y_label} over {x_label}"), *axes, *drawn,
        viewBox=f"0 0 {WIDTH} {_HEIGHT}", role="img", cls="plot",
    )  # fmt: skip
    return tag("div", tag("p", y_label, *keys, expected, cls="keys"), svg)


def _drawn(series: Series, at: Place) -> list[Html]:
    found: list[Html] = []
    if series.joined and len(series.marks) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(m.x, m.y) for m in sorted(series.marks, key=lambda m: m.x)))
        found.append(tag("polyline", points=path, cls="join"))
    for mark in series.marks:
        x, y = at(mark.x, mark.y)
        if mark.guess is not None:
            guess, _ = at(mark.guess, mark.y)
            found.append(_line((guess, y), (x, y), "tie"))
            found.append(tag("circle", cx=f"{guess:.1f}", cy=f"{y:.1f}", r=3.5, cls="mark guess"))
        if mark.across:
            found.append(_line(at(mark.across[0], mark.y), at(mark.across[1], mark.y), "whisker"))
        if mark.up:
            found.append(_line(at(mark.x, mark.up[0]), at(mark.x, mark.up[1]), "whisker"))
        more = tag("title", mark.more) if mark.more else None
        shape = "mark" if mark.solid else "mark guess"
        found.append(tag("circle", more, cx=f"{x:.1f}", cy=f"{y:.1f}", r=4.5, cls=shape))
    return found


def _line(start: tuple[float, float], end: tuple[float, float], cls: str) -> Html:
    (x1, y1), (x2, y2) = start, end
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", cls=cls)


def _roomy(values: Sequence[float]) -> list[float]:
    room = _ROOM * (max(values) - min(values))
    return [min(values) - room, max(values) + room]
