"""`engine.json`: what an engine is, what it was made of and for, and the digest of every file."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from compress import files, registry, tree
from compress.artifact import Artifact
from compress.contracts import Export, Exporter, Target
from compress.errors import BadModel, CompressError, Tampered

MANIFEST = "engine.json"
MEASURED = "measured.json"
_FORMAT = 1
_LIBRARIES = ("torch", "transformers")


def seal(
    artifact: Artifact,
    exporter: Exporter,
    target: Target,
    exported: Export,
    folder: Path,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the manifest of a folder whose files are all there, with some entries more, and return it."""
    facts = {**exported.facts, **(more or {})}
    known = tree.facts(artifact.model, artifact.task)
    libraries = sorted({*_LIBRARIES, *facts.pop("libraries", ())})
    manifest = {
        "format": _FORMAT,
        "exporter": _name(exporter),
        "settings": exporter.settings.model_dump(mode="json"),
        "task": artifact.task,
        "family": known.family,
        "parameters": known.parameters,
        "vocabulary": known.vocabulary,
        "positions": known.positions,
        "begin": artifact.tokenizer.bos_token_id,
        "stop": _stop_tokens(artifact),
        **facts,
        "target": target.model_dump(mode="json"),
        "versions": {"python": platform.python_version(), **{n: metadata.version(n) for n in libraries}},
        "lineage": [dataclasses.asdict(s) for s in artifact.lineage],
        "files": files.digests(folder, without=frozenset({MANIFEST, MEASURED})),
    }
    files.write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of `engine.json`.

    Raises:
        BadModel: there is none.
        Tampered: it cannot be read.
    """
    try:
        manifest: dict[str, Any] = files.read_json(folder / MANIFEST)
    except FileNotFoundError:
        raise BadModel(f"{folder}: no {MANIFEST} in it, so it is no engine folder") from None
    except ValueError as error:
        raise Tampered(
            f"{folder / MANIFEST}: not readable as JSON ({error}); delete the folder to make it anew"
        ) from None
    return manifest


def _name(exporter: Exporter) -> str:
    for name in registry.names("exporters"):
        if registry.load("exporters", name, Exporter) is type(exporter):
            return name
    raise CompressError(f"{type(exporter).__qualname__}: no file of exporters/ and no entry point leads to it")


def _stop_tokens(artifact: Artifact) -> list[int]:
    """Return the token ids that end a text: those of the generation settings, else the tokenizer's."""
    if artifact.task != "causal-lm":
        return []
    generation: Any = getattr(artifact.model, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    if found is None:
        found = artifact.tokenizer.eos_token_id
    return sorted(set(found)) if isinstance(found, list) else [] if found is None else [found]
