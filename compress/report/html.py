"""HTML from Python calls: everything is escaped unless it was made here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from compress.report.words import Change

_STYLE = Path(__file__).with_name("style.css")


class Html(str):
    """Text that is markup already."""


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """Return an element; children that are None or "" vanish, `cls` is the class, `_` in a name becomes `-`."""
    names = {k: {"cls": "class"}.get(k, k.replace("_", "-")) for k in attributes}
    texts = "".join(f' {names[k]}="{escape(str(v))}"' for k, v in attributes.items() if v is not None)
    return Html(f"<{name}{texts}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Html:
    """Return children one after another, plain text escaped."""
    return Html("".join(c if isinstance(c, Html) else escape(str(c)) for c in children if c is not None))


def document(title: str, *children: Any) -> str:
    """Return a whole page that needs no other file."""
    head = tag(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", Html(_STYLE.read_text(encoding="utf-8"))),
    )
    return f'<!doctype html>\n<html lang="en">{head}<body>{tag("main", *children)}</body></html>\n'


def table(head: Sequence[Any], rows: Iterable[Iterable[Any]], **attributes: Any) -> Html:
    """Return a table whose rows begin with their header."""
    body = [tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in rows]
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))) if any(head) else None
    return tag("div", tag("table", top, tag("tbody", *body), **attributes), cls="wide")


def part(title: str, about: str, *children: Any) -> Html:
    """Return a part of the page: its title, one sentence about it, its content."""
    return tag("section", tag("h2", title), tag("p", about, cls="about"), *children)


def changed(change: Change | None) -> Html | None:
    """Return a change coloured by whether it is good."""
    return tag("span", change.text, cls=change.tone) if change else None


def facts(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Return a list of names and what they are; nested tables and lists are laid out in one line each."""
    return tag("dl", *(tag("div", tag("dt", plain(name)), tag("dd", told(value))) for name, value in pairs))


def plain(name: Any) -> str:
    """Return a key as words."""
    return str(name).replace("_", " ")


def told(value: Any) -> Any:
    """Return a JSON value as a reader would say it."""
    match value:
        case Html():
            return value
        case bool():
            return "yes" if value else "no"
        case None:
            return "none"
        case float():
            return f"{value:.4g}"
        case dict():
            return ", ".join(f"{plain(k)} {told(v)}" for k, v in value.items()) or "none"
        case list() | tuple():
            return ("; " if any(isinstance(v, dict) for v in value) else ", ").join(
                str(told(v)) for v in value
            ) or "none"
    return str(value)
