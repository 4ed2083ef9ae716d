"""The whole line on a tiny random model: run, cache, resume, what is noticed and what is not."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress import files, pipeline
from compress.artifact import Artifact
from compress.errors import Tampered
from compress.pipeline.runner import MEASURED
from tests.compress.conftest import head, lay

REST = """[[target]]
name = "laptop"
prompt = 16
generate = 4
[[pass]]
use = "magnitude"
pattern = "2:4"
[[pass]]
use = "perp"
train = ["norms", "mask_lora"]
rank = 2
steps = {steps}
batch = 2
[[export]]
use = "onnx"
"""


@pytest.fixture(scope="module")
def ground(tiny: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and a text."""
    return lay(tmp_path_factory.mktemp("ground"), tiny("llama-tied"))


def write(ground: Path, folder: Path, steps: int = 4, **changes: Any) -> Path:
    text = head(folder, ground / "model", ground / "text.txt", training=16, calibration=4, evaluation=4)
    text += REST.format(steps=steps)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder.with_suffix(".toml")
    path.write_text(text)
    return path


def bytes_of(folder: Path) -> dict[str, str]:
    """Digest every file that must be byte-equal on a rerun: all but measured figures, logs and reports."""
    kept = ("steps/", "engines/", "exports/")
    found = files.digests(folder)
    return {n: d for n, d in found.items() if n.startswith(kept) and not n.endswith(MEASURED)}


@pytest.fixture(scope="module")
def finished(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Run:
    folder = tmp_path_factory.mktemp("runs") / "one"
    return pipeline.run(write(ground, folder), quiet=True)


def test_a_run_ends_with_a_verified_engine_and_a_report(finished: pipeline.Run) -> None:
    assert [s.name for s in finished.steps] == ["dense", "magnitude", "perp"]
    assert set(finished.engines) == {"laptop", "laptop-dense"}
    assert (finished.folder / "report.html").stat().st_size > 1000
    report = json.loads((finished.folder / "report.json").read_text())
    assert report["quality"]["engine"]
    assert report["engines"][0]["latency"]
    assert report["engines"][0]["parity"]["logits"]["difference"] <= 1e-4
    measured = json.loads((finished.engines["laptop"] / MEASURED).read_text())
    perplexity = {m["name"]: m["value"] for m in measured["quality"]["engine"]}["perplexity"]
    torch_perplexity = {m["name"]: m["value"] for m in report["quality"]["compressed"]}["perplexity"]
    assert perplexity == pytest.approx(torch_perplexity, rel=1e-3)
    assert measured["quality"]["dense"]
    artifact = finished.artifact
    assert len(artifact.masks) == 14
    for mask in artifact.masks.values():
        assert mask.view(mask.shape[0], -1, 4).sum(-1).eq(2).all()
    assert [s.use for s in artifact.lineage] == ["model", "magnitude", "perp"]
    engine = finished.engine()
    assert "CPUExecutionProvider" in engine.providers()
    engine.close()


def test_a_second_run_is_all_cached_and_changes_nothing(finished: pipeline.Run, ground: Path) -> None:
    before = bytes_of(finished.folder)
    again = pipeline.run(finished.folder.with_suffix(".toml"), quiet=True)
    assert all(s.cached for s in again.steps)
    assert bytes_of(finished.folder) == before
    assert not (finished.folder / "partial").exists()


def test_another_folder_gives_the_same_bytes(finished: pipeline.Run, ground: Path, tmp_path: Path) -> None:
    other = pipeline.run(write(ground, tmp_path / "two"), quiet=True)
    assert bytes_of(other.folder) == bytes_of(finished.folder)


def test_plan_tells_what_is_cached_and_what_is_not(finished: pipeline.Run, ground: Path, tmp_path: Path) -> None:
    path = finished.folder.with_suffix(".toml")
    assert [s.cached for s in pipeline.plan(path)] == [True, True, True]
    changed = tmp_path / "changed.toml"
    changed.write_text(path.read_text().replace("steps = 4", "steps = 5"))
    steps = pipeline.plan(changed)
    assert [s.cached for s in steps] == [True, True, False]
    assert steps[-1].estimate.trainable > 0


def test_plan_counts_the_tokens_that_are_read(ground: Path, tmp_path: Path) -> None:
    """Not those that the model could take."""
    path = write(ground, tmp_path / "run")
    before = pipeline.plan(path)[-1].estimate.seconds
    path.write_text(path.read_text().replace("length = 32", "length = 8"))
    assert pipeline.plan(path)[-1].estimate.seconds == pytest.approx(before / 4)


def test_changed_data_is_noticed_by_its_reader(finished: pipeline.Run, ground: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text((ground / "text.txt").read_text())
    path = tmp_path / "moved.toml"
    path.write_text(finished.folder.with_suffix(".toml").read_text().replace(str(ground / "text.txt"), str(text)))
    text.write_text(text.read_text().replace("fox", "cat"))
    assert [s.cached for s in pipeline.plan(path)] == [True, True, False]


def test_an_artifact_edited_by_hand_is_refused_and_named(ground: Path, tmp_path: Path) -> None:
    path = write(ground, tmp_path / "edited", steps=1)
    done = pipeline.run(path, quiet=True)
    weights = done.steps[1].folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(Tampered, match=r"magnitude.*model\.safetensors"):
        pipeline.run(path, quiet=True)


@pytest.mark.slow
def test_twenty_kills_at_random_instants_give_the_same_bytes(ground: Path, tmp_path: Path) -> None:
    """Kill a run at instants spread over its whole length, inside perp and inside export too, and resume each."""
    often = {"rank = 2": "rank = 2\ncheckpoint_every = 20"}
    reference = write(ground, tmp_path / "reference", steps=1500, **often)
    command = [sys.executable, "-m", "compress.cli", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    subprocess.run([*command, str(reference)], check=True, env=environment, capture_output=True)
    length = time.monotonic() - started
    expected = bytes_of(tmp_path / "reference")
    draw, folder = random.Random(0), tmp_path / "killed"
    path = write(ground, folder, steps=1500, **often)
    kills, inside = 0, set()
    while kills < 20:
        process = subprocess.Popen([*command, str(path)], env=environment, stdout=subprocess.DEVNULL)
        try:
            process.wait(draw.uniform(3.0, length / 2))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            inside |= {p.name[:7] for p in folder.glob("partial/*")} | {
                p.name for p in folder.glob("engines/*.partial")
            }
            continue
        assert process.returncode == 0
        assert bytes_of(folder) == expected
        shutil.rmtree(folder)
    subprocess.run([*command, str(path)], check=True, env=environment, capture_output=True)
    assert bytes_of(folder) == expected
    assert "03-perp" in inside
    assert inside & {"laptop.partial", "laptop-dense.partial"}
