"""Size a model or a block that weights are to be loaded into."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress import tree
from compress.blocks.modules import NoAttention, NoOutput
from compress.branched import Branched
from compress.errors import BadModel
from compress.facts import BlockConfig
from compress.families import Family


def shape_(model: PreTrainedModel, configs: Sequence[BlockConfig]) -> None:
    """Give a freshly built model's blocks other shapes, so that weights can be loaded into it.

    Args:
        model: with as many blocks, on any device, `meta` too; where a linear changes its size, it becomes zeros.
        configs: of every block, the width of heads as it is.

    Raises:
        BadModel: another number of blocks or width of heads, or heads in groups where the family knows none.
    """
    blocks = list(tree.blocks(model).values())
    if len(blocks) != len(configs):
        raise BadModel(f"{len(configs)} shapes of blocks for a model of {len(blocks)} blocks")
    for block, config in zip(blocks, configs, strict=True):
        reshape_(block, tree.family(model), config, norm_first=tree.norm_first(model))


def reshape_(block: nn.Module, table: Family, config: BlockConfig, *, norm_first: bool) -> None:
    """Give one block another shape, so that weights can be loaded into it.

    Args:
        block: on any device, `meta` too; where a linear changes its size, it and its branch become zeros.
        table: of its family.
        config: the shape, the width of heads as it is; a linear in place of attention has a bias where the values had.
        norm_first: whether its parts read a norm's output (`tree.norm_first`).

    Raises:
        BadModel: another width of heads, heads in groups where the family knows none, or a part that it lacks.
    """
    width: int = getattr(block.get_submodule(table.core), table.head_dim)
    if config.head_dim != width or (config.heads != config.kv_heads and not table.groups):
        raise BadModel(f"a block of {table.name} with heads of width {width} cannot have the shape {config}")
    linears = {n: m for n, m in block.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    hidden = next((_size(linears[n])[0] for n in (table.qkvo[-1], table.down) if n in linears), 0)
    sizes = _sizes(table, config, hidden)
    if lacking := sizes.keys() - linears.keys():
        raise BadModel(f"a block without {min(lacking)} cannot have the shape {config}")
    for name, size in sizes.items():
        _resize_(linears[name], *size)
    if config.linear_attention:
        _bias_(*(linears.get(n) for n in table.qkvo[-2:]))
    settle_(block, table, config, norm_first)


def settle_(block: nn.Module, table: Family, config: BlockConfig, norm_first: bool) -> None:
    """Take away what the shape lacks, and set what the attention module computes with."""
    if config.heads == 0:
        _without_heads_(block, table, config)
    else:
        values = {table.counts: config.heads, table.widths: config.heads * config.head_dim}
        values[table.groups] = config.heads // config.kv_heads
        for names, value in values.items():
            for name in names:
                setattr(block.get_submodule(table.core), name, value)
    if config.ffn == 0:
        _without_neurons_(block, table, config.linear_ffn)
    if norm_first:
        read = (config.heads or config.linear_attention, config.ffn or config.linear_ffn)
        for name, there in zip(table.norms, read, strict=True):
            if not there:
                tree.replace_(block, name, nn.Identity())


def put_(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put another tensor in place of a parameter."""
    old: nn.Parameter = getattr(module, name)
    setattr(module, name, nn.Parameter(tensor, requires_grad=old.requires_grad))


def _sizes(table: Family, config: BlockConfig, hidden: int) -> dict[str, tuple[int | None, int | None]]:
    """Return rows and columns of the linears that the shape has, None where they do not depend on it."""
    queries, keys = (n * config.head_dim for n in (config.heads, config.kv_heads))
    *qkv, output = table.qkvo
    sizes: dict[str, tuple[int | None, int | None]] = {}
    if config.heads:
        rows = [3 * queries] if table.fused else [queries, keys, keys]
        sizes |= {**{n: (r, None) for n, r in zip(qkv, rows, strict=True)}, output: (None, queries)}
    if config.ffn:
        sizes |= {**dict.fromkeys(table.up, (config.ffn, None)), table.down: (None, config.ffn)}
    stand_ins = {output: config.linear_attention, table.down: config.linear_ffn}
    return sizes | {n: (None, hidden) for n, stands in stand_ins.items() if stands}


def _bias_(values: nn.Module | None, output: Any) -> None:
    """Let the stand-in for attention add what the values' biases come to, also where its linear had no bias."""
    given = getattr(values, "bias", None)
    if given is not None and output.bias is None:
        output.bias = nn.Parameter(given.data.new_zeros(len(output.weight)), requires_grad=given.requires_grad)


def _without_heads_(block: nn.Module, table: Family, config: BlockConfig) -> None:
    core: Any = block.get_submodule(table.core)
    output, stays = table.qkvo[-1], config.linear_attention
    inside = output.startswith(f"{table.core}.")
    through = NoOutput() if not stays else block.get_submodule(output) if inside else nn.Identity()
    name = output.rpartition(".")[2]
    tree.replace_(block, table.core, NoAttention(core.layer_idx, name, through, **{table.head_dim: config.head_dim}))
    if not (inside or stays):
        tree.replace_(block, output, nn.Identity())


def _without_neurons_(block: nn.Module, table: Family, stays: bool) -> None:
    first, *more = table.ffn
    if not more:
        name = table.down.removeprefix(f"{first}.")
        through = nn.Sequential(OrderedDict({name: block.get_submodule(table.down)})) if stays else NoOutput()
        tree.replace_(block, first, through)
        return
    for name in (*table.up, *([table.activation] if table.activation else [])):
        tree.replace_(block, name, nn.Identity())
    if not stays:
        tree.replace_(block, table.down, NoOutput())


def _resize_(module: nn.Module, rows: int | None, columns: int | None) -> None:
    linear: Any = module
    stored, old = isinstance(linear, Conv1D), _size(linear)  # [in, out]
    new = (old[0] if rows is None else rows, old[1] if columns is None else columns)
    if new == old:
        return
    put_(linear, "weight", linear.weight.data.new_zeros(new[::-1] if stored else new))
    if linear.bias is not None and new[0] != old[0]:
        put_(linear, "bias", linear.bias.data.new_zeros(new[0]))
    if isinstance(linear, Branched):
        put_(linear, "a", linear.a.data.new_zeros(linear.rank, new[1]))
        put_(linear, "b", linear.b.data.new_zeros(new[0], linear.rank))
    if stored:
        linear.nf, linear.nx = new
    else:
        linear.out_features, linear.in_features = new


def _size(linear: nn.Module) -> tuple[int, int]:
    """Return rows and columns, as `[out, in]` has them."""
    weight: Any = linear.weight
    rows, columns = weight.shape[::-1] if isinstance(linear, Conv1D) else weight.shape
    return rows, columns
