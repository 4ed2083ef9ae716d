"""The parent without its weights, for whoever builds one block: its configuration on disk, read once by a process."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress import blocks, files, loading, skeleton, tree
from compress.artifact import Artifact
from compress.blocks import BlockConfig, disk
from compress.errors import BadModel

_CARD = "hollow.json"


def keep(artifact: Artifact, folder: Path) -> None:
    """Write into a folder what tells how the model's blocks are built, unless it is there.

    Raises:
        BadModel: they are built by code that came with the model.
    """
    if (folder / _CARD).exists():
        return
    if not type(artifact.model).__module__.startswith("transformers.models."):
        what = f"{type(artifact.model).__name__} is code that came with the model"
        raise BadModel(f"{what}, and blocks are trained in processes that know transformers' own alone")
    folder.mkdir(parents=True, exist_ok=True)
    config = artifact.model.config
    config.save_pretrained(folder)
    disk.write(artifact.model, folder, artifact.tensor)
    dtype = str(next(artifact.model.parameters()).dtype).removeprefix("torch.")
    how = {"task": artifact.task, "attention": config._attn_implementation, "dtype": dtype}
    files.write_json(folder / _CARD, how)


def block_of(folder: Path, index: int, config: BlockConfig, state: Mapping[str, Tensor]) -> nn.Module:
    """Return one block by itself, in evaluation mode.

    Args:
        folder: what `keep` has written to.
        index: the block's number.
        config: its shape.
        state: its tensors by their names within the block, which it takes over.
    """
    model = _hollow(folder)
    block = copy.deepcopy(list(tree.blocks(model).values())[index], {id(model.config): model.config})
    blocks.reshape_(block, tree.family(model), config, norm_first=tree.norm_first(model))
    block.load_state_dict(state, assign=True)
    return block.eval()


@lru_cache(maxsize=1)
def _hollow(folder: Path) -> PreTrainedModel:
    how, shapes, config = files.read_json(folder / _CARD), disk.read(folder), loading.read_config(folder)
    dtype, classes = getattr(torch, how["dtype"]), loading.CLASSES[how["task"]]
    with loading.quiet():
        make = partial(classes.from_config, config, dtype=dtype, attn_implementation=how["attention"])
        model = skeleton.build(make)
    if shapes:
        blocks.shape_(model, shapes.layout)
    tree.linearise_(model)
    if shapes:
        disk.hollow_branches_(model, shapes.ranks)
    return model
