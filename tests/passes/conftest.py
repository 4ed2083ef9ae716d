"""What tests of passes that train share: texts, and a bench with a model, its dense parent and data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress import tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Pass
from compress.data import DataSettings, Role, Source
from compress.facts import Facts
from passes import _masks, _pruned

WORDS = "the quick brown fox jumps over the lazy dog a model is pruned and retrained, and no zero is lost."
ROLES: tuple[Role, ...] = ("training", "calibration")


class Bench:
    """A model, dense or pruned, its dense parent, data, and what a pass makes of it.

    Args:
        plugin: makes the pass out of settings.
        dense: makes the parent.
        texts: the folder of data.
        folder: of the run.
        pattern: of the zeros: "2:4", a share of each linear, or none.
        windows: of the data.
    """

    def __init__(
        self, plugin: Callable[..., Pass], dense: Callable[[], Artifact], texts: Path, folder: Path,
        pattern: str | None = None, windows: int = 16,
    ) -> None:  # fmt: skip
        self.plugin, self.dense, self.report, artifact = plugin, dense, QuietReport(), dense()
        name = {"classification": "classes.csv", "regression": "numbers.csv"}.get(artifact.task, "text.txt")
        table = DataSettings(source=str(texts / name), windows=windows, length=12)
        folder.mkdir(exist_ok=True)
        data: dict[str, Source] = {role: Source(table, role, artifact.task) for role in ROLES}
        self.context = Context(folder=folder, report=self.report, data=data, parent=dense)
        self.before = pruned(artifact, pattern) if pattern else artifact

    def facts(self) -> Facts:
        return _pruned.facts_of(self.before)

    def copy(self) -> Artifact:
        """Return the model to work on, which the bench keeps as it is."""
        return self.before.after(model=copy.deepcopy(self.before.model))

    def at(self, name: str, report: QuietReport | None = None) -> Context:
        """Return the surroundings with a folder of their own."""
        folder = self.context.folder / name
        folder.mkdir(exist_ok=True)
        return replace(self.context, folder=folder, report=report or self.context.report)

    def run(self, report: QuietReport | None = None, name: str = "", **given: Any) -> Artifact:
        """Run the pass, and hold it to its plan and its promises."""
        plugin = self.plugin(**given)
        planned = plugin.plan(self.facts())
        after = plugin.run(self.copy(), self.at(name, report))
        plugin.ensures(self.before, after)
        found = _pruned.facts_of(after)
        assert found.masks.keys() == planned.masks.keys()
        assert found.after(masks=planned.masks, dropped=planned.dropped, trained=True) == planned
        return after


def pruned(artifact: Artifact, pattern: str) -> Artifact:
    """Return the artifact without the smallest weights of its linears: 2:4, or a share of each."""
    masks = {}
    for name, layer in tree.block_linears(artifact.model).items():
        score = layer.weight.detach().abs()
        two = pattern == "2:4"
        masks[name] = _masks.keep_n_of_m(score, 2, 4) if two else _masks.keep_top(score, float(pattern))
        _masks.apply_(layer.weight, masks[name])
    return artifact.after(masks=masks)


def changed(before: Artifact, after: Artifact) -> set[str]:
    """Return the names of the tensors that are other bits; none may be gone."""
    old, new = before.model.state_dict(), after.model.state_dict()
    assert old.keys() <= new.keys()
    return {n for n in old if not _masks.same_bits(old[n], new[n])}


def state_bytes(artifact: Artifact) -> Mapping[str, bytes]:
    """Return the bytes of all tensors and masks."""
    return {n: t.numpy().tobytes() for n, t in (artifact.model.state_dict() | dict(artifact.masks)).items()}


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, sentences with classes, and sentences with numbers."""
    folder, words = tmp_path_factory.mktemp("texts"), WORDS.split()
    (folder / "text.txt").write_text(" ".join(words[(i * i + 3 * i // 5) % len(words)] for i in range(1500)))
    rows = [(" ".join(words[i % 7 : i % 7 + 3 + i % 4]), i % 2, i / 10) for i in range(24)]
    (folder / "classes.csv").write_text("text,label\n" + "".join(f'"{t}",{c}\n' for t, c, _ in rows))
    (folder / "numbers.csv").write_text("text,label\n" + "".join(f'"{t}",{v}\n' for t, _, v in rows))
    return folder


@pytest.fixture
def bench_of(tiny: Callable[..., Artifact], texts: Path, tmp_path: Path) -> Callable[..., Callable[..., Bench]]:
    """Return what makes makers of benches: `bench_of(perp, pattern="2:4")("opt", folder="other", windows=8)`."""

    def of(plugin: Callable[..., Pass], **usual: Any) -> Callable[..., Bench]:
        def make(kind: str = "llama", task: Any = None, folder: str = "run", **given: Any) -> Bench:
            return Bench(plugin, lambda: tiny(kind, task), texts, tmp_path / folder, **{**usual, **given})

        return make

    return of
