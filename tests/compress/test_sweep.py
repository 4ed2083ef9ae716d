"""A sweep over a third party's pass: every budget and way has its engine, what they share is made once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from compress import measure, settings
from compress.artifact import Artifact
from compress.cli import cli
from compress.errors import BadPipeline
from compress.measure import Measurement
from compress.sweep.points import points
from tests.compress.conftest import head, install, lay, steps_in
from tests.compress.test_sweep_loop import measurement

CODE = '''
"""Choose by scaling norms, for the tests."""

import torch
from pydantic import Field
from compress import budgets, tree
from compress.contracts import Pass, PassSettings
from compress.errors import BadModel, BadSettings

WORTH = {"mip": 0.1, "greedy": 0.2, "uniform": 0.3, "random": 0.5}


class PickSettings(PassSettings):
    budget: budgets.BudgetTable = Field({"decode": "0.9x"}, description="what it may cost")
    target: str = Field("", description="what for")
    solver: str = Field("mip", description="how")
    profile: str = Field("", description="who knows times")


class Pick(Pass):
    Settings = PickSettings

    def targets(self, given):
        return {self.settings.target: given[self.settings.target]} if self.settings.target else {}

    def plan(self, facts):
        if budgets.parse(self.settings.budget)[0].cost == "kv_mib":
            raise BadSettings("keys are not mine", key="budget")
        return facts

    def run(self, artifact, context):
        (limit,) = budgets.parse(self.settings.budget)
        if limit.share < 0.3:
            raise BadModel(f"nothing is below 0.3x, got {limit}")
        kept = context.cache / "pick.txt"
        kept.parent.mkdir(parents=True, exist_ok=True)
        context.report.note("scores read" if kept.exists() else "scores made")
        kept.write_text("scores")
        with torch.no_grad():
            for parameter in tree.norms(artifact.model).values():
                parameter.mul_(1 - WORTH[self.settings.solver] * (1 - limit.share))
        dense = {"decode_ms": 4.0, "weights_mib": 10.0}
        predicted = {cost: (limit.share - 0.05) * value for cost, value in dense.items()}
        context.report.record("solution", {"predicted": predicted, "dense": dense})
        return artifact
'''

REST = """[[target]]
name = "here"
prompt = 16
generate = 4
[[pass]]
use = "magnitude"
[[pass]]
use = "pick"
[[pass]]
use = "magnitude"
name = "again"
sparsity = 0.6
[[export]]
use = "onnx"
{sweep}
"""
SWEEP = '[sweep]\nbudgets = [{ decode = "0.2x" }, { decode = "0.8x" }]\nbaselines = ["dense", "greedy"]\nheal = []'


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="compress")


@pytest.fixture(scope="module")
def write(tiny: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Return a writer of pipeline files with a sweep, while `pick` is installed and a simulated clock goes."""
    folder = lay(tmp_path_factory.mktemp("sweep"), tiny("llama"))
    install(folder / "site", "picking", CODE, pick="Pick")

    def file(sweep: str) -> Path:
        path = folder / "p.toml"
        begun = head(folder / "run", folder / "model", folder / "text.txt", calibration=4, evaluation=4)
        path.write_text(begun + REST.format(sweep=sweep))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "site"))
        patch.setattr(measure, "measure", clock)
        yield file


CLOCKED: list[tuple[Path, ...]] = []


def clock(folders: list[Path], target: Any, report: Any, *, processes: int = 3, seconds: float = 2.0) -> Measurement:
    """Take what the folder's name says; what greedy chose is late."""
    CLOCKED.append(tuple(folders))
    share = re.search(r"decode-([\d.]+)x(-greedy)?", str(folders[-1]))
    assert share is not None
    return measurement(4.0, 4.0 * float(share[1]) * (1.1 if share[2] else 1.0), processes=processes)


@pytest.fixture(scope="module")
def swept(write: Callable[[str], Path]) -> tuple[Path, Result, dict[str, Any]]:
    result = call("sweep", path := write(SWEEP))
    folder = settings.read(path).run.folder
    return folder, result, json.loads((folder / "sweep" / "sweep.json").read_text())


