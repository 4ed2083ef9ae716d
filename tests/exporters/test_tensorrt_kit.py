"""The kit of an engine for a device that is not here: what it finds on the target, and what is taken back of it."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from compress import files, folders, pipeline, settings
from compress.cli import cli
from compress.engines import importing
from compress.errors import BadModel, BadPipeline
from tests.compress.conftest import head, lay
from tests.exporters.test_tensorrt import Graph, no_gpu

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)

UNKNOWN = "unknown how many of 28 eligible layers use sparse kernels"
REST = """[[target]]
name = "gpu"
runtime = "tensorrt-rtx"
device = "cuda"
prompt = 16
generate = 4
[[export]]
use = "tensorrt"
"""


def phase(ms: float, ratio: float) -> dict[str, Any]:
    time = {"ms": ms, "ratio": ratio, "ratio_low": 0.9 * ratio, "ratio_high": 1.1 * ratio}
    return {**time, "cpu_ms": ms, "wall_ms": ms, "wall_p10_ms": ms, "spread": 0.01, "runs": 500, "flags": []}


def results(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return what the kit of an engine would write on its target."""
    timed = {
        "folder": "/there/engine", "prefill": phase(2.0, 1.0), "decode": phase(0.5, 1.0), "request": phase(4.0, 1.0),
        "tokens_per_second": 1000.0, "load_seconds": 0.1, "memory_mib": None, "file_mib": 5.0,
    }  # fmt: skip
    latency = {
        "format": 1, "request": {"batch": 1, "prompt": 16, "generate": 4, "threads": 1, "device": "cuda"},
        "clock": "wall time", "cache": "interleaved blocks", "processes": 3, "load_average": 0.1,
        "machine": {"cpu": "other", "cores": 8}, "versions": {"tensorrt-rtx": "1.7"}, "engines": [timed], "flags": [],
    }  # fmt: skip
    parity = {"shapes": 3, "logits": {"difference": 1e-5, "magnitude": 3.0}, "agreement": 1.0}
    found = {
        "format": 1, "engine": files.sha256(folder / "engine.json"), "state": "done", "machine": {"gpu": "A GPU"},
        "kernels": {}, "used": [UNKNOWN], "parity": parity, "latency": latency,
    }  # fmt: skip
    return {**found, **changes}


