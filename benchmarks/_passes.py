"""This project's passes on fixed token ids, as the pipeline runs them."""

from __future__ import annotations

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

    def examples(self, tokenizer: Any) -> Examples:
        """Return the windows, whatever the tokenizer."""
        return self._examples


def through(
    use: str, settings: dict[str, Any], artifact: Artifact, folder: Path, *, seed: int = 0, **windows: Tensor
) -> Artifact:
    """Run one pass as the pipeline does, on ids by role (`calibration`, `training`)."""
    plugin = registry.load("passes", use, Pass)
    step = plugin(plugin.Settings(**settings))
    step.plan(facts_of(artifact))
    data = {role: cast(Source, Ids(ids)) for role, ids in windows.items() if role in plugin.uses}
    return step.run(artifact, Context(folder=folder, data=data, seed=seed))
