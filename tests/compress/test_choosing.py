"""Passes that choose when they run: facts left open and judged again, targets and files in the key, a library lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from compress import pipeline, settings
from compress.artifact import Artifact
from compress.cli import cli
from compress.errors import BadPipeline
from compress.facts import GridFact, Planned
from tests.compress.conftest import install, lay, steps_in

CODE = '''
"""Choose neurons and plans, for the tests."""

from pathlib import Path

import torch
from compress import blocks, tree
from compress.contracts import Pass, PassSettings
from compress.errors import BadSettings
from compress.facts import GridFact, Planned
from pydantic import Field

BOTH = Planned(grid=GridFact(bits=4, group_size=16), pattern="2:4")


class ChooserSettings(PassSettings):
    target: str = Field("", description="name of the target")
    file: str = Field("", description="how many neurons stay")
    neurons: int = Field(64, description="how many neurons stay without a file")


class Chooser(Pass):
    Settings = ChooserSettings
    library = True

    def targets(self, given):
        if self.settings.target and self.settings.target not in given:
            raise BadSettings(f"no [[target]] has this name, got {self.settings.target!r}", key="target")
        return {n: t for n, t in given.items() if n == self.settings.target}

    def files(self):
        path = Path(self.settings.file)
        if self.settings.file and not path.is_file():
            raise BadSettings(f"no such file, got {self.settings.file!r}", key="file")
        return {"file": path} if self.settings.file else {}

    def plan(self, facts):
        return facts.after(plan=dict.fromkeys(facts.shapes, BOTH), library=True, open=True)

    def run(self, artifact, context):
        given = self.settings
        neurons = int(Path(given.file).read_text()) if given.file else given.neurons
        context.report.note(f"for {', '.join(context.targets)} of {Path(context.model).name.partition('-')[0]}")
        blocks.slice_(artifact.model, 0, neurons=torch.arange(neurons))
        library = context.folder / "made"
        library.mkdir(exist_ok=True)
        (library / "index.json").write_text("{}")
        some = [n for n in tree.block_linears(artifact.model) if "0.mlp" in n]
        return artifact.after(plan=dict.fromkeys(some, BOTH), library=library)

    def ensures(self, before, after):
        pass


class Reader(Pass):
    library = True

    def run(self, artifact, context):
        context.report.note("has a library" if artifact.library else "has none")
        return artifact

    def ensures(self, before, after):
        pass
'''

FILE = """
[run]
folder = "{root}/run"
[model]
source = "{root}/model"
[data.calibration]
length = 32
[data.evaluation]
source = "{root}/text.txt"
windows = 4
length = 32
{rest}"""
TARGETS = """[[target]]
name = "laptop"
prompt = 16
generate = 4
[[target]]
name = "phone"
prompt = 8
generate = 4
"""
FOLDER = """[[export]]
use = "safetensors"
format = "float"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Install the passes for all tests of this file."""
    site = tmp_path_factory.mktemp("site")
    install(site, "choosing_plugin", CODE, chooser="Chooser", reader="Reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield


@pytest.fixture
def write(installed: None, tiny: Callable[..., Artifact], tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of pipelines: each pass a table's text."""
    lay(tmp_path, tiny("llama"))

    def make(*passes: str, rest: str = FOLDER) -> Path:
        path = tmp_path / "pipeline.toml"
        tables = "".join(f"[[pass]]\n{p}\n" for p in passes)
        path.write_text(FILE.format(root=tmp_path, rest=rest + tables))
        return path

    return make


def line_of(path: Path, text: str) -> int:
    """Return the number of the last line that begins so."""
    return max(i for i, line in enumerate(path.read_text().splitlines(), 1) if line.startswith(text))


def called(verb: str, path: Path) -> Result:
    return CliRunner().invoke(cli, [verb, str(path)])


PRUNED, CODED = 'use = "magnitude"\npattern = "plan"', 'use = "rtn"\nbits = "plan"'


def test_what_is_chosen_is_made_true_by_the_passes_that_follow(write: Any) -> None:
    path = write('use = "chooser"', PRUNED, CODED)
    bounds = settings.check(path)
    assert [f.open for f in bounds] == [False, True, True, True]
    assert len(bounds[2].masks) == len(bounds[3].grids) == 14
    done = pipeline.run(path, quiet=True).artifact
    chosen = {f"model.layers.0.mlp.{n}_proj" for n in ("gate", "up", "down")}
    assert done.masks.keys() == done.grids.keys() == done.plan.keys() == chosen
    assert {done.grids[n].fact for n in chosen} == {GridFact(bits=4, group_size=16)}
    assert done.plan[min(chosen)] == Planned(grid=GridFact(bits=4, group_size=16), pattern="2:4")


