"""The keys of steps: digests of all that decides what a step gives, and of nothing else."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from compress import files, installed, loading
from compress.contracts import Exporter, Pass, Target
from compress.data import Role, Source
from compress.pipeline.code import code_digest
from compress.settings import Entry, Pipeline

_LIBRARIES = ("torch", "transformers")
_OF_ENGINES = ("onnx", "onnxscript", *(name for names in installed.RUNTIMES.values() for name in names))


class Keys:
    """The keys of one pipeline's steps.

    Args:
        pipeline: the checked pipeline.
        cache: folder where the data keeps its tokenised form.
    """

    def __init__(self, pipeline: Pipeline, cache: Path) -> None:
        self.pipeline, self._cache = pipeline, cache
        self.threads = pipeline.compute.threads or os.cpu_count() or 1

    @cached_property
    def sources(self) -> dict[str, Source]:
        """The data by role; opened when first needed."""
        task, seed = self.pipeline.model.task, self.pipeline.run.seed
        data = self.pipeline.data.items()
        return {role: Source(s, cast(Role, role), task, seed, self._cache) for role, s in data}

    def surroundings(self, *libraries: str) -> dict[str, Any]:
        """Return what every key holds beside its own ingredients: seed, versions, device, dtype, threads, weights."""
        return {
            "seed": self.pipeline.run.seed,
            "versions": {n: installed.version(n) for n in (*_LIBRARIES, *libraries)},
            "device": self.pipeline.compute.device,
            "dtype": self.pipeline.compute.dtype,
            "threads": self.threads,
            "weights": self.pipeline.compute.weights,
        }

    def model(self) -> str:
        """Return the key of the dense artifact: every byte of its source, and how it is opened."""
        model = self.pipeline.model
        source = files.digests(loading.locate(model.source, model.revision))
        return files.digest_of(
            {
                "source": {n: d for n, d in source.items() if not n.startswith(".")},
                "model": model.model_dump(mode="json", exclude={"source"}),
                "code": code_digest("compress.artifact"),
                **self.surroundings(),
            }
        )

    def pass_(self, entry: Entry, before: str) -> str:
        """Return the key of a pass after the artifact of digest `before`."""
        plugin = entry.plugin
        assert isinstance(plugin, Pass)
        dense = self.pipeline.dense
        modules = [type(plugin).__module__, "compress.artifact", *(["compress.data"] if plugin.data_uses() else [])]
        return files.digest_of(
            {
                "use": entry.use,
                "settings": plugin.settings.model_dump(mode="json"),
                "before": before,
                "data": {role: self.sources[role].digest for role in sorted(plugin.data_uses())},
                "targets": {n: t.model_dump(mode="json") for n, t in sorted(self.targets(plugin).items())},
                "files": {key: files.sha256(path) for key, path in sorted(plugin.files().items())},
                "code": [code_digest(m) for m in modules],
                **({"dense": dense} if 0 < dense < entry.index else {}),
                **({"turn": turn} if (turn := self.turn(entry)) else {}),
                **self.surroundings(),
            }
        )

    def turn(self, entry: Entry) -> int:
        """Return how many passes before this one train on text as it does; 0 for one that does not."""
        reads = [isinstance(e.plugin, Pass) and "training" in e.plugin.data_uses() for e in self.pipeline.passes]
        return sum(reads[: entry.index - 1]) if reads[entry.index - 1] else 0

    def targets(self, plugin: Pass) -> Mapping[str, Target]:
        """Return the targets that a pass is about."""
        return plugin.targets({t.name: t for t in self.pipeline.targets})

    def export(self, entry: Entry, before: str, target: Target | None, uses: Collection[Role] = ()) -> str:
        """Return the key of an export of the artifact of digest `before`, which reads some of the data."""
        exporter = entry.plugin
        assert isinstance(exporter, Exporter)
        return files.digest_of(
            {
                "use": entry.use,
                "settings": exporter.settings.model_dump(mode="json"),
                "target": target.model_dump(mode="json") if target else None,
                "before": before,
                "data": {role: self.sources[role].digest for role in sorted(uses)},
                "code": [code_digest(type(exporter).__module__), code_digest("compress.engines")],
                **self.surroundings(*(_OF_ENGINES if exporter.runtimes else ())),
            }
        )
