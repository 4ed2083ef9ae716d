"""Size a model or a block that weights are to be loaded into."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from compress import tree
from compress.blocks import modelling
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
    try:
        modelling.reshape_(block, table, config, norm_first=norm_first)
    except ValueError as error:
        raise BadModel(str(error)) from None
    for linear in block.modules():
        if isinstance(linear, Branched) and (linear.b.shape[0], linear.a.shape[1]) != linear.weight.shape:
            modelling.put_(linear, "a", linear.a.data.new_zeros(linear.rank, linear.in_features))
            modelling.put_(linear, "b", linear.b.data.new_zeros(linear.out_features, linear.rank))
