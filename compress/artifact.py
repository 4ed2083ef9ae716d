"""The model between two passes, in memory and on disk.

On disk an artifact is a Hugging Face folder that plain `from_pretrained` opens, plus `compress.json` (task, lineage,
the shape of every mask, the digest of every file) and the masks, bit-packed, in `masks.safetensors`.
"""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress import files, loading, tree
from compress.contracts import Task
from compress.errors import BadModel, BrokenPromise, Tampered

CARD = "compress.json"
MASKS = "masks.safetensors"
SHARD = "1800MB"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """One line of the lineage: which plug-in, with which settings, and what it noted."""

    use: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What flows between passes.

    Attributes:
        model: the task model, linears always `[out, in]`; moved into a pass.
        tokenizer: its tokenizer.
        task: what the model is for.
        masks: per linear, bool `[out, in]`, True = kept; stored, never inferred from zeros.
        lineage: the steps that made it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task = "causal-lm"
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    lineage: tuple[Step, ...] = ()

    def after(self, step: Step | None = None, **changes: Any) -> Artifact:
        """Return the artifact with some fields replaced and, when given, a step added to its lineage."""
        lineage = (*self.lineage, step) if step else self.lineage
        return dataclasses.replace(self, lineage=lineage, **changes)

    def tensor_names(self) -> list[str]:
        """Return the names of all tensors that the model stores; of tied ones, every name."""
        return list(self.model.state_dict())

    def tensor(self, name: str) -> Tensor:
        """Return one tensor of the model, linears `[out, in]`; a stored one is read anew each time."""
        found: Tensor = attrgetter(name)(self.model)
        return found.detach()

    @contextmanager
    def opened(self, name: str) -> Iterator[nn.Module]:
        """Yield a block (a name of `tree.blocks`) that holds real weights; what changes in it stays changed."""
        yield self.model.get_submodule(name)

    def new_masks(self) -> MutableMapping[str, Tensor]:
        """Return the masks to add to, for `after(masks=...)`: this artifact's, read on access, until they are set."""
        return ChainMap({}, self.masks)  # type: ignore[arg-type]

    def save(self, folder: Path) -> None:
        """Write the artifact into an existing, empty folder.

        Raises:
            BrokenPromise: a mask belongs to no linear or has another shape, or a weight that it prunes is not zero.
        """
        linears = tree.block_linears(self.model)
        for name, mask in self.masks.items():
            if name not in linears or mask.shape != linears[name].weight.shape:
                raise BrokenPromise(f"{name}: has a mask {list(mask.shape)} that fits no linear of the model")
            if torch.any(linears[name].weight.detach()[~mask.to(linears[name].weight.device)] != 0):
                raise BrokenPromise(f"{name}: weights that the mask prunes are not zero")
        with files.disk_errors(folder):
            with loading.quiet():
                self.model.save_pretrained(folder, state_dict=tree.stored_state(self.model), max_shard_size=SHARD)
                self.tokenizer.save_pretrained(folder)
            if self.masks:
                packed = {n: np.packbits(m.cpu().numpy(), axis=1) for n, m in sorted(self.masks.items())}
                save_file(packed, folder / MASKS)
        card = {
            "format": _FORMAT,
            "task": self.task,
            "masks": {n: list(m.shape) for n, m in sorted(self.masks.items())},
            "lineage": [dataclasses.asdict(s) for s in self.lineage],
            "files": files.digests(folder),
        }
        files.write_json(folder / CARD, card)

    @staticmethod
    def load(folder: Path, *, trust_remote_code: bool = False, dtype: torch.dtype | None = None) -> Artifact:
        """Open what `save` wrote, after checking every file against its digest.

        Raises:
            BadModel: the folder is no artifact.
            Tampered: a file is missing or differs.
        """
        card = read_card(folder)
        check(folder)
        model, tokenizer = loading.open_folder(folder, card["task"], trust_remote_code=trust_remote_code, dtype=dtype)
        packed = load_file(folder / MASKS) if card["masks"] else {}
        masks = {
            n: torch.from_numpy(np.unpackbits(packed[n], axis=1, count=shape[1]).astype(bool))
            for n, shape in card["masks"].items()
        }
        lineage = tuple(Step(use=s["use"], settings=s["settings"], notes=tuple(s["notes"])) for s in card["lineage"])
        return Artifact(model=model, tokenizer=tokenizer, task=card["task"], masks=masks, lineage=lineage)


def read_card(folder: Path) -> dict[str, Any]:
    """Return the content of `compress.json`.

    Raises:
        BadModel: there is none, or another version of `compress` wrote it.
        Tampered: it is not what `Artifact.save` writes.
    """
    try:
        card: dict[str, Any] = files.read_json(folder / CARD)
    except FileNotFoundError:
        raise BadModel(f"{folder}: no {CARD} in it, so it is no artifact of compress") from None
    except ValueError as error:
        raise Tampered(f"{folder / CARD}: not readable as JSON ({error}); delete the folder and run again") from None
    if not isinstance(card, dict) or not {"format", "task", "masks", "lineage", "files"} <= card.keys():
        raise Tampered(f"{folder / CARD}: entries are missing; delete the folder and run again")
    if card["format"] != _FORMAT:
        raise BadModel(f"{folder / CARD}: has format {card['format']}, this version reads {_FORMAT}; make it anew")
    return card


def check(folder: Path) -> None:
    """Raise `Tampered` unless every recorded file is there with its recorded bytes."""
    files.check(folder, read_card(folder)["files"], CARD)


def digest(folder: Path) -> str:
    """Return the artifact's digest: that of its card, which holds the digest of every other file."""
    return files.sha256(folder / CARD)