def test_every_point_has_an_engine_and_its_figures(swept: tuple[Path, Result, dict[str, Any]]) -> None:
    folder, result, content = swept
    names = ["here-decode-0.2x", "here-decode-0.8x", "here-decode-0.2x-greedy", "here-decode-0.8x-greedy"]
    assert [p["name"] for p in content["points"]] == names
    for point in (p for p in content["points"] if p["state"] == "done"):
        assert (folder / "sweep" / point["name"] / point["engine"] / "engine.json").is_file()
        assert (folder / "sweep" / point["name"] / "report.html").is_file()
        assert point["quality"]["name"] == point["delta"]["name"] == point["dense_quality"]["name"]
    _, first, _, late = content["points"]
    limit = first["limits"]["decode_ms"]
    assert limit["limit"] == 0.8
    assert limit["measured"] == pytest.approx(0.8)
    assert limit["low"] < limit["measured"] < limit["high"]
    assert limit["predicted"] == pytest.approx(0.75)
    assert first["met"] is limit["met"] is True
    assert late["met"] is False
    assert late["limits"]["decode_ms"]["measured"] == pytest.approx(0.88)
    assert "point 2 of 4: here, decode 0.8x" in result.output
    assert "here, decode 0.8x: decode 0.8x (0.796x to 0.804x), 0.75x predicted; perplexity" in result.output


def test_a_failed_point_leaves_the_others(swept: tuple[Path, Result, dict[str, Any]]) -> None:
    folder, result, content = swept
    fault = "nothing is below 0.3x, got decode 0.2x"
    assert result.exit_code == 2
    lost = ["2 of 4 points failed:", f"here, decode 0.2x: {fault}", f"here, decode 0.2x, greedy: {fault}"]
    assert result.stderr.splitlines()[-3:] == lost
    assert [p["state"] for p in content["points"]] == ["failed", "done", "failed", "done"]
    assert content["points"][0]["error"] == fault
    html = (folder / "sweep" / "sweep.html").read_text()
    assert f"here, decode 0.2x, greedy failed: {fault}" in html
    assert "1 of 2 engines keep their budgets." in html


def test_what_points_share_is_made_once(swept: tuple[Path, Result, dict[str, Any]]) -> None:
    folder, result, _ = swept
    kept = ["01-dense", "02-magnitude", "03-pick", "03-pick"]
    assert steps_in(folder) == kept, "what follows does not heal, and was left out"
    assert result.output.count("scores made") == result.output.count("scores read") == 1
    assert [p.name for p in (folder / "engines").iterdir()] == ["here-dense"]
    assert not (folder / "partial").exists()
    assert {pair[0] for pair in CLOCKED} == {folder / "engines" / "here-dense"}


def test_the_page_has_plot_and_table(swept: tuple[Path, Result, dict[str, Any]]) -> None:
    html = (swept[0] / "sweep" / "sweep.html").read_text()
    svg = html[html.index("<svg") : html.index("</svg>")]
    assert svg.count('class="mark"') == 2 + 1, "two points and the dense engine"
    assert svg.count('class="mark guess"') == 2
    assert svg.count('class="whisker"') == 2 * 2
    assert "here, decode 0.8x, greedy: decode 0.88x" in svg
    assert html.count('href="here-decode-0.8x/engines/here"') == 1
    assert html.count("0.88x (0.876x to 0.884x), 0.75x predicted: missed") == 2


def test_again_makes_nothing(swept: tuple[Path, Result, dict[str, Any]], write: Callable[[str], Path]) -> None:
    folder, _, before = swept
    clocked, kept = len(CLOCKED), steps_in(folder)
    assert call("sweep", write(SWEEP.replace(', "greedy"', "").replace('{ decode = "0.2x" }, ', ""))).exit_code == 0
    assert (len(CLOCKED), steps_in(folder)) == (clocked, kept)
    content = json.loads((folder / "sweep" / "sweep.json").read_text())
    assert content["points"] == [before["points"][1]]


def test_a_target_of_a_datasheet_is_estimated(
    swept: tuple[Path, Result, dict[str, Any]], write: Callable[[str], Path]
) -> None:
    """It has no engine, and its device need not be here."""
    folder, *_ = swept
    table = SWEEP.replace(', "greedy"', "").replace('{ decode = "0.2x" }, ', "") + "\nprofiles = { far = 'h100-sxm' }"
    path = write(table)
    far = '[[target]]\nname = "far"\ndevice = "cuda"\nprompt = 16\ngenerate = 4\n[[pass]]\nuse = "magnitude"\n[['
    path.write_text(path.read_text().replace('[[pass]]\nuse = "magnitude"\n[[', far, 1))
    result = call("sweep", path)
    assert result.exit_code == 0, result.output
    assert "here, decode 0.8x: decode 0.8x" in result.output
    assert "far, decode 0.8x: decode 0.75x predicted (estimated); perplexity" in result.output
    _, point = json.loads((folder / "sweep" / "sweep.json").read_text())["points"]
    assert (point["estimated"], point["engine"], point["met"], point["measured"]) == (True, None, None, {})
    html = (folder / "sweep" / "sweep.html").read_text()
    assert "<h2>far: estimated</h2>" in html
    assert "1 of 1 engines keep their budgets." in html
    assert html[html.rindex("<svg") :].count('class="mark guess"') == 1