def test_what_does_not_fit_the_choice_is_told_at_its_line_and_the_choice_is_kept(write: Any, tmp_path: Path) -> None:
    path = write('use = "chooser"\nneurons = 22', 'use = "magnitude"\npattern = "2:4"')
    assert settings.check(path)[1].open, "before it has run, nothing speaks against it"
    expected = f"{path}:{line_of(path, 'pattern')}: pass[2].pattern (magnitude): 2:4 does not divide the 22 inputs of "
    for _ in range(2):  # found again when the choice comes from the cache
        result = called("run", path)
        assert result.exit_code == 2
        assert result.stderr.startswith(expected), result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert steps_in(tmp_path / "run") == ["01-dense", "02-chooser"]
    mended = write('use = "chooser"\nneurons = 22', 'use = "magnitude"\npattern = "2:4"\nexclude = ["0.mlp.down_proj"]')
    steps = pipeline.run(mended, quiet=True).steps
    assert [s.cached for s in steps] == [True, True, False]


def test_all_that_no_longer_fits_is_told_at_once(write: Any) -> None:
    path = write('use = "chooser"\nneurons = 6', PRUNED, 'use = "rtn"\ngroup_size = 16')
    with pytest.raises(BadPipeline) as caught:
        pipeline.run(path, quiet=True)
    down = "model.layers.0.mlp.down_proj"
    assert [f.removeprefix(f"{path}:") for f in caught.value.faults] == [
        f"{line_of(path, 'pattern')}: pass[2].pattern (magnitude): 2:4 does not divide the 6 inputs of {down}; "
        "exclude it or choose another pattern",
        f"{line_of(path, 'group_size')}: pass[3].group_size (rtn): {down} has 6 inputs, fewer than a group of 16; -1 "
        "(whole rows) or a size up to 6 would do",
    ]


def test_a_library_lasts_as_long_as_passes_know_of_it(write: Any) -> None:
    path = write('use = "chooser"', 'use = "reader"', 'use = "magnitude"', 'use = "reader"')
    assert [f.library for f in settings.check(path)] == [False, True, True, False, False]
    steps = pipeline.run(path, quiet=True).steps
    opened = [Artifact.load(s.folder) for s in steps]
    assert [a.library is not None for a in opened] == [False, True, True, False, False]
    assert [opened[i].lineage[-1].notes for i in (2, 4)] == [("has a library",), ("has none",)]


# -- what enters the key -----------------------------------------------------------------------------------------------


def cached(path: Path) -> list[bool]:
    """Run, and return which passes came from the cache."""
    return [s.cached for s in pipeline.run(path, quiet=True).steps[1:]]


def test_a_pass_runs_anew_when_its_own_target_changes(write: Any, tmp_path: Path) -> None:
    path = write('use = "chooser"\ntarget = "phone"\nneurons = 6', 'use = "rtn"\ngroup_size = 16', rest=TARGETS)
    with pytest.raises(BadPipeline, match="6 inputs"):  # so that no engine is built
        pipeline.run(path, quiet=True)
    (folder,) = (tmp_path / "run" / "steps").glob("02-*")
    assert Artifact.load(folder).lineage[-1].notes == ("for phone of 01",)
    whole, found = path.read_text(), []
    for old, new in (("", ""), ("prompt = 16", "prompt = 12"), ("prompt = 8", "prompt = 12")):
        path.write_text(whole.replace(old, new))
        found.append(pipeline.plan(path)[1].cached)
    assert found == [True, True, False], "the laptop is none of its business"


def test_a_pass_runs_anew_when_a_file_that_it_names_changes(write: Any, tmp_path: Path) -> None:
    file = tmp_path / "neurons.txt"
    file.write_text("40")
    path = write(f'use = "chooser"\nfile = "{file}"', 'use = "magnitude"')
    assert cached(path) == [False, False]
    file.touch()
    assert cached(path) == [True, True]
    file.write_text("44")
    assert [s.cached for s in pipeline.plan(path)] == [True, False, False]
    assert cached(path) == [False, False]
    file.write_text("40")
    assert cached(path) == [True, True]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('target = "tablet"', "pass[1].target (chooser): no [[target]] has this name, got 'tablet'"),
        ('file = "nowhere.txt"', "pass[1].file (chooser): no such file, got 'nowhere.txt'"),
    ],
)
def test_a_target_or_file_that_is_not_there_is_refused_before_any_work(
    write: Any, line: str, expected: str, tmp_path: Path
) -> None:
    path = write(f'use = "chooser"\n{line}', rest=TARGETS)
    for verb in ("check", "run"):
        result = called(verb, path)
        assert result.exit_code == 2
        assert result.stderr.strip() == f"{path}:{line_of(path, line)}: {expected}"
    assert not (tmp_path / "run").exists()
