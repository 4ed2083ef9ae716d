"""A Hugging Face folder: weights or codes as safetensors, configuration, tokenizer; for whatever reads such folders.

Floats: `from_pretrained` of transformers opens it; zeros are stored like any number.  Beside them lies the card of the
artifact (`compress.json`: lineage, digests) with its masks and codes, so that `compress` can go on from it.

Unlike blocks: for a model whose blocks differ, or with branches, transformers has no class, and its `from_pretrained`
refuses the folder.  With `trust_remote_code=True` it opens it, for the folder holds one readable file, `modelling.py`,
that needs torch and transformers alone; `modelling = false` leaves it out.  Weights are floats there, zeros and what
codes stand for among them; nothing is saved from there.  A `README.md` tells both ways, this one and `compress`.

Codes: of a quantized model the folder is in the form of the compressed-tensors library (0.20 or later), with which
transformers opens it (tried: 5.23; earlier ones may raise where there are zeros); without the library it raises.
Weights are the artifact's own codes, packed and never rounded anew: `pack-quantized`, 2, 3, 4 or 8 bits, whole rows or
groups that divide the inputs, with or without zeros, every linear with its own bits.  Linears that read integers (8
bits, whole rows) are `int-quantized`: inputs are rounded token by token, or by their static scale.  All else stays as
it was.  vLLM reads the same form (so its source says; it was not run): which bits and groups it has kernels for depends
on its version and the GPU, 4 and 8 bits in groups of 128 being the oldest, and linears that it joins into one (query,
key and value; gate and up) must be alike.

Precision: scales are stored in float32.  transformers opens linears of one kind as the artifact's very weights; kinds
that are mixed, or inputs that become integers, in float32 too, but in bfloat16 with scales rounded to it, as vLLM does.
3 bits lie densely, 32 codes in 3 words; older libraries, of 10 codes to a word, expect another shape and refuse it.
Not there: zeros of masks cost as much as any code, since the library has no sparse form any more; real offsets, groups
that do not divide the inputs, zeros of more than one kind of codes, GPT-2's transposed linears and blocks of unlike
shapes are refused.  The folder is an end: `compress` goes on from the artifact.
Needs no target.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from compress import files, grids, loading, tree
from compress.artifact import CARD, GRIDS, MASKS, Artifact
from compress.blocks import disk, modelling
from compress.context import Context, Report
from compress.contracts import Export, Exporter, Settings, Target
from compress.errors import BadModel, BadSettings
from compress.facts import Facts, GridFact
from exporters.safetensors import _packed, _scheme

MODELLING = "modelling.py"
_STOP = "blocks differ or have branches; only an Auto class opens this folder, with trust_remote_code=True, or compress"
_README = """# A model whose blocks differ

Its blocks differ in shape, or linears have low-rank branches beside their weights, for which transformers has no class;
plain `from_pretrained` refuses this folder. The shapes are in `config.json`.
{}
With `compress`:

    from pathlib import Path
    from compress.artifact import Artifact

    artifact = Artifact.load(Path("this folder"))
    artifact.model  # a PyTorch module that is called as its parent was; artifact.tokenizer belongs to it