def test_points_are_the_file_with_one_thing_changed(write: Callable[[str], Path]) -> None:
    opened = settings.read(write(SWEEP.replace("heal = []", 'heal = ["again"]')))
    first, *_, last = points(opened)
    assert [e.name for e in first.pipeline.passes] == ["magnitude", "pick", "again"]
    given = last.pipeline.passes[1].plugin.settings.model_dump()
    assert given | {"include": (), "exclude": ()} == given
    assert (given["budget"], given["target"], given["solver"]) == ({"decode": "0.8x"}, "here", "greedy")
    assert [t.name for t in last.pipeline.targets] == ["here"]
    assert (last.costs, last.estimated) == (("decode_ms",), False)


FAULTS = {
    "budgets = []": "sweep.budgets: ",
    "budgets = [{ decod = 1 }, { decode = 0 }]": "sweep.budgets: item 1: decod: no such cost; did you mean 'decode'?; "
    "item 2: decode: must be finite and more than 0, got 0",
    'budgets = [{ decode = "0.8x" }, { decode = "0.80x" }]': "sweep.budgets: item 2: is item 1 again, got decode-0.8x",
    "budgets = [{ decode = 1 }]\nheal = ['agin']": "sweep.heal: no such pass after 'pick', got 'agin'; did you mean "
    "'again'?",
    "budgets = [{ decode = 1 }]\nheal = ['magnitude']": "sweep.heal: no such pass after 'pick', got 'magnitude'; "
    "known: again",
    "budgets = [{ decode = 1 }]\ntargets = ['her']": "sweep.targets: no such target, got 'her'; did you mean 'here'?",
    "budgets = [{ decode = 1 }]\nbaselines = ['best']": "sweep.baselines: ",
    "budgets = [{ decode = 1 }]\nprofiles = { here = 'h100-sx' }": "sweep.profiles: here: neither a profile file nor a "
    "datasheet, got 'h100-sx'",
    "budgets = [{ decode = 1 }]\nprofiles = { her = 'h100-sxm' }": "sweep.profiles: no such target, got 'her'; did you "
    "mean 'here'?",
    "budgets = [{ decode = 1 }]\nhealing = []": "sweep.healing: unknown setting; did you mean 'heal'?",
}


@pytest.mark.parametrize("table", FAULTS)
def test_faults_of_the_table(write: Callable[[str], Path], table: str) -> None:
    with pytest.raises(BadPipeline) as raised:
        settings.read(write(f"[sweep]\n{table}"))
    assert [f.partition(": ")[2][: len(FAULTS[table])] for f in raised.value.faults] == [FAULTS[table]]


def test_all_faults_at_once(write: Callable[[str], Path]) -> None:
    with pytest.raises(BadPipeline) as raised:
        settings.read(write("[sweep]\nbudgets = [{ decode = 1 }]\nheal = ['no']\ntargets = ['no']"))
    assert len(raised.value.faults) == 2


def test_a_point_that_cannot_be_is_told_before_any_work(write: Callable[[str], Path]) -> None:
    path = write(SWEEP.replace('{ decode = "0.2x" }', '{ kv_mib = "0.6x" }'))
    result = call("sweep", path)
    assert result.exit_code == 2
    (line, other) = result.stderr.splitlines()
    assert re.fullmatch(r".*:\d+: pass\[2\].budget \(pick\): keys are not mine \(for here, kv_mib 0.6x\)", line)
    assert other.endswith("(for here, kv_mib 0.6x, greedy)")


def test_one_pass_must_choose(write: Callable[[str], Path], tmp_path: Path) -> None:
    text = write(SWEEP).read_text().replace('use = "pick"', 'use = "magnitude"\nname = "other"')
    (tmp_path / "none.toml").write_text(text.replace("heal = []", ""))
    with pytest.raises(BadPipeline, match=r"sweep: needs one \[\[pass\]\] that chooses within a `budget`, .* got none"):
        settings.read(tmp_path / "none.toml")
    result = call("sweep", write(""))
    assert result.exit_code == 2
    assert "has no [sweep] table; one with budgets" in result.stderr
