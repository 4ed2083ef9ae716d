"""Runs whose weights stay on disk: the same bits as in memory, resumed alike, in the memory of a block."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.large.stream import config_of, make
from compress import files, pipeline, registry, settings, tensors
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Pass
from compress.data import Source
from compress.data.settings import DataSettings
from compress.errors import BadPipeline
from compress.pipeline.runner import MEASURED
from tests.compress.conftest import TEXT, head

Tiny = Callable[..., Artifact]
ROOT = Path(__file__).parents[2]
STREAMING = [n for n in registry.names("passes") if registry.load("passes", n, Pass).streams]
FAMILIES = {"llama": None, "llama-tied": None, "gpt2": None, "opt": None, "bert": "embedding"}
REST = """[[pass]]
use = "{use}"
[[export]]
use = "safetensors"
"""


def same(a: Artifact, b: Artifact) -> None:
    assert a.tensor_names() == b.tensor_names()
    assert [n for n in a.tensor_names() if not tensors.same_bits(a.tensor(n), b.tensor(n))] == []
    assert set(a.masks) == set(b.masks)
    assert [n for n in a.masks if not torch.equal(a.masks[n], b.masks[n])] == []
    assert set(a.grids) == set(b.grids)
    assert [n for n in a.grids if not torch.equal(a.grids[n].codes, b.grids[n].codes)] == []
    assert [n for n in a.grids if not torch.equal(a.grids[n].scale, b.grids[n].scale)] == []


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 80)
    return path


@pytest.fixture(scope="module")
def model(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny("llama").save(folder)
    return folder


def write(folder: Path, text: Path, model: Path, weights: str = "disk", use: str = "sparsegpt") -> Path:
    path = folder.with_suffix(".toml")
    compute = f'weights = "{weights}"\nthreads = 1'
    path.write_text(head(folder, model, text, compute, calibration=4, evaluation=4) + REST.format(use=use))
    return path


@pytest.mark.parametrize("use", STREAMING)
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_streaming_pass_gives_the_same_bits(tiny: Tiny, use: str, kind: str, text: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    tiny(kind, FAMILIES[kind]).save(before)
    found = registry.load("passes", use, Pass)
    small = {n: v for n, v in {"group_size": 16}.items() if n in found.Settings.model_fields}
    plugin = found(found.Settings(**small))
    asked = DataSettings(source=str(text), windows=4, length=16)
    source = Source(asked, "calibration", "causal-lm", 0, tmp_path / "data")
    for name, stored in (("memory", False), ("disk", True)):
        (tmp_path / name).mkdir()
        context = Context(folder=tmp_path / f"work-{name}", data=dict.fromkeys(plugin.data_uses(), source))
        context.folder.mkdir()
        plugin.run(Artifact.load(before, stored=stored), context).save(tmp_path / name)
        plugin.ensures(*(Artifact.load(f, stored=stored) for f in (before, tmp_path / name)))
    same(Artifact.load(tmp_path / "memory"), Artifact.load(tmp_path / "disk"))
    same(Artifact.load(tmp_path / "memory", stored=True), Artifact.load(tmp_path / "disk", stored=True))


def test_a_run_on_disk_ends_as_one_in_memory(model: Path, text: Path, tmp_path: Path) -> None:
    disk, memory = (pipeline.run(write(tmp_path / w, text, model, w), quiet=True) for w in ("disk", "memory"))
    for ours, theirs in zip(disk.steps, memory.steps, strict=True):
        same(Artifact.load(ours.folder), Artifact.load(theirs.folder))
    assert disk.report["quality"] == memory.report["quality"]
    assert disk.report["layers"] == memory.report["layers"]
    exported = tmp_path / "disk/exports/safetensors"
    shards = sorted(exported.glob("model-*.safetensors"))
    assert len(shards) == 3
    assert [p.stat().st_nlink for p in shards] == [1, 2, 2]  # the blocks' files are those of the step
    same(Artifact.load(exported), memory.artifact)
    assert all(s.cached for s in pipeline.run(tmp_path / "disk.toml", quiet=True).steps)
    assert not (tmp_path / "disk/partial").exists()


def test_what_needs_the_whole_model_is_refused_before_any_work(model: Path, text: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a", text, model, use="magnitude")
    settings.check(path)
    path.write_text(path.read_text().replace('"safetensors"', '"onnx"') + '\n[[pass]]\nuse = "perp"\n')
    with pytest.raises(BadPipeline) as caught:
        settings.check(path)
    *_, export, second = caught.value.faults  # beside what the defaults ask of so small a model
    assert export.startswith(f"{path}:20: export[1].use (onnx): needs the whole model in memory, got weights = 'disk'")
    assert second.startswith(f"{path}:23: pass[2].use (perp): needs the whole model in memory, got weights = 'disk'")
    assert "magnitude" in second
    path.write_text(path.read_text().partition("[[export]]")[0])
    with pytest.raises(BadPipeline, match=r"export\[1\]\.use \(onnx\): needs the whole model"):
        settings.check(path)
    path.write_text(path.read_text().replace('"disk"', '"tape"'))
    with pytest.raises(BadPipeline, match=r"compute\.weights: must be 'memory' or 'disk', got 'tape'"):
        settings.check(path)


def test_plan_counts_the_blocks_that_are_in_memory(text: Path, tmp_path: Path) -> None:
    disk, memory = (pipeline.plan(write(tmp_path / w, text, Path("demo"), w)) for w in ("disk", "memory"))
    for ours, theirs in zip(disk, memory, strict=True):
        assert ours.estimate.disk_mib == theirs.estimate.disk_mib
        blocks = 4 * 6 * 786_944 / 2**20  # six blocks of the demo model
        assert theirs.estimate.peak_mib - ours.estimate.peak_mib == pytest.approx(blocks * 5 / 6, rel=0.01)


KILLED = """
import os, sys
from compress import pipeline
from compress.store import Store

