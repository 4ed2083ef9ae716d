"""The model between two passes, in memory and on disk.

On disk an artifact is a Hugging Face folder that plain `from_pretrained` opens, plus `compress.json` (task, lineage,
the shape of every mask, the digest of every file), the masks, bit-packed, in `masks.safetensors`, and the codes of
quantized linears in `grids.safetensors`, whose weights are kept as what the codes stand for too.  A model that its
architecture's configuration cannot describe, for blocks that differ or for branches, is one that only we open
(`compress/blocks/disk.py`).
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress import files, grids, loading, masks, store, tree
from compress.blocks import Branch, disk
from compress.card import CARD as CARD
from compress.card import FORMAT, read_card
from compress.card import check as check
from compress.card import digest as digest
from compress.errors import BrokenPromise
from compress.facts import Planned, Task
from compress.grid import Grid
from compress.grids import KeptGrids, StoredGrids
from compress.store import Store

MASKS = "masks.safetensors"
GRIDS = "grids.safetensors"
SHARD = "1800MB"
LIBRARY = "library"


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
        grids: per quantized linear, the codes that exporters pack; its weight is what they stand for.
        plan: per linear of the blocks, what a solver chose of codes and zeros, for later passes to make true.
        library: a folder of blocks to choose from, made for this very model; saved within the artifact's folder.
        lineage: the steps that made it.
        store: where the weights of the blocks are, when they stay on disk; the blocks' parameters are on `meta` then,
            and all that is outside the blocks is real.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task = "causal-lm"
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)
    plan: Mapping[str, Planned] = field(default_factory=dict)
    library: Path | None = None
    lineage: tuple[Step, ...] = ()
    store: Store | None = None

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
        return self.store.read(name, found.dtype) if self.store and found.is_meta else found.detach()

    @contextmanager
    def opened(self, name: str) -> Iterator[nn.Module]:
        """Yield a block (a name of `tree.blocks`) that holds real weights; what changes in it stays changed."""
        block = self.model.get_submodule(name)
        with self.store.opened(name, block, self._device()) if self.store else nullcontext():
            yield block

    @property
    def branches(self) -> dict[str, Branch]:
        """The branches beside the blocks' linears, by name; `blocks.branch_` puts them into the model."""
        return {n: Branch(*(self.tensor(f"{n}.{part}") for part in ("a", "b"))) for n in tree.ranks(self.model)}

    @contextmanager
    def called(self) -> Iterator[None]:
        """Let the model be called inside: of a stored one, each block is read as it is called, and left again."""
        with self.store.called(tree.blocks(self.model), self._device()) if self.store else nullcontext():
            yield

    def to_(self, device: torch.device) -> None:
        """Move the model; blocks that stay on disk will be opened there."""
        for parameter in self.model.parameters():
            if not parameter.is_meta:
                parameter.data = parameter.data.to(device)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))

    def new_masks(self) -> MutableMapping[str, Tensor]:
        """Return the masks to add to, for `after(masks=...)`: this artifact's, until they are set.

        Of a stored artifact, those that are set go to disk and are read on access, so that none is held.
        """
        made = masks.KeptMasks(self.store.folder / "masks") if self.store else dict[str, Tensor]()
        return ChainMap(made, self.masks)  # type: ignore[arg-type]

    def new_grids(self) -> MutableMapping[str, Grid]:
        """Return the grids to add to, for `after(grids=...)`, as `new_masks` does the masks."""
        made = KeptGrids(self.store.folder / "grids") if self.store else dict[str, Grid]()
        return ChainMap(made, self.grids)  # type: ignore[arg-type]

    def save(self, folder: Path) -> None:
        """Write the artifact into an existing, empty folder.

        Raises:
            BrokenPromise: a mask belongs to no linear or has another shape, or a weight that it prunes is not zero; or
                codes belong to no linear, or its weight is not what they stand for.
        """
        linears = tree.block_linears(self.model)
        self._check(linears)
        shapes = {n: (linears[n].out_features, linears[n].in_features) for n in sorted(self.masks)}
        with files.disk_errors(folder):
            with loading.quiet():
                self._save_model(folder)
                self.tokenizer.save_pretrained(folder)
            if shapes:
                masks.write(folder / MASKS, self.masks, shapes)
            if self.grids:
                grids.write(folder / GRIDS, self.grids)
            if self.library:
                shutil.copytree(self.library, folder / LIBRARY, copy_function=files.link)
        card = {
            "format": FORMAT,
            "task": self.task,
            "masks": shapes,
            "grids": {n: grids.card(self.grids[n]) for n in sorted(self.grids)},
            "plan": {n: dataclasses.asdict(self.plan[n]) for n in sorted(self.plan)},
            "lineage": [dataclasses.asdict(s) for s in self.lineage],
            "files": files.digests(folder),
        }
        files.write_json(folder / CARD, card)

    def _check(self, linears: Mapping[str, nn.Linear]) -> None:
        for name, mask in self.masks.items():
            if name not in linears or mask.shape != linears[name].weight.shape:
                raise BrokenPromise(f"{name}: has a mask {list(mask.shape)} that fits no linear of the model")
            weight = self.tensor(f"{name}.weight")
            if torch.any(weight[~mask.to(weight.device)] != 0):
                raise BrokenPromise(f"{name}: weights that the mask prunes are not zero")
        for name in self.grids:
            if name not in linears:
                raise BrokenPromise(f"{name}: has codes, and is no linear of the model")
            self.grids[name].check(name, self.tensor(f"{name}.weight"), self.masks.get(name))

    def _device(self) -> torch.device:
        return self.model.get_input_embeddings().get_parameter("weight").device

    def _save_model(self, folder: Path) -> None:
        if self.store:
            store.save(self.model, self.store, folder)
        else:
            beside = disk.branch_tensors(self.model)
            state = {n: t for n, t in tree.stored_state(self.model).items() if n not in beside}
            self.model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD)
        disk.write(self.model, folder, self.tensor)

    @staticmethod
    def of(folder: Path, task: Task, *, stored: bool = False, changes: Path | None = None, **opening: Any) -> Artifact:
        """Open a Hugging Face folder that need not be an artifact; as `load`, `opening` as in `loading.open_folder`."""
        if stored:
            model, tokenizer, kept = loading.open_stored(folder, task, changes=changes, **opening)
            return Artifact(model=model, tokenizer=tokenizer, task=task, store=kept)
        model, tokenizer = loading.open_folder(folder, task, **opening)
        return Artifact(model=model, tokenizer=tokenizer, task=task)

    @staticmethod
    def load(
        folder: Path,
        *,
        stored: bool = False,
        changes: Path | None = None,
        trust_remote_code: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Artifact:
        """Open what `save` wrote, after checking every file against its digest.

        Args:
            folder: the folder; masks and codes are read from it on access, and of a stored artifact the blocks too.
            stored: whether the blocks' weights stay on disk.
            changes: where a stored artifact keeps changed blocks; a folder that vanishes with it unless given.
            trust_remote_code: whether Python files beside the weights may run.
            dtype: precision of the weights; that of the folder unless given.

        Raises:
            BadModel: the folder is no artifact.
            Tampered: a file is missing or differs.
        """
        card = read_card(folder)
        check(folder)
        trust = trust_remote_code
        opened = Artifact.of(folder, card["task"], stored=stored, changes=changes, trust_remote_code=trust, dtype=dtype)
        found = masks.StoredMasks(folder / MASKS, card["masks"]) if card["masks"] else {}
        lineage = tuple(Step(use=s["use"], settings=s["settings"], notes=tuple(s["notes"])) for s in card["lineage"])
        codes = StoredGrids(folder / GRIDS, card["grids"]) if card["grids"] else {}
        plan = {n: Planned.of(p) for n, p in card["plan"].items()}
        library = folder / LIBRARY if (folder / LIBRARY).is_dir() else None
        return dataclasses.replace(opened, masks=found, grids=codes, plan=plan, library=library, lineage=lineage)