@no_gpu
def test_it_runs_up_to_where_cuda_is_missing_and_says_so(folder: Path, tmp_path: Path) -> None:
    """In a folder and a process that know nothing of compress."""
    copy = shutil.copytree(folder, tmp_path / "board")
    done = subprocess.run([sys.executable, "-I", str(copy / "kit.py")], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("not run: no CUDA device, or no driver")
    assert done.stderr == ""
    found = json.loads((copy / "kit-results.json").read_text())
    assert found["state"] == "not run"
    assert found["engine"] == files.sha256(folder / "engine.json")
    with pytest.raises(BadModel, match="not run there: no CUDA device"):
        importing.take(copy, copy / "kit-results.json")


def test_expected_outputs_are_the_graphs(folder: Path) -> None:
    """The graph stands in for the plan; what differs is found."""
    kit, graph = runpy.run_path(str(folder / "kit.py")), Graph(folder, files.read_json(folder / "engine.json"))
    tolerance = files.read_json(folder / "build.json")["tolerance"]
    found = kit["prove"](graph, tolerance)
    assert found["shapes"] == 3
    assert found["logits"]["difference"] <= 1e-4
    assert found["past"]["magnitude"] > 0
    assert found["agreement"] == 1.0

    def broken(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
        return lambda given: {n: change(a) if n == name else a for n, a in graph(given).items()}

    for name in ("logits", "present.1.value"):
        with pytest.raises(kit["Refused"], match=f"{name} of case 0 differs"):
            kit["prove"](broken(name, lambda a: a + 0.01 * max(1, np.abs(a).max())), tolerance)
        with pytest.raises(kit["Refused"], match="differs"):
            kit["prove"](broken(name, lambda a: a * np.float32(np.nan)), tolerance)


def test_what_kernels_use_is_found_by_the_kits_own_script(folder: Path) -> None:
    told = runpy.run_path(str(folder / "kernels.py"))["used"]
    linears = {f"h.{n}": [f"node_{n}"] for n in range(28)}
    assert told([], {"sparse": linears, "low-bit": {}}) == [UNKNOWN]


def test_results_of_another_engine_or_none_are_refused(folder: Path, tmp_path: Path) -> None:
    copy, path = Path(shutil.copytree(folder, tmp_path / "copy")), tmp_path / "results.json"
    with pytest.raises(BadModel, match="cannot be read"):
        importing.take(copy, path)
    for content, said in (
        ("{", "not readable as JSON"),
        ("[]", "no results of a kit"),
        (json.dumps(results(copy, format=2)), "no results of a kit of this version"),
        (json.dumps(results(copy, engine="0")), "another engine"),
        (json.dumps(results(copy, latency={})), "no figures of the clock"),
        (json.dumps(results(copy, state="failed", why="logits differ")), "the engine failed there: logits differ"),
    ):
        path.write_text(content)
        with pytest.raises(BadModel, match=said):
            importing.take(copy, path)
    assert files.read_json(copy / "measured.json") == files.read_json(folder / "measured.json")
    with pytest.raises(BadModel, match="no engine folder"):
        importing.take(tmp_path, path)


@pytest.fixture(scope="module")
def ground(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline file for a GPU that is not here, with its model and text."""
    root = lay(tmp_path_factory.mktemp("ahead"), tiny("llama-tied"))
    (root / "run.toml").write_text(head(root / "run", root / "model", root / "text.txt", evaluation=4) + REST)
    return root


@no_gpu
def test_a_run_without_the_gpu_ends_well_and_is_completed_later(ground: Path) -> None:
    run = pipeline.run(ground / "run.toml", quiet=True)
    engine = run.folder / "engines" / "gpu"
    (told,) = run.report["engines"]
    assert told["latency"] is None
    assert "no CUDA device" in told["not_run"]
    assert run.report["not_run"][0].startswith("gpu: no CUDA device")
    assert "engine" not in run.report["quality"]
    page = (run.folder / "report.html").read_text()
    assert page.count("Not run") >= 2
    assert "not run: no CUDA device" in "\n".join(folders.lines(folders.show(engine)))
    plan = files.sha256(engine / "model.plan")

    path = ground / "kit-results.json"
    path.write_text(json.dumps(results(engine)))
    asked = CliRunner().invoke(cli, ["evaluate", str(engine), "--import", str(path)])
    assert asked.exit_code == 0, asked.output
    assert "latency: prefill 2 ms" in asked.output
    report = files.read_json(run.folder / "report.json")
    assert report["engines"][0]["latency"]["engines"][0]["request"]["ms"] == 4.0
    assert "not_run" not in report["engines"][0]
    assert report["not_run"] == []
    assert f"parity and latency on A GPU, imported from its kit; {UNKNOWN}" in "".join(report["measured"])

    again = pipeline.run(ground / "run.toml", quiet=True)  # keeps the plan, and the figures
    assert files.sha256(engine / "model.plan") == plan
    assert again.report["engines"][0]["latency"]["engines"][0]["request"]["ms"] == 4.0


@no_gpu
@pytest.mark.parametrize("more", ["[[pass]]\nuse = 'magnitude'\non_no_gain = 'drop'\n", "gain"])
def test_what_has_to_be_timed_needs_the_gpu(more: str, ground: Path, tmp_path: Path) -> None:
    text = (ground / "run.toml").read_text()
    changed = text.replace("[run]\n", "[run]\ngain = true\n") if more == "gain" else text + more
    (tmp_path / "run.toml").write_text(changed)
    with pytest.raises(BadPipeline, match="could not be verified here, where no GPU is") as fault:
        settings.check(settings.read(tmp_path / "run.toml"))
    assert "target[1].device" in str(fault.value)
