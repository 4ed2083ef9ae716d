"""A plain Hugging Face folder: weights as safetensors, configuration, tokenizer; for whatever reads such folders.

`from_pretrained` of transformers opens it; zeros are stored like any number.  Beside them lies the card of the artifact
(`compress.json`: lineage, digests) with its masks, so that `compress` can go on from it.  For a model whose blocks
differ, or with branches, transformers has no class: its `from_pretrained` refuses the folder, and a `README.md` there
tells how `compress` opens it.
Needs no target.
"""

from __future__ import annotations

from pathlib import Path

from compress import files
from compress.artifact import Artifact
from compress.blocks import disk
from compress.context import Context
from compress.contracts import Export, Exporter, Target

_README = """# A model that `compress` opens

Its blocks differ in shape, or linears have low-rank branches beside their weights, for which transformers has no class;
`from_pretrained` refuses this folder. In Python:

    from pathlib import Path
    from compress.artifact import Artifact

    artifact = Artifact.load(Path("this folder"))
    artifact.model  # a PyTorch module that is called as its parent was; artifact.tokenizer belongs to it

or as an engine that needs neither: `compress export FOLDER ENGINE_FOLDER`. The shapes are in `config.json`.
"""


class Safetensors(Exporter):
    """Write the artifact as it is stored between passes."""

    streams = True

    def export(self, artifact: Artifact, folder: Path, context: Context, target: Target | None) -> Export:
        """Write the folder, and say so if transformers does not open it."""
        artifact.save(folder)
        if disk.read(folder):
            context.report.note("blocks differ or have branches, so that only compress opens this folder")
            files.write_atomic(folder / "README.md", _README)
        return Export(files=tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())))
