"""This project's passes on fixed token ids, as the pipeline runs them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from compress import registry
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Pass
from compress.data import Examples, Source
from passes._pruned import facts_of


class Ids:
    """Token windows as a source that passes can read."""

    def __init__(self, windows: Tensor) -> None:
        self._examples = Examples.of_windows(windows)
        self.digest = hashlib.sha256(windows.numpy().tobytes()).hexdigest()

    def examples(self, tokenizer: Any) -> Examples:
        """Return the windows, whatever the tokenizer."""
        return self._examples


def context_of(
    folder: Path, *, seed: int = 0, turn: int = 0, parent: Callable[[], Artifact] | None = None, **windows: Tensor
) -> Context:
    """Return the surroundings of a step: ids by role (`calibration`, `training`), and what opens the dense parent.

    Of trainings one after the other each has a turn, 0, 1, 2, ..., so that they do not read the same first windows.
    """
    data = {role: cast(Source, Ids(ids)) for role, ids in windows.items()}
    return Context(folder=folder, data=data, seed=seed, turn=turn, parent=parent)


def through(use: str, settings: dict[str, Any], artifact: Artifact, context: Context) -> Artifact:
    """Run one pass as the pipeline does."""
    plugin = registry.load("passes", use, Pass)
    step = plugin(plugin.Settings(**settings))
    step.plan(facts_of(artifact))
    return step.run(artifact, context)


def chained(
    passes: Iterable[tuple[str, dict[str, Any]]],
    artifact: Artifact,
    *,
    parent: Callable[[], Artifact] | None = None,
    **windows: Tensor,
) -> Artifact:
    """Run passes one after the other, each training among them with a turn of its own."""
    turn = 0
    for use, settings in passes:
        with tempfile.TemporaryDirectory() as folder:
            artifact = through(use, settings, artifact, context_of(Path(folder), turn=turn, parent=parent, **windows))
        turn += "steps" in settings
    return artifact
