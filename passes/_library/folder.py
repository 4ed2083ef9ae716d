"""The library: a folder of blocks that were made once and serve every later choice.

`library.json` says for which model, with which data and of which search space; of each block part there are
`<key>.safetensors`, its state, and `<key>.json`, its shape and what was told of its making, which is written last.  So
several processes may add to one library, and what a killed one left half is not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import files, tensors
from compress.artifact import Artifact
from compress.errors import BadModel
from compress.facts import BlockConfig
from compress.tensors import Layout
from passes._library.space import Variant

CARD = "library.json"


def digest(artifact: Artifact) -> str:
    """Return the hex digest of a model's weights and masks, read one at a time."""
    found = hashlib.sha256()
    for name in sorted(artifact.tensor_names()):
        _add_(found, name, artifact.tensor(name))
    for name in sorted(artifact.masks):
        _add_(found, f"{name}.mask", artifact.masks[name])
    return found.hexdigest()


class Library:
    """Blocks to choose from, on disk.

    Args:
        folder: where; made when the first block is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def seal(self, parent: str, data: Mapping[str, str], space: Mapping[str, Any]) -> None:
        """Say what the library is of; one that says it already must say the same.

        Args:
            parent: `digest` of the model.
            data: digests of the data by role.
            space: the settings of the search space.

        Raises:
            BadModel: it is another model's, of other data or of another space.
        """
        wanted = {"parent": parent, "data": dict(data), "space": dict(space)}
        if not (self.folder / CARD).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(self.folder / CARD, wanted)
        self.check(parent, data)
        if files.digest_of(self.card["space"]) != files.digest_of(wanted["space"]):
            raise BadModel(f"{self.folder}: made for another search space; make a new library")

    def check(self, parent: str, data: Mapping[str, str] | None = None) -> None:
        """Raise `BadModel` unless this was made for the model, and with the data as far as both know the role."""
        if self.card["parent"] != parent:
            raise BadModel(f"{self.folder}: made for another model; make a new library, or choose for that model")
        known: dict[str, str] = self.card["data"]
        if other := [role for role, found in (data or {}).items() if known.get(role, found) != found]:
            raise BadModel(f"{self.folder}: made with other {other[0]} data; make a new library, or give those data")

    @property
    def card(self) -> dict[str, Any]:
        """What `library.json` says: `parent`, `data`, `space`.

        Raises:
            BadModel: there is no library.
        """
        try:
            found: dict[str, Any] = files.read_json(self.folder / CARD)
        except (FileNotFoundError, ValueError):
            raise BadModel(f"{self.folder}: no {CARD} that can be read, so it is no library; make it anew") from None
        return found

    def add(
        self, variant: Variant, state: Mapping[str, Tensor], record: Mapping[str, Any], *, beside: Variant | None = None
    ) -> None:
        """Keep the state of a part, and a record of its making: numbers and texts.

        Args:
            variant: what it is.
            state: its parameters and masks by name within the block.
            record: such as the losses before and after.
            beside: the other part's variant, where both were trained together; None = beside the parent's.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        weights, card = self._paths(variant, beside)
        layouts = {n: Layout(t.dtype, tuple(t.shape)) for n, t in state.items()}
        tensors.write(weights, layouts, lambda name: state[name])
        files.write_json(card, {"variant": dataclasses.asdict(variant), "record": dict(record)})

    def variants(self) -> list[Variant]:
        """Return the variants that are there, whatever they were trained beside, by key."""
        cards = sorted(p for p in self.folder.glob("*.json") if p.name != CARD)
        found = (files.read_json(path)["variant"] for path in cards)
        return list(dict.fromkeys(Variant(**{**v, "config": BlockConfig(**v["config"])}) for v in found))

    def has(self, variant: Variant, *, beside: Variant | None = None) -> bool:
        """Tell whether this variant is there, of the same shape, however it began."""
        return self.record(variant, beside=beside) is not None

    def record(self, variant: Variant, *, beside: Variant | None = None) -> dict[str, Any] | None:
        """Return what was told of a variant's making; None where it is not there."""
        card = self._paths(variant, beside)[1]
        found = files.read_json(card) if card.exists() else None
        if found is None or found["variant"]["config"] != dataclasses.asdict(variant.config):
            return None
        record: dict[str, Any] = found["record"]
        return record

    def state(self, variant: Variant, *, beside: Variant | None = None) -> dict[str, Tensor] | None:
        """Return the state of a variant; None where it is not there."""
        if not self.has(variant, beside=beside):
            return None
        return {n: place.read() for n, place in tensors.places(self._paths(variant, beside)[0]).items()}

    def _paths(self, variant: Variant, beside: Variant | None) -> tuple[Path, Path]:
        together = beside is not None and not beside.parent
        name = f"{variant.key}+{beside.key.partition('-')[2]}" if together and beside else variant.key
        return self.folder / f"{name}.safetensors", self.folder / f"{name}.json"


def _add_(found: Any, name: str, tensor: Tensor) -> None:
    found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
