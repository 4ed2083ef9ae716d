"""The one way to an engine: export it, describe it, prove it against the model, and open it again.

An engine folder holds what its exporter wrote (the graph and `run.py`), the tokenizer with its chat template,
`engine.json` (what it is, its inputs and outputs, the digest of every file) and `measured.json` (what it was measured
to do, outside every digest).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress import files, registry
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Engine, Exporter, Target
from compress.engines import choice, parity
from compress.engines.manifest import MANIFEST, MEASURED, read_manifest, seal
from compress.errors import BadModel, Unavailable

__all__ = ["MANIFEST", "MEASURED", "NOT_RUN", "TOKENIZER", "Engines", "read_manifest"]

TOKENIZER = "tokenizer.json"
NOT_RUN = "not_run"  # in `measured.json`: why an engine was not opened where it was made


class Engines:
    """Builds engines and opens them; keeps nothing between calls."""

    def build(
        self, artifact: Artifact, exporter: Exporter, target: Target, folder: Path, context: Context
    ) -> dict[str, Any]:
        """Write an engine into an existing, empty folder, reopen it in its runtime and compare it with the model.

        Where the exporter has faster ways to write it, the best of them is kept after that (`compress.engines.choice`).
        An engine for a device that is not here is neither compared nor timed, and told to be not run.

        Args:
            artifact: what to export; stays as it is.
            exporter: how.
            target: what for.
            folder: where.
            context: receives the figures of the comparison, as `parity`, and the times of variants, as `kernels`.

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
        manifest = seal(artifact, exporter, target, exported, folder)
        if why := exporter.absent(folder):
            context.report.note(f"not run: {why}")
            context.report.record(NOT_RUN, why)
            files.write_json(folder / MEASURED, {NOT_RUN: why})
            return manifest
        engine = exporter.open(folder, target)
        try:
            figures = parity.verify(engine, artifact)
        finally:
            engine.close()
        context.report.record("parity", figures)
        measured: dict[str, Any] = {"parity": figures}
        if exported.variants:
            manifest, measured["kernels"] = choice.keep_fastest(artifact, exporter, target, exported, folder, context)
            context.report.record("kernels", measured["kernels"])
        files.write_json(folder / MEASURED, measured)
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
        return _exporter(manifest).open(folder, target or Target.model_validate(manifest["target"]))

    def absent(self, folder: Path) -> str | None:
        """Return why an engine cannot be opened on this machine, if its exporter builds ahead and it cannot."""
        return _exporter(read_manifest(folder)).absent(folder)

    def check(self, folder: Path) -> None:
        """Raise `Tampered` unless every file that `engine.json` lists is there with its bytes."""
        files.check(folder, read_manifest(folder)["files"], MANIFEST)

    def is_engine(self, folder: Path) -> bool:
        """Tell whether a folder is an engine folder."""
        return (folder / MANIFEST).is_file()


def _exporter(manifest: Mapping[str, Any]) -> Exporter:
    """Return the exporter that wrote an engine, with its settings."""
    found = registry.load("exporters", manifest["exporter"], Exporter)
    return found(found.Settings.model_validate(manifest["settings"]))


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
