"""The GPU benchmark's own parts, none of which needs one: what is planned, built ahead, gone on with and told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks._ledger import Results, Row
from benchmarks.gpu import engines, measure, plan, report, run
from benchmarks.gpu.plan import DEMO, REFERENCE, Way, tensorrt
from compress import files, registry, tree
from compress.artifact import Artifact
from compress.contracts import Exporter, Pass, Target
from compress.data import Examples
from compress.errors import BadModel, Unavailable

SETUP: Row = {"gpu": "A GPU", "capability": "9.0", "quick": True, "python": "3.11", "libraries": {"torch": "2"}}
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


class Here(Way):
    """A way to an engine that runs on any machine."""

    @property
    def target(self) -> Target:
        return Target(runtime=self.runtime, precision="fp32", prompt=8, generate=2)


@pytest.fixture
def small(tiny: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """Let the demo model be a tiny one."""
    made = tiny("llama")
    monkeypatch.setattr(engines, "artifact", cache(lambda model, change="": made))
    return made


def test_every_comparison_begins_with_its_reference_and_no_two_engines_share_a_folder() -> None:
    for quick in (True, False):
        turns = plan.turns(quick=quick)
        assert len({t.key for t in turns}) == len(turns)
        assert all(t.ways[0] == (REFERENCE if t.about == "runtimes" else tensorrt(t.about)) for t in turns)
        for model, ways in plan.ways(quick=quick).items():
            assert len({w.slug for w in ways}) == len(ways), model
            assert all(w in ways for t in turns if t.model == model for w in t.ways)
    assert {t.key for t in plan.turns(quick=True)} < {t.key for t in plan.turns(quick=False)}


def test_every_change_is_a_pass_and_every_way_an_export_of_the_model(tiny: Callable[..., Artifact]) -> None:
    for steps in plan.CHANGES.values():
        for use, settings in steps:
            found = registry.load("passes", use, Pass).Settings
            assert found(**settings).model_fields_set == settings.keys()
    known = tree.facts(tiny("llama").model, "causal-lm")
    for way in plan.ways(quick=False)[DEMO]:
        kind = registry.load("exporters", way.exporter, Exporter)
        made = kind(kind.Settings.model_validate(dict(way.settings)))
        assert way.runtime in made.runtimes
        made.plan(replace(known, positions=512), way.target)


@no_gpu
def test_without_a_gpu_one_line_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "--quick"])
    with pytest.raises(
        SystemExit, match=r"^error: no GPU: torch .* finds no CUDA device; --engines builds here"
    ) as end:
        run.main()
    assert "\n" not in str(end.value)
    assert capsys.readouterr().out == ""


def test_engines_are_built_ahead_and_what_cannot_be_is_named(small: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    said: list[str] = []
    engines.ahead(tmp_path, {DEMO: (Way("torch"), tensorrt("tensorrt-rtx"))}, said.append)
    assert said[0] == f"{DEMO}, torch fp16: {tmp_path / DEMO / 'torch-fp16'}"
    assert said[1].startswith(f"{DEMO}, tensorrt-rtx fp16: left out: the model takes at most 128 tokens")
    before = files.sha256(tmp_path / DEMO / "torch-fp16" / "engine.json")
    engines.written(tmp_path, DEMO, Way("torch"))
    assert files.sha256(tmp_path / DEMO / "torch-fp16" / "engine.json") == before


def test_an_engine_is_proved_and_scored_by_what_every_run_uses(small: Artifact, tmp_path: Path) -> None:
    way = Here("onnxruntime", "fp32")
    windows = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(0))
    examples = Examples.of_windows(windows)
    row = measure.engine(tmp_path, DEMO, way, examples)
    assert row["rebuilt"] is None
    assert row["used"] == []
    assert row["parity"]["logits"]["difference"] < 1e-4
    assert row["perplexity"] == pytest.approx(measure.quality(small, examples)["perplexity"], rel=1e-4)


def test_what_is_not_here_leaves_no_line_and_what_fails_leaves_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "r.jsonl", SETUP)

    def missing() -> Row:
        raise Unavailable("not installed")

    run.finish(results, "a", missing)
    assert results.rows == {}

    def refused(*_: Any) -> Path:
        raise BadModel("is off\nby far")

    monkeypatch.setattr(engines, "written", refused)
    run.finish(results, "a", lambda: measure.engine(tmp_path, DEMO, Here("onnxruntime", "fp32"), None))
    assert results.rows["a"]["failed"] == "BadModel: is off by far"
    assert not run.passed(results.rows["a"])
    run.finish(results, "a", missing)  # is finished, and not run again
    assert Results(tmp_path / "r.jsonl", SETUP).rows.keys() == {"a"}


def proved(way: Way, **more: Any) -> Row:
    told = {"logits": {"difference": 0.03, "magnitude": 3.0}, "agreement": 0.5}
    row = {"rebuilt": None, "parity": told, "perplexity": [9.5, 9, 10], "used": []}
    return {"key": f"engine/{DEMO}/{way.name}", "way": way.name, **row, **more}


def test_the_page_says_what_was_found_and_what_was_not_run() -> None:
    empty = report.render(SETUP, {})
    assert "compute capability 9.0" in empty
    assert empty.count("Not run.") == len(plan.turns(quick=True)) + 1
    rtx, zeros = tensorrt("tensorrt-rtx"), tensorrt("tensorrt-rtx", change="2:4")
    turns = next(t for t in plan.turns(quick=True) if t.about == "tensorrt-rtx")
    said = "0 of 28 eligible layers use sparse kernels"
    rows = [
        proved(REFERENCE),
        proved(rtx, rebuilt="built for another GPU", parity={"logits": {"difference": 0.3, "magnitude": 3.0}}),
        proved(zeros, used=[said]),
        {"key": f"engine/{DEMO}/{tensorrt('tensorrt-rtx', 'bf16').name}", "failed": "BadModel: no"},
        {"key": "torch/dense", "perplexity": [9.4321, 9, 10]},
        {
            "key": turns.key, "clock": "wall time", "versions": {"decode": "as a CUDA graph"}, "flags": ["loaded"],
            "rows": {w.name: {"prefill": [2.0, r, r, r], "mib": [5.0]} for w, r in ((rtx, 1.0), (zeros, 0.5))},
        },
    ]  # fmt: skip
    page = report.render(SETUP, {row["key"]: row for row in rows})
    assert "| torch fp16 | - | 0.0300 | 0.010, met | 50.0% | 9.5000 (9.0000 to 10.000) | 9.4321 |" in page
    assert "built anew: built for another GPU | 0.300 | 0.10, beyond 0.02" in page
    assert "BadModel: no" in page
    assert f"| tensorrt-rtx fp16, 2:4 | 2.00 ms, 2.00x (2.00 to 2.00) | - | - | 5.00 | {said} |" in page
    assert "wall time; TensorRT decodes as a CUDA graph." in page
    assert "Caution: loaded." in page
    assert "| onnxruntime fp16 |  |  |  |  |  | not run |" in page
