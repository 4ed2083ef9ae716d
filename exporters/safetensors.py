"""A plain Hugging Face folder: weights as safetensors, configuration, tokenizer; for whatever reads such folders.

`from_pretrained` of transformers opens it; zeros are stored like any number.  Beside them lies the card of the artifact
(`compress.json`: lineage, digests) with its masks, so that `compress` can go on from it.
Needs no target.
"""

from __future__ import annotations

from pathlib import Path

from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Export, Exporter, Target


class Safetensors(Exporter):
    """Write the artifact as it is stored between passes."""

    def export(self, artifact: Artifact, folder: Path, context: Context, target: Target | None) -> Export:
        """Write the folder."""
        artifact.save(folder)
        return Export(files=tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())))
