"""What there is to use: passes, exporters and families, each with its card and its settings."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress import registry
from compress.contracts import Exporter, Pass, Settings
from compress.errors import BadSettings
from compress.families import families

ROOMS: Mapping[str, type[Pass | Exporter]] = {"passes": Pass, "exporters": Exporter}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of a plug-in's table.

    Attributes:
        name: the key.
        type: what TOML value it takes.
        default: as TOML writes it; empty when it must be given.
        range: the values allowed, such as `>= 0, < 1`; empty without limits.
        description: what it means.
    """

    name: str
    type: str
    default: str
    range: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """A plug-in or family on one page.

    Attributes:
        room: `passes`, `exporters` or `families`.
        name: what `use` says, or the family's name.
        summary: the card's first line.
        text: the whole card.
        settings: what its table takes.
    """

    room: str
    name: str
    summary: str
    text: str
    settings: tuple[Setting, ...] = ()


def catalogue() -> dict[str, list[Card]]:
    """Return the cards of every pass, exporter and family, by room."""
    rooms = {room: [_plugin(room, name) for name in registry.names(room)] for room in ROOMS}
    return {**rooms, "families": [_family(name) for name in families()]}


def card(name: str) -> Card:
    """Return the card of a pass, an exporter or a family.

    Raises:
        BadSettings: there is nothing of that name.
    """
    for room in ROOMS:
        if name in registry.names(room):
            return _plugin(room, name)
    if name in families():
        return _family(name)
    known = [n for room in ROOMS for n in registry.names(room)]
    raise BadSettings(f"no pass, exporter or family {name!r}{registry.nearest(name, [*known, *families()])}")


def settings_of(model: type[Settings]) -> tuple[Setting, ...]:
    """Return what a table of settings takes, its own keys before those that it shares with others."""
    schema = model.model_json_schema()
    found = []
    declared = [n for c in model.__mro__ for n in inspect.get_annotations(c) if n in model.model_fields]
    for name in dict.fromkeys(declared):
        field, property_ = model.model_fields[name], schema["properties"][name]
        parts = [p for p in property_.get("anyOf", [property_]) if p.get("type") != "null"]
        found.append(
            Setting(
                name=name,
                type=" or ".join(_type(p) for p in parts),
                default="" if field.is_required() else _toml(property_.get("default")),
                range="; ".join(filter(None, map(_range, parts))),
                description=field.description or "",
            )
        )
    return tuple(found)


def _plugin(room: str, name: str) -> Card:
    found = registry.load(room, name, ROOMS[room])
    text = registry.card(room, name)
    return Card(room=room, name=name, summary=_summary(text), text=text, settings=settings_of(found.Settings))


def _family(name: str) -> Card:
    text = inspect.getdoc(importlib.import_module(f"compress.families.{name}")) or ""
    types = f"Model types: {', '.join(families()[name].model_types)}."
    return Card(room="families", name=name, summary=_summary(text), text=f"{text}\n\n{types}")


def _summary(text: str) -> str:
    return text.partition("\n")[0]


def _type(property_: Mapping[str, Any]) -> str:
    if values := property_.get("enum", [property_["const"]] if "const" in property_ else None):
        return " or ".join(map(_toml, values))
    if property_.get("type") == "array":
        return f"list of {_type(property_.get('items', {}))}"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return names.get(property_.get("type", ""), "value")


def _range(property_: Mapping[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {property_[key]:g}" for key, sign in signs.items() if key in property_]
    return ", ".join(limits + ([f"like {property_['pattern']}"] if "pattern" in property_ else []))


def _toml(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
