"""A pass that leaves the dense model: what all is measured beside, who may be marked so, and what it changes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress import files, pipeline, settings
from compress.artifact import Artifact
from compress.errors import BadPipeline
from compress.evaluate import evaluate_path
from compress.pipeline.console import Console
from compress.pipeline.runner import Runner
from tests.compress.conftest import head, lay

REST = """[[target]]
name = "laptop"
prompt = 8
[[pass]]
use = "recover"
name = "tuned"
method = "full"
lr = 1e-2
steps = 4
batch = 4
held_out = 0
{marks}
[[pass]]
use = "magnitude"
sparsity = 0.5
[[export]]
use = "onnx"
"""


@pytest.fixture(scope="module")
def write(tiny: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a writer of files that tune a tiny classifier and prune it."""
    root = lay(tmp_path_factory.mktemp("ground"), tiny("bert"))
    rows = [{"text": word * (i + 1), "label": i % 2} for i in range(12) for word in ("fox ", "dog ")]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(folder: Path, marks: str = "dense = true", changes: tuple[str, str] = ("", "")) -> Path:
        begun = head(folder, root / "model", root / "rows.jsonl", task="classification", training=24, evaluation=24)
        text = begun + REST.format(marks=marks)
        path = folder.with_suffix(".toml")
        path.write_text(text.replace(*changes) if changes[0] else text)
        return path

    return make


@pytest.fixture(scope="module")
def finished(write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> pipeline.Run:
    return pipeline.run(write(tmp_path_factory.mktemp("runs") / "one"), quiet=True)


def test_all_is_measured_beside_what_the_marked_pass_left(finished: pipeline.Run) -> None:
    """Quality, the dense engine and the words of the report are those of the tuned model, not of a random head."""
    assert [s.name for s in finished.steps] == ["model", "tuned", "magnitude"]
    first, tuned, _ = finished.steps
    data = finished.report["quality"]["data"]
    source = settings.read(finished.folder.with_suffix(".toml")).data["evaluation"]
    beside = {m["name"]: m["value"] for m in finished.report["quality"]["dense"]}
    assert evaluate_path(tuned.folder, source)["accuracy"].value == beside["accuracy"]
    assert "dense: the model after tuned" in data
    name = "bert.encoder.layer.0.output.dense.weight"
    assert (Artifact.load(first.folder).tensor(name) != Artifact.load(tuned.folder).tensor(name)).any()
    made = {n: files.read_json(f / "step.json")["source"] for n, f in finished.engines.items()}
    assert made == {"laptop": "magnitude", "laptop-dense": "tuned"}


def test_passes_are_handed_the_marked_model_as_parent(finished: pipeline.Run, tmp_path: Path) -> None:
    opened = settings.read(finished.folder.with_suffix(".toml"))
    runner = Runner(opened, tmp_path, Console(tmp_path / "log", quiet=True))
    for steps in range(1, 4):
        runner.done = list(finished.steps[:steps])
        assert runner.dense is finished.steps[1 if steps > 1 else 0]
    parent = runner.context("x", {}).parent
    assert parent is not None
    assert parent().lineage[-1].use == "recover"


def test_steps_after_a_mark_have_keys_of_their_own(finished: pipeline.Run) -> None:
    """A pass may ask for the parent, so that what it made beside another one is not what it would make."""
    opened = settings.read(finished.folder.with_suffix(".toml"))
    plain = dataclasses.replace(opened, passes=tuple(dataclasses.replace(e, dense=False) for e in opened.passes))
    keys = [
        [Runner(p, Path("x"), _quiet()).keys.pass_(e, "before") for e in p.passes] for p in (opened, plain)
    ]  # fmt: skip
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]
    assert [s.name for s in pipeline.plan(opened)] == ["model", "tuned", "magnitude"]
    assert [s.cached for s in pipeline.plan(opened)] == [True, True, True]


def _quiet() -> Any:
    return Console(Path("/dev/null"), quiet=True)


CRITERION = 'criterion = "magnitude"'
MAGNITUDE = 'use = "magnitude"\n'


@pytest.mark.parametrize(
    ("marks", "changes", "said"),
    [
        (
            "",
            (MAGNITUDE, f"{MAGNITUDE}dense = true\n"),
            "what is pruned, quantized or cut is not dense, got true; mark",
        ),
        (
            "dense = true",
            (MAGNITUDE, f"{MAGNITUDE}dense = true\n"),
            "only one pass leaves the dense model, and 'tuned' does, got true; leave it out",
        ),
        (
            'dense = true\non_no_gain = "drop"',
            ("", ""),
            "what all is measured beside cannot depend on what it gains, got 'drop'; on_no_gain = 'keep' would do",
        ),
    ],
)
def test_a_mark_that_cannot_be_is_a_fault_of_its_line(
    write: Callable[..., Path], tmp_path: Path, marks: str, changes: tuple[str, str], said: str
) -> None:
    path = write(tmp_path / "bad", marks, changes)
    with pytest.raises(BadPipeline) as caught:
        settings.check(path)
    (fault,) = caught.value.faults
    line = max(n for n, text in enumerate(path.read_text().splitlines(), start=1) if text == "dense = true")
    assert fault.startswith(f"{path}:{line}: pass[")
    assert said in fault


def test_nothing_stands_beside_a_dense_model_alone(write: Callable[..., Path], tmp_path: Path) -> None:
    opened = settings.read(write(tmp_path / "alone"))
    alone = dataclasses.replace(opened, passes=opened.passes[:1])
    assert [name for _, _, name, _ in pipeline._exports(alone)] == ["laptop"]


@pytest.mark.slow
def test_gains_are_measured_on_engines_that_are_there_anyway(write: Callable[..., Path], tmp_path: Path) -> None:
    """The engine of the model as it came stands for that of the tuned one, being of one graph."""
    expect = "expect = { prefill_speedup = 0.01 }"
    cut = (
        'use = "magnitude"\nsparsity = 0.5',
        f'use = "structured"\nneurons = 0.5\nmultiple = 1\n{CRITERION}\n{expect}',
    )
    run = pipeline.run(write(tmp_path / "gain", f"dense = true\n{expect}", cut), quiet=True)
    assert [row["name"] for row in run.report["gains"]] == ["tuned", "structured"]
    assert not (run.folder / "gain").exists()
    made = {n: files.read_json(f / "step.json")["source"] for n, f in run.engines.items()}
    assert made == {"laptop": "structured", "laptop-dense": "tuned"}
