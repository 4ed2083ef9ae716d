"""A third party's pass runs from its entry point; one that breaks its promise fails the run and leaves no step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from compress.artifact import Artifact
from compress.cli import cli
from tests.compress.conftest import head, install, lay, steps_in

CODE = '''
"""Scale every norm, for the tests."""

import torch
from compress import tree
from compress.contracts import Pass
from compress.errors import BrokenPromise


class Scale(Pass):
    def run(self, artifact, context):
        with torch.no_grad():
            for parameter in tree.norms(artifact.model).values():
                parameter.mul_({factor})
        context.report.note("scaled")
        return artifact

    def ensures(self, before, after):
        old, new = (next(iter(tree.norms(a.model).values())) for a in (before, after))
        if not torch.equal(old * 2, new):
            raise BrokenPromise("scale: the norms are not twice what they were")
'''

REST = """[[pass]]
use = "scale"
[[export]]
use = "safetensors"
"""


@pytest.fixture
def run(tiny: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    lay(tmp_path, tiny("llama"))

    def go(module: str, factor: int) -> Result:
        install(tmp_path / "site", module, CODE.replace("{factor}", str(factor)), scale="Scale")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        text = head(tmp_path / "run", tmp_path / "model", tmp_path / "text.txt", evaluation=4) + REST
        (tmp_path / "pipeline.toml").write_text(text)
        return CliRunner().invoke(cli, ["run", str(tmp_path / "pipeline.toml")])

    return go


def test_an_honest_pass_runs(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("honest_scale", 2)
    assert result.exit_code == 0, result.stderr
    (folder,) = (tmp_path / "run" / "steps").glob("02-scale-*")
    assert Artifact.load(folder).lineage[-1].notes == ("scaled",)


def test_a_broken_promise_is_ours_and_leaves_nothing_that_looks_finished(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    result = run("broken_scale", 3)
    assert result.exit_code == 1
    assert result.stderr.strip() == "scale: the norms are not twice what they were"
    assert steps_in(tmp_path / "run") == ["01-dense"]
    assert not (tmp_path / "run" / "report.json").exists()