or as an engine that needs neither: `compress export FOLDER ENGINE_FOLDER`.
"""
_WITHOUT = """
Without `compress`, once you have read `modelling.py`:

    from transformers import {auto}, AutoTokenizer

    model = {auto}.from_pretrained("this folder", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained("this folder", trust_remote_code=True)
"""


class SafetensorsSettings(Settings):
    """Settings of the Hugging Face folder."""

    format: Literal["auto", "compressed-tensors", "float"] = Field(
        "auto",
        description="what a quantized model is written as: packed codes ('compressed-tensors', as 'auto' does where "
        "there are codes), or the weights they stand for with the codes beside ('float')",
    )
    modelling: bool = Field(
        True,
        description="whether a folder that transformers has no class for gets the Python file with which "
        "from_pretrained(..., trust_remote_code=True) opens it",
    )


class Safetensors(Exporter):
    """Write the artifact as it is stored between passes, or its codes packed."""

    Settings = SafetensorsSettings
    settings: SafetensorsSettings
    streams = True

    def plan(self, facts: Facts, target: Target | None) -> None:
        """Raise `BadSettings` when there are no codes to pack, or some that the form cannot say."""
        if self.settings.format == "compressed-tensors" and not facts.grids:
            raise BadSettings("there are no codes to pack; quantize before, or leave it 'auto'", key="format")
        if facts.grids and self.settings.format != "float":
            _scheme.check(facts)

    def export(self, artifact: Artifact, folder: Path, context: Context, target: Target | None) -> Export:
        """Write the folder, and say what whoever opens it should know."""
        known = tree.facts(artifact.model, artifact.task).after(grids=grids.facts(artifact.grids))
        self.plan(known, target)
        artifact.save(folder)
        shaped = disk.read(folder) is not None
        if known.grids and self.settings.format != "float":
            if shaped:
                raise BadModel("transformers has no class for such blocks, so codes cannot be packed; format = 'float'")
            self._pack_(artifact, known.grids, folder)
            _tell(artifact, known.grids, context.report)
        elif shaped:
            self._explain_(artifact, folder, context.report)
        return Export(files=tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())))

    def _pack_(self, artifact: Artifact, facts: Mapping[str, GridFact], folder: Path) -> None:
        """Turn the folder of an artifact into one of packed codes, which is no artifact any more."""
        _packed.pack_(folder, artifact.grids)
        for name in (GRIDS, MASKS):
            (folder / name).unlink(missing_ok=True)
        _configure_(folder, {"quantization_config": _scheme.config(artifact.model, facts)}, {"masks": {}})

    def _explain_(self, artifact: Artifact, folder: Path, report: Report) -> None:
        """Tell who opens blocks of unlike shapes, and let transformers be among them where that is wanted."""
        if not self.settings.modelling:
            report.note("blocks differ or have branches, so that only compress opens this folder")
            files.write_atomic(folder / "README.md", _README.format(""))
            return
        table, auto = tree.family(artifact.model), loading.CLASSES[artifact.task].__name__
        report.note(f"blocks differ or have branches: {auto} opens this folder with trust_remote_code=True alone")
        files.write_atomic(folder / "README.md", _README.format(_WITHOUT.format(auto=auto)))
        shutil.copyfile(modelling.__file__, folder / MODELLING)
        opens = {"AutoConfig": "Config", "AutoModel": "Bare", "AutoModelForSequenceClassification": "Classifier"}
        opens |= {"AutoModelForCausalLM": "Causal"} if table.decoder else {}
        names = {auto: f"{Path(MODELLING).stem}.{name}" for auto, name in opens.items()}
        about = {"auto_map": names, "family": dataclasses.asdict(table), "vocab_size": _STOP}
        _configure_(folder, about, {})


def _configure_(folder: Path, config: Mapping[str, object], card: Mapping[str, object]) -> None:
    """Add to the configuration and to the card, whose digests are then those of the folder as it is."""
    path = folder / disk.CONFIG
    files.write_json(path, dict(sorted((files.read_json(path) | config).items())))
    digests = files.digests(folder, frozenset({CARD}))
    files.write_json(folder / CARD, files.read_json(folder / CARD) | card | {"files": digests})


def _tell(artifact: Artifact, facts: Mapping[str, GridFact], report: Report) -> None:
    report.note(f"{len(facts)} linears as packed codes: opens with compressed-tensors {_scheme.VERSION} or later")
    if artifact.masks:
        report.note("zeros under the masks are packed like any code: compressed-tensors has no sparse form for codes")
    if odd := _scheme.split(artifact.model, facts):
        report.note(f"vLLM does not open it: {odd} has not the codes of the linears that it is joined with there")
    if len(set(facts.values())) > 1:
        report.note("transformers must open it without dequantize = True, which takes all linears for the first kind")
    if artifact.model.dtype != torch.float32:
        dtype = str(artifact.model.dtype).rpartition(".")[2]
        report.note(f"scales are float32; who computes with codes in {dtype}, as vLLM does, rounds them to it")
