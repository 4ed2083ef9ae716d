"""Plots as inline SVG, coloured by the page's style so that they follow light and dark."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compress.report.html import Html, tag

Curve = Sequence[Sequence[float]]  # points [x, y, ...]

WIDTH, HEIGHT = 720, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 40
POINTS = 240  # drawn at most


def curve(points: Curve, x_label: str, y_label: str) -> Html:
    """Return a line plot of finite values: faint, and, when there are many, their running mean strong."""
    points = thinned(points)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    at, axes = frame(xs, ys, x_label, whole=True)

    def line(values: Sequence[float], cls: str) -> Html:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, xs, values))
        return tag("polyline", points=path, cls=cls)

    many = len(points) >= 30
    drawn = [line(ys, "faint"), line(smooth(ys), "strong")] if many else [line(ys, "strong")]
    end = at(xs[-1], (smooth(ys) if many else ys)[-1])
    return tag(
        "svg", tag("title", f"{y_label} over {x_label}"), *axes, *drawn,
        tag("circle", cx=_px(end[0]), cy=_px(end[1]), r=3.5, cls="dot"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", cls="plot",
    )  # fmt: skip


def frame(
    xs: Sequence[float], ys: Sequence[float], x_label: str, *, whole: bool = False, height: int = HEIGHT
) -> tuple[Callable[[float, float], tuple[float, float]], list[Html]]:
    """Return where a point stands in a plot of such values, and the plot's axes.

    Args:
        xs: all that is to be seen, from left to right.
        ys: from below.
        x_label: what stands under the axis.
        whole: whether only whole numbers stand at it.
        height: of the plot.
    """
    (x0, x1), (y0, y1) = _range(xs), _range(ys)
    x_ticks, y_ticks = ticks(x0, x1, whole=whole), ticks(y0, y1)

    def at(x: float, y: float) -> tuple[float, float]:
        right, up = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
        return LEFT + right * (WIDTH - LEFT - RIGHT), height - BOTTOM - up * (height - BOTTOM - TOP)

    grid = [
        tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_px(at(x0, y)[1]), y2=_px(at(x0, y)[1]), cls="grid") for y in y_ticks
    ]
    left = [tag("text", _tick(y, y_ticks), x=LEFT - 8, y=_px(at(x0, y)[1] + 4), cls="left") for y in y_ticks]
    below = [tag("text", _tick(x, x_ticks), x=_px(at(x, y0)[0]), y=height - BOTTOM + 18, cls="below") for x in x_ticks]
    label = tag("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=height - 4, cls="below soft")
    return at, [*grid, *left, *below, label]


def thinned(points: Curve) -> list[Sequence[float]]:
    """Return at most `POINTS` points: means of equal runs of neighbours; what is not finite is left out."""
    points = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    size = math.ceil(len(points) / POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)] if size else []
    return [[sum(column) / len(group) for column in zip(*(p[:2] for p in group), strict=True)] for group in groups]


def smooth(values: Sequence[float]) -> list[float]:
    """Return the running mean over a twelfth of the curve, centred, the window cut off at both ends."""
    half = max(1, len(values) // 24)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return about five round numbers (multiples of 1, 2 or 5 times a power of ten) within, or one beyond, a range."""
    span = max(high - low, 1e-9 * max(abs(high), 1.0))
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * 5 >= span)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [(first + i) * step for i in range(max(count, 1))]


def bars(rows: Sequence[tuple[str, float, str]]) -> Html:
    """Return horizontal bars from zero: (label, value, what to write beside), the first in the parent's colour."""
    longest = max(value for _, value, _ in rows) or 1.0
    lines = [
        tag("div", tag("span", label, cls="label"),
            tag("span", tag("i", style=f"width:{100 * value / longest:.2f}%"), cls="track"),
            tag("span", text, cls="value"), cls="bar")
        for label, value, text in rows
    ]  # fmt: skip
    return tag("div", *lines, cls="bars")