keep, kept = Store._keep, []

def keep_or_die(store, name, block):
    if len(kept) == 1:
        os._exit(9)  # the weights of the second block have changed and are nowhere yet
    kept.append(name)
    keep(store, name, block)

Store._keep = keep_or_die
pipeline.run(sys.argv[1], quiet=True)
"""


@pytest.mark.parametrize("use", ["sparsegpt", pytest.param("magnitude", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_inside_a_block_resumes_to_the_same_bytes(
    use: str, model: Path, text: Path, tmp_path: Path
) -> None:
    whole, killed = (write(tmp_path / name, text, model, use=use) for name in ("whole", "killed"))
    pipeline.run(whole, quiet=True)
    process = subprocess.run([sys.executable, "-c", KILLED, killed], cwd=ROOT, check=False)
    assert process.returncode == 9
    partial = next((tmp_path / "killed/partial").iterdir())
    assert [p.name for p in (partial / "blocks").glob("*.safetensors")] == ["model.layers.0.safetensors"]
    pipeline.run(killed, quiet=True)
    digests = [files.digests(tmp_path / n / "steps") for n in ("whole", "killed")]
    ours, theirs = ({n: d for n, d in found.items() if not n.endswith(MEASURED)} for found in digests)
    assert ours == theirs


PEAK = """
import json, resource, sys
from compress import pipeline

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

pipeline.run(sys.argv[1], quiet=True)  # a small one, so that everything is imported
before = peak()
pipeline.run(sys.argv[2], quiet=True)
print(json.dumps({"growth_mib": peak() - before}))
"""


def growth(text: Path, small: Path, large: Path, tmp_path: Path) -> float:
    """Return by how many MiB a run of a large model needs more memory than one of a small model."""
    paths = [write(tmp_path / n, text, m, use="magnitude") for n, m in (("small", small), ("large", large))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return float(found["growth_mib"])


@pytest.mark.parametrize(
    ("hidden", "ffn", "layers"), [(512, 1408, 8), pytest.param(1024, 2816, 12, marks=pytest.mark.slow)]
)
def test_the_peak_of_memory_is_that_of_a_block(
    hidden: int, ffn: int, layers: int, model: Path, text: Path, tmp_path: Path
) -> None:
    weights = 4 * make(tmp_path / "weights", config_of(layers, hidden, ffn)) / 2**20
    block = 4 * (4 * hidden**2 + 3 * hidden * ffn) / 2**20
    outside = 4 * 4096 * hidden / 2**20
    assert weights > 8 * block
    needed = growth(text, model, tmp_path / "weights", tmp_path)
    assert needed < block + outside + 30 * hidden * ffn / 2**20 + 40  # the last: activations, logits, what malloc keeps
    assert needed < weights / 2
