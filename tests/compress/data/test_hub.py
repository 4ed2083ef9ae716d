"""Clients run in processes of their own, since they read where the hub is when they are imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from compress.artifact import Artifact
from tests.hub_server import Hub

READER = """
import json, sys
from compress.data import DataSettings, columns
from compress.data.places import locate
from compress.errors import BadData
for line in sys.stdin:
    asked = json.loads(line)
    try:
        settings = DataSettings(**asked["settings"])
        place = locate(settings, asked["role"])
        rows = list(place.rows())
        layout = columns.layout(settings, asked["task"], rows[0])
        texts = [columns.text(row, layout.columns["text"]) for row in rows]
        found = {"digest": place.digest(), "documents": texts, "kind": layout.kind}
    except BadData as error:
        found = {"error": str(error)}
    print(json.dumps(found))
"""
CARD = """---
configs:
- config_name: cola
  data_files: [{split: train, path: cola/train-*}]
- config_name: sst2
  data_files: [{split: train, path: sst2/train-*}, {split: validation, path: sst2/validation-*}]
---
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    plain, glue = root / "datasets" / "owner" / "plain", root / "datasets" / "nyu-mll" / "glue"
    plain.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"text": f"{split} {i}", "meta": i} for i in range(3)]
        (plain / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in ("cola/train", "sst2/train", "sst2/validation"):
        file = glue / f"{path}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table({"sentence": [f"{path} a", f"{path} b"], "label": [0, 1]}), file)
    (glue / "README.md").write_text(CARD)
    with Hub(root).running() as running:
        yield running


def client(code: str, environment: dict[str, str], *asked: Any) -> list[Any]:
    """Return what the code prints, a line of JSON for each that it is asked."""
    lines = "".join(json.dumps(a) + "\n" for a in asked)
    done = subprocess.run(
        [sys.executable, "-c", code], input=lines, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ask(source: str, role: str = "training", task: str = "causal-lm", **settings: str) -> dict[str, Any]:
    return {"settings": {"source": source, **settings}, "role": role, "task": task}


def test_data_sets(hub: Hub, tmp_path: Path) -> None:
    """One process for all that can be asked while the hub is there, one after it has changed, one without it."""
    environment = hub.environment(tmp_path / "home")
    asked = [
        ask("owner/plain"),
        ask("owner/plain", "evaluation"),
        ask("owner/plain", split="test"),
        ask("glue/sst2", "evaluation", "classification"),
        ask("nyu-mll/glue", "evaluation", "classification", name="sst2"),
        ask("glue/cola", "training", "classification"),
    ]
    faults = {
        r"'owner/none': no such file or folder, and the hub did not give it (": ask("owner/none"),
        r"'nyu-mll/glue': no such": ask("glue/sst3", "evaluation", "classification"),
        r"nyu-mll/glue: has no split 'validation' for evaluation; set split to one of ['train']": ask(
            "glue/cola", "evaluation", "classification"
        ),
        r"'owner/plain': no such file or folder, and the hub did not give it (Unknown split": ask(
            "owner/plain", split="valid"
        ),
        r"'owner/plain': no such file or folder, and the hub did not give it (Revision": ask(
            "owner/plain", revision="v2"
        ),
        r"owner/plain row 0: no column 'txt', which text names; did you mean 'text'?": ask("owner/plain", text="txt"),
    }
    found = client(READER, environment, *asked, *faults.values())
    assert found[0]["documents"] == [f"train {i}" for i in range(3)]
    assert found[1]["documents"] == found[2]["documents"] == [f"test {i}" for i in range(3)]
    assert found[3]["documents"] == found[4]["documents"] == ["sst2/validation a", "sst2/validation b"]
    assert found[5]["documents"] == ["cola/train a", "cola/train b"]
    assert [f["kind"] for f in found[:6]] == ["text"] * 3 + ["sentences"] * 3
    digests = [f["digest"] for f in found[:6]]
    assert (digests[1], digests[3]) == (digests[2], digests[4])
    assert len(set(digests)) == 4
    for fault, answer in zip(faults, found[6:], strict=True):
        assert answer["error"].startswith(fault)
        assert "\n" not in answer["error"]

    offline = {**environment, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    kept, lost = client(READER, offline, asked[0], ask("owner/other"))
    assert kept == found[0]
    assert lost["error"].startswith("'owner/other': no such file or folder, and the hub did not give it (")
    assert lost["error"].endswith("); check the name and the network")

    file = hub.root / "datasets" / "owner" / "plain" / "train.jsonl"
    file.write_text(file.read_text().replace("train 2", "changed"))
    [changed] = client(READER, environment, asked[0])
    assert changed["documents"] == ["train 0", "train 1", "changed"]
    assert changed["digest"] != found[0]["digest"]


FINDER = """
import json, sys
from compress import loading
from compress.errors import BadModel
for line in sys.stdin:
    source, revision = json.loads(line)
    try:
        folder = loading.locate(source, revision)
        model, tokenizer = loading.open_folder(folder, "causal-lm")
        weight = float(model.get_input_embeddings().weight.double().sum())
        found = {"files": sorted(p.name for p in folder.iterdir()), "sum": weight, "folder": folder.name}
    except BadModel as error:
        found = {"error": str(error)}
    print(json.dumps(found))
"""


def test_models(hub: Hub, tmp_path: Path, tiny: Callable[..., Artifact]) -> None:
    folder, artifact = hub.root / "models" / "owner" / "tiny", tiny("llama")
    artifact.model.save_pretrained(folder)
    artifact.tokenizer.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    environment = hub.environment(tmp_path / "home")
    asked = [("owner/tiny", None), ("owner/tiny", hub.commit(folder)), ("owner/tiny", "v2"), ("owner/none", None)]
    found, pinned, version, none = client(FINDER, environment, *asked)
    weight = artifact.model.get_input_embeddings().state_dict()["weight"]
    assert found == pinned
    assert found["folder"] == hub.commit(folder)
    assert found["sum"] == float(weight.double().sum())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found["files"])
    assert "pytorch_model.bin" not in found["files"]
    assert not any("pytorch_model.bin" in request for request in hub.asked)
    for answer, source in ((none, "owner/none"), (version, "owner/tiny")):
        assert answer["error"].startswith(f"{source!r}: no such folder, and the hub did not give it (")
        assert "\n" not in answer["error"]
