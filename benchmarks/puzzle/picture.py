"""The two curves as one picture: loss over the measured share of the dense engine's decode time."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks._ledger import read
from benchmarks.puzzle.cells import ALL, ALONE, CONTROL, DENSE, DROPS, PUZZLE, QUANTIZED, SOLVERS, STRUCTURE
from benchmarks.puzzle.points import Point, dense_of, points
from compress.report.plots import WIDTH
from compress.report.scatter import Mark, Series, scatter

HEIGHT, HEAD = 380, 66
COLOURS = (
    "#1769aa", "#777777", "#c05621", "#2f855a", "#805ad5", "#b83280", "#a0762c", "#0f766e", "#4a5568", "#d53f8c",
    "#3182ce", "#68a03a",
)  # fmt: skip
STYLE = """text{font:12px sans-serif;fill:#555}.left{text-anchor:end}.below{text-anchor:middle}.grid{stroke:#ddd}
.mark{stroke-width:1.5}.guess{fill:#fff}.join{fill:none;stroke-width:1.6;stroke-opacity:.55}.whisker{stroke-width:1.2}
.tie{stroke-dasharray:2 3}.title{font-weight:600;fill:#222}"""
PANELS = {STRUCTURE: "Shapes alone, all in fp32", ALL: "Shapes, codes and zeros"}


def write(path: Path) -> None:
    """Draw the curves of a results file beside it, where its engines are timed."""
    found = points({line["key"]: line for line in read(path)[1:]})
    if any(p.share() for p in found.values()):
        path.with_suffix(".svg").write_text(drawn(found), encoding="utf-8")


def drawn(found: dict[str, Point]) -> str:
    """Return both panels, one below the other."""
    dense, panels = dense_of(found), []
    timed = [p for p in found.values() if p.share()]
    every = sorted({p.cell.way for p in timed}, key=lambda w: (w != PUZZLE, w))
    colours = {way: index % len(COLOURS) for index, way in enumerate(every)}  # the same in both panels
    for row, (curve, title) in enumerate(PANELS.items()):
        here = [p for p in timed if _stands(p, curve)]
        ways = {way: colours[way] for way in every if any(p.cell.way == way for p in here)}
        series = [
            Series(
                name=way, colour=colour, joined=way in {PUZZLE, ALONE, *SOLVERS, *DROPS},
                marks=[_mark(p, dense) for p in here if p.cell.way == way],
            )
            for way, colour in ways.items()
        ]  # fmt: skip
        inner = re.search(
            r"<svg[^>]*>(.*)</svg>", str(scatter(series, "share of the dense decode time", title)), re.DOTALL
        )
        assert inner is not None
        panels.append(
            f'<g transform="translate(0 {row * (HEIGHT + HEAD) + HEAD - 4})">{_head(title, ways)}{inner[1]}</g>'
        )
    height = len(PANELS) * (HEIGHT + HEAD)
    rules = "".join(f".s{i}{{fill:{c};stroke:{c}}}" for i, c in enumerate(COLOURS))
    rules += "".join(f".s{i} text{{stroke:none;fill:{c}}}" for i, c in enumerate(COLOURS))
    body = f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>{"".join(panels)}'
    style = f"<style>{STYLE}{rules}</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">{style}{body}</svg>\n'


def _stands(point: Point, curve: str) -> bool:
    """Tell whether an engine stands on a curve: all that a user could take instead are beside all options."""
    cell = point.cell
    return cell.curve == curve or cell.way in (DENSE, CONTROL) or (curve == ALL and cell.way in {*QUANTIZED, *DROPS})


def _head(title: str, ways: dict[str, int]) -> str:
    """Return a panel's title, and its ways in their colours."""
    keys, x, y = [f'<text class="title" x="4" y="-44">{title}: loss in nats, lower is better</text>'], 4, -26
    for way, colour in ways.items():
        if x + 20 + 7 * len(way) > WIDTH:
            x, y = 4, y + 16
        keys.append(f'<g class="s{colour}"><text x="{x}" y="{y}">● {way}</text></g>')
        x += 20 + 7 * len(way)
    return "".join(keys)


def _mark(point: Point, dense: Point) -> Mark:
    share = point.share()
    assert share is not None
    _, low, high = point.above(dense)
    up = (dense.loss + low, dense.loss + high)
    more = f"{point.cell.curve} {point.cell.way} {point.cell.amount:g}"
    return Mark(x=share[0], y=point.loss, across=share[1:], up=up, more=more)
