"""Give blocks other shapes: cut heads and neurons out, take blocks away, or size an unfilled model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress import tree
from compress.blocks.modules import NoAttention, NoOutput
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
    now = BlockConfig(heads=heads, kv_heads=kv_heads, head_dim=was.head_dim, ffn=ffn)
    _settle_(block, table, now, tree.norm_first(model))
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


def shape_(model: PreTrainedModel, configs: Sequence[BlockConfig]) -> None:
    """Give a freshly built model's blocks other shapes, so that weights can be loaded into it.

    Args:
        model: with as many blocks, on any device, `meta` too; where a linear changes its size, it becomes zeros.
        configs: of every block, the width of heads as it is.

    Raises:
        BadModel: another number of blocks or width of heads, or heads in groups where the family knows none.
    """
    table, blocks = tree.family(model), list(tree.blocks(model).values())
    if len(blocks) != len(configs):
        raise BadModel(f"{len(configs)} shapes of blocks for a model of {len(blocks)} blocks")
    for block, config in zip(blocks, configs, strict=True):
        width: int = getattr(block.get_submodule(table.core), table.head_dim)
        if config.head_dim != width or (config.heads != config.kv_heads and not table.groups):
            raise BadModel(f"a block of {table.name} with heads of width {width} cannot have the shape {config}")
        for name, (rows, columns) in _sizes(table, config).items():
            _resize_(block.get_submodule(name), rows, columns)
        _settle_(block, table, config, tree.norm_first(model))


def _attention_cuts(table: Family, was: BlockConfig, groups: Tensor) -> dict[str, Cut]:
    each = was.heads // was.kv_heads
    queries = _spread(_spread(groups, each), was.head_dim)
    keys = _spread(groups, was.head_dim)
    rows = [queries, keys, keys]
    if table.fused:
        rows = [torch.cat([queries + part * was.heads * was.head_dim for part in range(3)])]
    *qkv, output = table.qkvo
    return {**{n: (r, None) for n, r in zip(qkv, rows, strict=True)}, output: (None, queries)}


def _sizes(table: Family, config: BlockConfig) -> dict[str, tuple[int | None, int | None]]:
    """Return rows and columns of the block's linears, None where they do not depend on the shape."""
    queries, keys = (n * config.head_dim for n in (config.heads, config.kv_heads))
    *qkv, output = table.qkvo
    rows = [3 * queries] if table.fused else [queries, keys, keys]
    sizes: dict[str, tuple[int | None, int | None]] = {n: (r, None) for n, r in zip(qkv, rows, strict=True)}
    sizes |= {output: (None, queries), **dict.fromkeys(table.up, (config.ffn, None)), table.down: (None, config.ffn)}
    return sizes


def _settle_(block: nn.Module, table: Family, config: BlockConfig, norm_first: bool) -> None:
    """Take away parts of size 0, and set what the attention module computes with."""
    core: Any = block.get_submodule(table.core)
    if config.heads == 0:
        tree.replace_(block, table.core, NoAttention(core.layer_idx, **{table.head_dim: config.head_dim}))
        if not table.qkvo[-1].startswith(f"{table.core}."):
            tree.replace_(block, table.qkvo[-1], nn.Identity())
    else:
        values = {table.counts: config.heads, table.widths: config.heads * config.head_dim}
        values[table.groups] = config.heads // config.kv_heads
        for names, value in values.items():
            for name in names:
                setattr(core, name, value)
    if config.ffn == 0 and len(table.ffn) == 1:
        tree.replace_(block, table.ffn[0], NoOutput())
    elif config.ffn == 0:
        for name in table.up:
            tree.replace_(block, name, nn.Identity())
        tree.replace_(block, table.down, NoOutput())
    if norm_first:
        for name, size in zip(table.norms, (config.heads, config.ffn), strict=True):
            if size == 0:
                tree.replace_(block, name, nn.Identity())


def _cut_(module: nn.Module, rows: Tensor | None, columns: Tensor | None) -> None:
    linear: Any = module
    _put_(linear, "weight", _taken(_taken(linear.weight.data, 0, rows), 1, columns))
    if linear.bias is not None and rows is not None:
        _put_(linear, "bias", _taken(linear.bias.data, 0, rows))
    if isinstance(linear, Branched):
        _put_(linear, "a", _taken(linear.a.data, 1, columns))
        _put_(linear, "b", _taken(linear.b.data, 0, rows))
    linear.out_features, linear.in_features = linear.weight.shape


def _resize_(module: nn.Module, rows: int | None, columns: int | None) -> None:
    linear: Any = module
    stored = isinstance(linear, Conv1D)  # [in, out]
    old = tuple(linear.weight.shape[::-1] if stored else linear.weight.shape)
    new = (old[0] if rows is None else rows, old[1] if columns is None else columns)
    if new == old:
        return
    _put_(linear, "weight", linear.weight.data.new_zeros(new[::-1] if stored else new))
    if linear.bias is not None and new[0] != old[0]:
        _put_(linear, "bias", linear.bias.data.new_zeros(new[0]))
    if stored:
        linear.nf, linear.nx = new
    else:
        linear.out_features, linear.in_features = new


def _put_(module: nn.Module, name: str, tensor: Tensor) -> None:
    old: nn.Parameter = getattr(module, name)
    setattr(module, name, nn.Parameter(tensor, requires_grad=old.requires_grad))


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
