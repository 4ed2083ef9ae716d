"""The latency-only dry run: what is built is what is planned, and it is told what was timed, or why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from compress import measure, pipeline, settings
from compress.cli import cli
from compress.errors import Unavailable
from compress.facts import GridFact, MaskFact
from compress.pipeline import dry

FILE = """
[model]
source = "{model}"
[data.calibration]
length = 64
[data.evaluation]
length = 64
[[target]]
name = "laptop"
prompt = 16
generate = 4
[[pass]]
use = "structured"
layers = 1
[[pass]]
use = "magnitude"
pattern = "2:4"
[[export]]
use = "onnx"
"""


@pytest.fixture
def file(tmp_path: Path, tiny: Any) -> Path:
    model = tmp_path / "model"
    tiny("llama").model.save_pretrained(model)
    tiny("llama").tokenizer.save_pretrained(model)
    path = tmp_path / "p.toml"
    path.write_text(FILE.format(model=model))
    return path


def test_the_build_is_what_the_facts_say(file: Path) -> None:
    facts = settings.check(settings.read(file))[-1]
    build = dry.build_of(facts)
    assert build.layout == facts.layout
    assert {p.pattern for p in build.plan.values()} == {"2:4"}
    coarse, fine = GridFact(bits=2, group_size=32), GridFact(bits=4, group_size=32)
    first, second, third = list(facts.shapes)[:3]
    left = facts.after(
        masks={first: MaskFact("unstructured", 0.9), second: MaskFact("1:2", 0.5)},
        grids={third: GridFact(bits=4, group_size=32, others=(coarse,))}, branches={first: 4},
    )  # fmt: skip
    plan = dry.build_of(left)
    assert set(plan.plan) == {second, third}
    assert plan.plan[third].grid == fine
    assert plan.branches == {first: 4}


def test_a_plan_is_timed_before_anything_is_trained(file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    clock, found = measure.measure, list[measure.Measurement]()

    def quick(*args: Any) -> measure.Measurement:
        found.append(clock(*args, processes=1, seconds=0.03))
        return found[0]

    monkeypatch.setattr("compress.measure.measure", quick)
    done = CliRunner().invoke(cli, ["plan", str(file), "--folder", str(tmp_path / "run"), "--latency"])
    assert done.exit_code == 0, done.output
    told = done.output.partition("estimated:")[2].splitlines()[1:]
    assert told[0].startswith("laptop: engines of random weights")
    ratios = [float(line.partition(" ms, ")[2].partition(" ms, ")[2].partition("x")[0]) for line in told[1:4]]
    assert all(r > 1.2 for r in ratios)  # one block of two
    assert not (tmp_path / "run").exists()
    bound, plain = (dry.Dry(name="x", measurement=found[0], bound=b).lines() for b in (True, False))
    assert [line for line in bound if line not in plain] == [line for line in bound if "upper bound" in line] != []


def test_what_is_not_timed_says_why(file: Path, monkeypatch: Any) -> None:
    calls = []

    def clock(folders: Any, *_: Any, **__: Any) -> None:
        calls.append([f.name for f in folders])
        if len(calls) < 3:
            raise Unavailable("no clock today")

    monkeypatch.setattr("profiles.measure.Measure.engine", lambda *args, **_: args[-1])
    monkeypatch.setattr("compress.measure.measure", clock)
    opened = settings.read(file)
    facts = settings.check(opened)
    found = dry.tried(opened, facts)
    assert [d.lines() for d in found] == [["laptop: not timed: no clock today"]]
    assert dry.tried(opened, facts[:1])[0].missing == "no clock today"
    assert dry.tried(opened, [facts[0], facts[-1].after(open=True)])[0].bound
    assert not dry.tried(opened, facts)[0].bound
    assert calls == [["dense", "planned"], ["dense"], ["dense", "planned"], ["dense", "planned"]]
    assert [d.name for d in pipeline.dry_run(file)] == ["laptop"]
