"""Whole engines of random weights, in the shapes and codes of a model that is yet to be made: they take its time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import blocks, files, grids, loading, tree
from compress.artifact import Artifact, Step
from compress.blocks import Branch
from compress.context import Context
from compress.contracts import Export, Exporter, Target
from compress.engines.manifest import seal
from compress.errors import BadSettings, Unavailable
from compress.facts import Facts, Planned, Task
from compress.grid import Grid
from compress.profiling import Build
from profiles import _build
from profiles._parts import Choice

_NOTE = "random weights: an engine to be timed, whose values mean nothing"


def engine(
    model: str, task: Task, build: Build, target: Target, folder: Path, exporter: Exporter | None = None
) -> Path:
    """Write an engine that takes the time of a build; see `compress.profiling.Profiler.engine`."""
    exporter = exporter or _build.exporter_for(target)
    if missing := exporter.available():
        raise Unavailable(missing)
    artifact = stand_in(model, task, build)
    exporter.plan(_facts(artifact), target)
    with files.atomic_folder(folder) as new:
        seal(artifact, exporter, target, _export(artifact, exporter, target, new), new)
    return folder


def stand_in(model: str, task: Task, build: Build, seed: int = 0) -> Artifact:
    """Return a model of random weights with the blocks, codes and zeros of a build.

    Raises:
        BadModel: the architecture cannot be read.
        BadSettings: the plan is about linears that such blocks do not have, or codes that do not fit them.
    """
    source = loading.locate(model)
    config = loading.read_config(source)
    if task == "regression":
        config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _build.plain(config, task, len(build.layout))
        _build.fill_(made, build.layout)
        linears = tree.block_linears(made)
        if unknown := {*build.plan, *build.branches} - linears.keys():
            raise BadSettings(f"{min(unknown)}: is planned, but such blocks have no such linear", key="plan")
        masks, codes = _realise_(linears, build.plan)
        sizes = {n: (r, linears[n].in_features, linears[n].out_features) for n, r in build.branches.items()}
        blocks.branch_(
            made, {n: Branch(torch.randn(r, i) / i, torch.randn(o, r) / r) for n, (r, i, o) in sizes.items()}
        )
    return Artifact(
        model=made, tokenizer=loading.read_tokenizer(source), task=task, masks=masks, grids=codes,
        lineage=(Step(use="stand-in", notes=(_NOTE,)),),
    )  # fmt: skip


class Wholesale:
    """What `Workshop` is, for runtimes whose engines cannot be stacked: every engine is exported anew.

    Args and errors are those of `Workshop`.
    """

    def __init__(
        self, config: Any, task: Task, choices: Sequence[Choice], target: Target, folder: Path, seed: int = 0
    ) -> None:
        self._make = partial(_build.sampler, config, task, seed=seed)
        self._exporter, self._target = _build.exporter_for(target), target
        known = self._make(tuple(dict.fromkeys(choices)))
        self._exporter.plan(_facts(known), target)

    def build(self, order: Sequence[Choice], folder: Path, vocabulary: int | None = None) -> Path:
        """Write an engine of some of the parts into a new folder, and return it; see `Workshop.build`."""
        artifact = self._make(order, vocabulary=vocabulary or _build.SMALL)
        folder.mkdir(parents=True)
        exported = _export(artifact, self._exporter, self._target, folder)
        files.write_json(folder / "engine.json", {**exported.facts, "precision": self._target.precision})
        return folder


def _facts(artifact: Artifact) -> Facts:
    return tree.facts(artifact.model, artifact.task).after(grids=grids.facts(artifact.grids))


def _realise_(
    linears: Mapping[str, torch.nn.Linear], plan: Mapping[str, Planned]
) -> tuple[dict[str, Tensor], dict[str, Grid]]:
    """Give linears the zeros and codes of a plan, and return both by name."""
    masks: dict[str, Tensor] = {}
    codes: dict[str, Grid] = {}
    for name, planned in plan.items():
        linear = linears[name]
        kept = _build.kept_of(linear.weight, planned.pattern or "dense")
        if planned.pattern:
            masks[name] = kept.clone()
            linear.weight.data *= kept
        if fact := planned.grid:
            if fact.group_size and fact.group_size > linear.in_features:
                what = f"{linear.in_features} inputs have no groups of {fact.group_size}"
                raise BadSettings(f"{name}: {what}; plan smaller groups, or whole rows", key="plan")
            codes[name] = _build.grid_(linear, kept, fact)
    return masks, codes


def _export(artifact: Artifact, exporter: Exporter, target: Target, folder: Path) -> Export:
    """Write the engine with the fastest kernels that a finished one may have.

    Whether they lose too much is no question of random weights; where they do, the finished engine is slower.
    """
    with tempfile.TemporaryDirectory() as scratch:
        exported = exporter.export(artifact, folder, Context(folder=Path(scratch)), target)
    if not exported.variants:
        return exported
    for name in exported.files:
        (folder / name).unlink()
    return exported.variants[-1].write(folder)
