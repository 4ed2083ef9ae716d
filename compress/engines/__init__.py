"""The one way to an engine: export it, describe it, prove it against the model, and open it again.

An engine folder holds what its exporter wrote (the graph and `run.py`), the tokenizer with its chat template,
`engine.json` (what it is, its inputs and outputs, the digest of every file) and `measured.json` (what it was measured
to do, outside every digest).
"""

from __future__ import annotations

import copy
import dataclasses
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from compress import files, registry, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Engine, Export, Exporter, Target
from compress.engines import parity
from compress.errors import BadModel, CompressError, Tampered, Unavailable

MANIFEST = "engine.json"
MEASURED = "measured.json"
TOKENIZER = "tokenizer.json"
_FORMAT = 1
_LIBRARIES = ("torch", "transformers")


class Engines:
    """Builds engines and opens them; keeps nothing between calls."""

    def build(
        self, artifact: Artifact, exporter: Exporter, target: Target, folder: Path, context: Context
    ) -> dict[str, Any]:
        """Write an engine into an existing, empty folder, reopen it in its runtime and compare it with the model.

        Args:
            artifact: what to export; stays as it is.
            exporter: how.
            target: what for.
            folder: where.
            context: receives the figures of the comparison, as `parity`.

        Returns:
            The manifest, which `engine.json` holds.

        Raises:
            ParityError: the engine's outputs differ from the model's; the folder must not be used.
            Unavailable: the exporter, its runtime or the target's device is not here.
            BadModel: the tokenizer cannot be written so that an engine can read it.
        """
        if missing := exporter.available():
            raise Unavailable(missing)
        exported = exporter.export(artifact, folder, context, target)
        _write_tokenizer(artifact, folder)
        manifest = _manifest(artifact, exporter, target, exported, folder)
        files.write_json(folder / MANIFEST, manifest)
        engine = exporter.open(folder, target)
        try:
            figures = parity.verify(engine, artifact)
        finally:
            engine.close()
        context.report.record("parity", figures)
        files.write_json(folder / MEASURED, {"parity": figures})
        return manifest

    def open(self, folder: Path, target: Target | None = None) -> Engine:
        """Open an engine folder whose files are as they were written.

        Args:
            folder: the engine folder.
            target: device and threads; by default those that the engine was made for.

        Raises:
            BadModel: the folder is no engine.
            Tampered: a file is missing or differs.
            Unavailable: its runtime or the device is not here.
        """
        self.check(folder)
        manifest = read_manifest(folder)
        found = registry.load("exporters", manifest["exporter"], Exporter)
        exporter = found(found.Settings.model_validate(manifest["settings"]))
        return exporter.open(folder, target or Target.model_validate(manifest["target"]))

    def check(self, folder: Path) -> None:
        """Raise `Tampered` unless every file that `engine.json` lists is there with its bytes."""
        files.check(folder, read_manifest(folder)["files"], MANIFEST)

    def is_engine(self, folder: Path) -> bool:
        """Tell whether a folder is an engine folder."""
        return (folder / MANIFEST).is_file()


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


def _manifest(artifact: Artifact, exporter: Exporter, target: Target, exported: Export, folder: Path) -> dict[str, Any]:
    facts = dict(exported.facts)
    known = tree.facts(artifact.model, artifact.task)
    libraries = sorted({*_LIBRARIES, *facts.pop("libraries", ())})
    return {
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


def _write_tokenizer(artifact: Artifact, folder: Path) -> None:
    """Write the tokenizer without the padding and truncation of its last call, which it would keep."""
    tokenizer: Any = copy.deepcopy(artifact.tokenizer)
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        backend.no_padding()
        backend.no_truncation()
    with files.disk_errors(folder):
        tokenizer.save_pretrained(folder)
    if not (folder / TOKENIZER).is_file():
        raise BadModel(
            f"{type(artifact.tokenizer).__name__}: has no {TOKENIZER}, the form that engines read; "
            "give the model a tokenizer that transformers calls fast"
        )
