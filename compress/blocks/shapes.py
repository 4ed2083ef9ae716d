"""Cut heads and neurons out of blocks, and take whole blocks away."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress import tree
from compress.blocks.modelling import put_, settle_
from compress.branched import Branched
from compress.errors import BadModel
from compress.facts import BlockConfig
from compress.families import Family

Cut = tuple[Tensor | None, Tensor | None]  # rows and columns that stay, int64 ascending; None = all


def slice_(
    model: PreTrainedModel, index: int, *, kv_groups: Tensor | None = None, neurons: Tensor | None = None
) -> dict[str, Cut]:
    """Keep some heads and neurons of a block; its linears and their biases become really smaller.

    Args:
        model: linears `[out, in]`, on any device.
        index: the block's place, from 0.
        kv_groups: int64 ascending, the key heads that stay, each with its query heads (one, without groups);
            none = the block loses its attention; not given = all stay.
        neurons: int64 ascending, likewise, the FFN's neurons.

    Returns:
        Per linear that is cut, by its name, the rows and columns that stay; those of a part that is gone are empty.

    Raises:
        ValueError: an index out of range or not ascending, or nothing to cut there.
    """
    table, (name, block) = tree.family(model), list(tree.blocks(model).items())[index]
    was = tree.layout(model)[index]
    cuts: dict[str, Cut] = {}
    heads, kv_heads, ffn = was.heads, was.kv_heads, was.ffn
    if kv_groups is not None:
        cuts |= _attention_cuts(table, was, _checked(kv_groups, kv_heads, "key heads"))
        heads, kv_heads = heads // kv_heads * len(kv_groups), len(kv_groups)
    if neurons is not None:
        kept = _checked(neurons, ffn, "neurons")
        cuts |= {**dict.fromkeys(table.up, (kept, None)), table.down: (None, kept)}
        ffn = len(kept)
    for inner, cut in cuts.items():
        _cut_(block.get_submodule(inner), *cut)
    now = dataclasses.replace(was, heads=heads, kv_heads=kv_heads, ffn=ffn)
    settle_(block, table, now, norm_first=tree.norm_first(model))
    return {f"{name}.{inner}": cut for inner, cut in cuts.items()}


def cut_masks(masks: Mapping[str, Tensor], cuts: Mapping[str, Cut]) -> dict[str, Tensor]:
    """Return masks, or other tensors `[out, in]` by linear name, cut as `slice_` says; those of gone linears are gone.

    Args:
        masks: by linear name.
        cuts: what `slice_` returned.
    """
    kept: dict[str, Tensor] = {}
    for name, mask in masks.items():
        rows, columns = cuts.get(name, (None, None))
        if all(index is None or len(index) for index in (rows, columns)):
            kept[name] = _taken(_taken(mask, 0, rows), 1, columns)
    return kept


def drop_(model: PreTrainedModel, indices: Iterable[int]) -> dict[str, str]:
    """Take whole blocks away; the rest move up.

    Args:
        model: its configuration counts one block less for each.
        indices: places from 0, each once.

    Returns:
        The linears that stay: old name to new name.

    Raises:
        ValueError: a place that is not there, or no block would stay.
        BadModel: the model's blocks compute with their place.
    """
    stack: Any = tree.backbone(model).get_submodule(tree.family(model).blocks)
    config: Any = model.config
    gone, count = sorted(indices), len(tree.blocks(model))
    if len(set(gone)) < len(gone) or not all(0 <= i < count for i in gone) or len(gone) == count:
        raise ValueError(f"blocks {gone} cannot be dropped of {count}")
    if gone and getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise BadModel("scale_attn_by_inverse_layer_idx ties attention to a block's place, so that none can be dropped")
    old = {id(m): n for n, m in tree.block_linears(model).items()}
    for index in reversed(gone):
        del stack[index]
    for place, block in enumerate(stack):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    config.num_hidden_layers = count - len(gone)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kind for i, kind in enumerate(kinds) if i not in gone]
    return {old[id(m)]: n for n, m in tree.block_linears(model).items()}


def _attention_cuts(table: Family, was: BlockConfig, groups: Tensor) -> dict[str, Cut]:
    each = was.heads // was.kv_heads
    queries = _spread(_spread(groups, each), was.head_dim)
    keys = _spread(groups, was.head_dim)
    rows = [queries, keys, keys]
    if table.fused:
        rows = [torch.cat([queries + part * was.heads * was.head_dim for part in range(3)])]
    *qkv, output = table.qkvo
    return {**{n: (r, None) for n, r in zip(qkv, rows, strict=True)}, output: (None, queries)}


def _cut_(module: nn.Module, rows: Tensor | None, columns: Tensor | None) -> None:
    linear: Any = module
    put_(linear, "weight", _taken(_taken(linear.weight.data, 0, rows), 1, columns))
    if linear.bias is not None and rows is not None:
        put_(linear, "bias", _taken(linear.bias.data, 0, rows))
    if isinstance(linear, Branched):
        put_(linear, "a", _taken(linear.a.data, 1, columns))
        put_(linear, "b", _taken(linear.b.data, 0, rows))
    linear.out_features, linear.in_features = linear.weight.shape


def _taken(tensor: Tensor, axis: int, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor.index_select(axis, index.to(tensor.device))


def _spread(index: Tensor, each: int) -> Tensor:
    """Return the places of the `each` neighbours that every index stands for."""
    return (index[:, None] * each + torch.arange(each)).reshape(-1)


def _checked(index: Tensor, count: int, what: str) -> Tensor:
    index = index.detach().to("cpu", torch.int64)
    if count == 0:
        raise ValueError(f"the block has no {what} to choose from")
    if index.ndim != 1 or (index.diff() <= 0).any() or (len(index) and not 0 <= index[0] <= index[-1] < count):
        raise ValueError(f"{what} must be ascending numbers below {count}, got {index.tolist()}")
    return index