@dataclass(frozen=True)
class Cell:
    """What is said of one layer: a short text, how strong its colour is (0 to 1), and what a pointer on it shows."""

    text: str
    share: float
    more: str


def by_layer(layers: Mapping[str, Cell]) -> Html:
    """Return a map of blocks by linears, or bars where names tell no block."""
    split = {name: re.fullmatch(r"(?:.*?\.)?(\d+)\.(.+)", name) for name in layers}
    if not all(split.values()):
        return bars([(name, cell.share, cell.text) for name, cell in layers.items()])
    cells = {(int(m[1]), m[2]): layers[name] for name, m in split.items() if m}
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    short = [k.rpartition(".")[2] for k in kinds]
    heads = short if len(set(short)) == len(short) else kinds
    body = []
    for block in sorted({b for b, _ in cells}):
        row = [tag("th", f"block {block}", scope="row")]
        for kind in kinds:
            cell = cells.get((block, kind), Cell("", 0, ""))
            row.append(tag("td", cell.text, style=f"--share:{cell.share:.3f}", title=cell.more or None))
        body.append(tag("tr", *row))
    top = tag("tr", tag("th"), *(tag("th", h, scope="col") for h in heads))
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body), cls="heat"), cls="wide")


@dataclass(frozen=True)
class Span:
    """A value from zero on, how far its interval reaches either way, and what to write beside it."""

    value: float
    half: float
    text: str


def spans(groups: Mapping[str, Sequence[tuple[str, Sequence[Span | None]]]], columns: Sequence[str]) -> Html:
    """Return rows of horizontal bars with intervals, a panel of its own scale for each column.

    Args:
        groups: by a name that heads them, rows of a label and a value for every column, None where there is none.
        columns: their names.
    """
    name, beside, row, gap = 150, 60, 19, 26
    width = (WIDTH - name) / len(columns)
    lefts = [name + i * width for i in range(len(columns))]
    rows = [spans for group in groups.values() for _, spans in group]
    tops = [max((s.value + s.half for s in c if s), default=1.0) or 1.0 for c in zip(*rows, strict=True)]
    drawn = [tag("text", c, x=_px(left), y=12, cls="soft") for c, left in zip(columns, lefts, strict=True)]
    y = 16.0
    for title, group in groups.items():
        drawn.append(tag("text", title, x=0, y=_px(y + 18), cls="head"))
        y += gap
        for label, values in group:
            drawn.append(tag("text", label, x=name - 10, y=_px(y + 13), cls="left"))
            for span, left, top in zip(values, lefts, tops, strict=True):
                if span:
                    drawn += _bar(span, left, y, (width - beside) / top)
            y += row
    return tag(
        "svg", tag("title", " and ".join(columns)), *drawn, viewBox=f"0 0 {WIDTH} {y + 6:.0f}", role="img", cls="plot"
    )


def _bar(span: Span, left: float, y: float, scale: float) -> list[Html]:
    """Return a bar, its interval, and its text right of both."""
    end, low, high = (left + scale * max(v, 0.0) for v in (span.value, span.value - span.half, span.value + span.half))
    return [
        tag("rect", x=_px(left), y=_px(y + 3), width=_px(max(end - left, 1.0)), height=12, rx=2),
        tag("line", x1=_px(low), x2=_px(high), y1=_px(y + 9), y2=_px(y + 9), cls="whisker"),
        tag("text", span.text, x=_px(max(end, high) + 6), y=_px(y + 13)),
    ]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the greatest, widened where all are equal."""
    low, high = min(values), max(values)
    room = 0.0 if high > low else abs(low) / 2 or 1.0
    return low - room, high + room


def _px(value: float) -> str:
    return f"{value:.1f}"


def _tick(value: float, among: Sequence[float]) -> str:
    step = among[1] - among[0] if len(among) > 1 else abs(value) or 1.0
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
