"""The JSON schema of a pipeline file, for editors."""

from __future__ import annotations

from typing import Any

from compress import registry
from compress.contracts import Target
from compress.data.settings import DataSettings
from compress.settings.entries import COMMON, CONTRACTS, ROOMS
from compress.settings.tables import ROLES, TABLES


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the whole file, with every plug-in that is installed."""
    definitions: dict[str, Any] = {}
    properties = {name: _object(model, definitions) for name, model in TABLES.items()}
    properties["data"] = {
        "type": "object",
        "description": "texts and examples, by what they are for",
        "properties": {role: _object(DataSettings, definitions) for role in ROLES},
        "additionalProperties": False,
    }
    properties["target"] = {"type": "array", "items": _object(Target, definitions)}
    for kind, room in ROOMS.items():
        items = [_entry(kind, name, definitions) for name in registry.names(room)]
        properties[kind] = {"type": "array", "items": {"oneOf": items}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a pipeline of compress",
        "type": "object",
        "properties": properties,
        "required": ["model"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _entry(kind: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    own = _object(registry.load(ROOMS[kind], name, CONTRACTS[kind]).Settings, definitions)
    common = _object(COMMON[kind], definitions)
    use = {"const": name, "description": registry.card(ROOMS[kind], name).partition("\n")[0]}
    return {
        **own,
        "title": name,
        "properties": {**common["properties"], "use": use, **own.get("properties", {})},
        "required": ["use", *own.get("required", [])],
    }


def _object(model: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = model.model_json_schema()
    definitions.update(found.pop("$defs", {}))
    return found
