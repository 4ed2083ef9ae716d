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
source = "demo"
[[target]]
name = "laptop"
prompt = 16
generate = 4
[[pass]]
use = "structured"
layers = 4
[[pass]]
use = "magnitude"
pattern = "2:4"
[[export]]
use = "onnx"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "p.toml"
    path.write_text(FILE)
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


@pytest.fixture
def quick(monkeypatch: Any) -> None:
    """The clock, for a moment only."""
    clock = measure.measure
    monkeypatch.setattr("compress.measure.measure", lambda *args: clock(*args, processes=1, seconds=0.03))


@pytest.mark.usefixtures("quick")
def test_a_plan_is_timed_before_anything_is_trained(file: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["plan", str(file), "--folder", str(tmp_path / "run"), "--latency"])
    assert done.exit_code == 0, done.output
    told = done.output.partition("estimated:")[2].splitlines()[1:]
    assert told[0].startswith("laptop: engines of random weights")
    ratios = [float(line.partition(" ms, ")[2].partition(" ms, ")[2].partition("x")[0]) for line in told[1:4]]
    assert all(r > 1.2 for r in ratios)  # two blocks of six
    assert not (tmp_path / "run").exists()
    opened = settings.read(file)
    facts = settings.check(opened)
    told = dry.tried(opened, [facts[0], facts[-1].after(open=True)])[0].lines()
    assert sum("upper bound" in line for line in told) == 1


def test_what_is_not_timed_says_why(file: Path, monkeypatch: Any) -> None:
    calls = []

    def clock(folders: Any, *_: Any, **__: Any) -> None:
        calls.append([f.name for f in folders])
        raise Unavailable("no clock today")

    monkeypatch.setattr("compress.measure.measure", clock)
    opened = settings.read(file)
    facts = settings.check(opened)
    found = dry.tried(opened, facts)
    assert [d.lines() for d in found] == [["laptop: not timed: no clock today"]]
    assert dry.tried(opened, facts[:1])[0].missing == "no clock today"
    assert calls == [["dense", "planned"], ["dense"]]
    monkeypatch.undo()
    monkeypatch.setattr("compress.measure.RUNTIMES", ("abacus",))
    assert "the clock times engines of abacus, got runtime 'onnxruntime'" in pipeline.dry_run(file)[0].lines()[0]
