"""Folders of unlike blocks open in transformers alone, in a process that knows no `compress`, once that is allowed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compress import files, loading, tree
from compress.artifact import Artifact
from compress.blocks import modelling
from compress.context import Context, QuietReport
from compress.errors import BadSettings
from compress.facts import GridFact
from exporters.safetensors import Safetensors
from tests.conftest import CAUSAL, ENCODERS, branched, quantized, standing, uneven

Tiny = Callable[..., Artifact]
IDS = torch.arange(2, 24).view(2, 11)
KINDS = (*CAUSAL, *ENCODERS)
CHANGES: dict[str, Callable[[Artifact], Artifact]] = {
    "standing": lambda a: branched(standing(a)),
    "uneven": uneven,
}

# Opens every folder beside it in every way, and prints what came of it.
SCRIPT = """
import json, sys
from pathlib import Path
import torch, transformers as tf
from safetensors.torch import load_file

torch.set_num_threads(1)

def refused(maker, folder, **given):
    try:
        maker.from_pretrained(folder, **given)
    except Exception as error:
        return str(error)
    return ""

told = {}
for folder in sorted(p for p in Path(sys.argv[1]).iterdir() if p.is_dir()):
    wanted = load_file(folder.with_suffix(".safetensors"))
    name = json.loads((folder / "config.json").read_text())["parent"]["architectures"][0]
    auto = tf.AutoModelForCausalLM if "Classification" not in name else tf.AutoModelForSequenceClassification
    own = getattr(tf, name)
    refusals = [refused(auto, folder), refused(own, folder), refused(own, folder, trust_remote_code=True)]
    model = auto.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        about = {
            "refusals": refusals,
            "difference": (model(wanted["ids"]).logits - wanted["logits"]).abs().max().item(),
            "own": isinstance(model, own),
            "hidden": tf.AutoConfig.from_pretrained(folder, trust_remote_code=True).hidden_size,
            "save": refused(type("", (), {"from_pretrained": model.save_pretrained}), folder / "again"),
        }
        bare = tf.AutoModel.from_pretrained(folder, trust_remote_code=True)
        inner = getattr(model, model.base_model_prefix)
        gap = bare(wanted["ids"]).last_hidden_state - inner(wanted["ids"]).last_hidden_state
        about["bare"] = gap.abs().max().item()
        if hasattr(model, "generate") and "CausalLM" in auto.__name__:
            given = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
            about["written"] = [model.generate(wanted["ids"], use_cache=c, **given).tolist() for c in (True, False)]
    told[folder.name] = about
assert not [n for n in sys.modules if n.split(".")[0] in ("compress", "exporters")]
Path(sys.argv[2]).write_text(json.dumps(told))
"""


def exported(artifact: Artifact, folder: Path, **given: Any) -> QuietReport:
    report = QuietReport()
    folder.mkdir()
    Safetensors(Safetensors.Settings(**given)).export(artifact, folder, Context(folder=folder, report=report), None)
    return report


@pytest.fixture(scope="module")
def told(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What another process tells of a folder of each kind and change."""
    root, elsewhere = tmp_path_factory.mktemp("folders"), tmp_path_factory.mktemp("elsewhere")
    for kind in KINDS:
        for name, change in CHANGES.items():
            artifact = change(tiny(kind))
            exported(artifact, root / f"{kind}-{name}")
            with torch.no_grad():
                wanted = {"ids": IDS, "logits": artifact.model(IDS).logits.contiguous()}
            save_file(wanted, root / f"{kind}-{name}.safetensors")
    script, found = elsewhere / "open.py", elsewhere / "told.json"
    script.write_text(SCRIPT)
    environment = {**os.environ, "HF_MODULES_CACHE": str(elsewhere / "modules"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    subprocess.run(
        [sys.executable, str(script), str(root), str(found)], cwd=elsewhere, env=environment, check=True,
        stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(found.read_text())
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", list(CHANGES))
def test_transformers_opens_it_if_allowed(told: dict[str, Any], kind: str, change: str) -> None:
    about = told[f"{kind}-{change}"]
    # GPT-2's Conv1D sums in another order than Linear.
    assert about["difference"] <= 1e-5
    assert about["bare"] <= 1e-6
    assert about["own"]
    assert about["hidden"] == 32
    opened, *named = about["refusals"]
    assert "trust_remote_code=True" in opened
    assert all("only an Auto class opens this folder" in refusal for refusal in named)
    assert "cannot be saved here" in about["save"]
    if kind in CAUSAL:
        cached, anew = about["written"]
        assert cached == anew


def test_the_file_is_ours_and_needs_torch_and_transformers_alone(tiny: Tiny, tmp_path: Path) -> None:
    report = exported(standing(tiny("llama")), tmp_path / "a")
    assert (tmp_path / "a" / "modelling.py").read_bytes() == Path(modelling.__file__).read_bytes()
    nodes = list(ast.walk(ast.parse((tmp_path / "a" / "modelling.py").read_text())))
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "." for n in nodes if isinstance(n, ast.ImportFrom)]
    needed = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert needed == {"torch", "transformers", "safetensors"}
    assert report.notes == [
        "blocks differ or have branches: AutoModelForCausalLM opens this folder with trust_remote_code=True alone"
    ]
    assert "AutoModelForCausalLM.from_pretrained" in (tmp_path / "a" / "README.md").read_text()
    assert "AutoModelForCausalLM" not in files.read_json(_bert(tiny, tmp_path) / "config.json")["auto_map"]


def _bert(tiny: Tiny, tmp_path: Path) -> Path:
    exported(standing(tiny("bert")), tmp_path / "bert")
    return tmp_path / "bert"


def test_compress_goes_on_from_it(tiny: Tiny, tmp_path: Path) -> None:
    given = branched(standing(tiny("llama")))
    exported(given, tmp_path / "a")
    for stored in (False, True):
        again = Artifact.load(tmp_path / "a", stored=stored)
        assert tree.facts(again.model, again.task) == tree.facts(given.model, given.task)
    assert loading.facts_of(str(tmp_path / "a"), "causal-lm") == tree.facts(given.model, given.task)
    (tmp_path / "b").mkdir()
    again.save(tmp_path / "b")
    assert "auto_map" not in files.read_json(tmp_path / "b" / "config.json")


def test_it_can_be_left_out_and_is_only_there_where_it_is_needed(tiny: Tiny, tmp_path: Path) -> None:
    report = exported(standing(tiny("llama")), tmp_path / "a", modelling=False)
    assert report.notes == ["blocks differ or have branches, so that only compress opens this folder"]
    exported(tiny("llama"), tmp_path / "b")
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert not (folder / "modelling.py").exists()
        assert "auto_map" not in files.read_json(folder / "config.json")


def test_codes_are_the_floats_that_they_stand_for(tiny: Tiny, tmp_path: Path) -> None:
    artifact = quantized(standing(tiny("llama")), GridFact(bits=4, group_size=16))
    with pytest.raises(BadSettings, match="format = 'float'"):
        exported(artifact, tmp_path / "a")
    exported(artifact, tmp_path / "b", format="float")
    assert (tmp_path / "b" / "modelling.py").exists()
    assert Artifact.load(tmp_path / "b").grids.keys() == artifact.grids.keys()
