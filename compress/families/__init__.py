"""One small table per architecture: where its blocks, attention, FFN, norms and head are."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache

from compress.errors import BadModel


@dataclass(frozen=True, kw_only=True)
class Family:
    """The names of one architecture's parts, as `transformers` spells them.

    Attributes:
        name: the family's name, its file's name.
        model_types: `config.model_type` values that this table describes.
        decoder: causal (with a KV cache) or an encoder.
        backbone: attribute of the task model under which the bare model stands (`model`, `transformer`, `bert`).
        blocks: path of the block list below the backbone.
        attention: attention's module name within a block.
        ffn: FFN's module names within a block (BERT has two).
        qkvo: names of the query, key, value and output linears within a block; one fused name for GPT-2's q, k, v.
        up: FFN linears whose outputs are the FFN's neurons.
        down: the FFN linear that reads them.
        activation: the nonlinearity's module within a block, where `ffn` is more modules than one.
        factor: of `up`, the linear whose outputs no nonlinearity gets, but that are a factor of what `down` reads.
        core: the module within a block that computes attention and knows its heads.
        head_dim: its attribute that holds the width of a head.
        counts: its attributes that count the query heads.
        widths: its attributes that hold the width of all query heads together.
        groups: its attributes that count the query heads of one key head.
        norms: norms that attention and FFN alone read (none where the norm comes after the residual).
        config_ffn: the configuration's name for the neurons of the FFN.
        free_heads: whether the configuration can say any number of heads, whatever the hidden size.
        head: path of the output head in the causal model, if any.
        transposed: whether linears are stored `[in, out]` (GPT-2's Conv1D).
    """

    name: str
    model_types: tuple[str, ...]
    decoder: bool
    backbone: str
    blocks: str
    attention: str
    ffn: tuple[str, ...]
    qkvo: tuple[str, ...]
    up: tuple[str, ...]
    down: str
    activation: str | None = None
    factor: str | None = None
    core: str
    head_dim: str = "head_dim"
    counts: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    config_ffn: str = "intermediate_size"
    free_heads: bool = False
    head: str | None = None
    transposed: bool = False

    @property
    def fused(self) -> bool:
        """Whether one linear makes queries, keys and values."""
        return len(self.qkvo) == 2


@cache
def families() -> dict[str, Family]:
    """Return every family by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    tables: list[Family] = [m.FAMILY for m in modules]
    return {t.name: t for t in sorted(tables, key=lambda t: t.name)}


def family_of(model_type: str) -> Family:
    """Return the table of an architecture.

    Raises:
        BadModel: no table describes it.
    """
    for table in families().values():
        if model_type in table.model_types:
            return table
    known = ", ".join(t for f in families().values() for t in f.model_types)
    raise BadModel(f"architecture {model_type!r} is not supported; supported: {known}")
