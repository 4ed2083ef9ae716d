"""What is known of a model at one point of a pipeline before anything runs, from configuration and settings alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Task = Literal["causal-lm", "classification", "regression", "embedding"]
Format = Literal["int", "fp8"]
Activation = Literal["none", "dynamic", "static"]


def said(bits: int | str, format_: Format) -> str:
    """Return in words what codes are: `4 bits`, `8 bits (fp8)`."""
    return f"{bits} bits{'' if format_ == 'int' else f' ({format_})'}"


@dataclass(frozen=True)
class MaskFact:
    """What is known of one linear's mask before anything ran: the pattern and the share of zeros."""

    pattern: str
    sparsity: float


@dataclass(frozen=True, kw_only=True)
class GridFact:
    """What is known of one linear's codes before anything ran (`compress/grid.py` has the codes).

    Attributes:
        bits: of a code.
        group_size: inputs that share a scale; None = a whole row.
        zero: whether groups have a code of their own that stands for 0 (asymmetric).
        offset: whether groups have a real offset.
        activation: what the linear is meant to read: floats (`none`), integers of 8 bits whose step is found when they
            come (`dynamic`), or codes of 8 bits, of the weight's format, whose step is known before (`static`).
        format: what a code is: an integer, or a float of 8 bits (`fp8`: E4M3 without infinities).
        others: what it may turn out to be instead, where the pass chooses when it runs.
    """

    bits: int
    group_size: int | None
    zero: bool = False
    offset: bool = False
    activation: Activation = "none"
    format: Format = "int"
    others: tuple[GridFact, ...] = ()

    @property
    def possible(self) -> tuple[GridFact, ...]:
        """All that it may turn out to be; whoever cannot do with one of them cannot do with this."""
        return (dataclasses.replace(self, others=()), *self.others)

    @property
    def told(self) -> str:
        """The bits in words: `4 bits`, `2 or 4 bits`, `8 bits (fp8)`."""
        *first, last = sorted({str(p.bits) for p in self.possible})
        return said(f"{', '.join(first)} or {last}" if first else last, self.format)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a solver chose for one linear, for later passes to make true.

    Attributes:
        grid: the codes that it is to get; None = it stays in floats.
        pattern: of its zeros, as `N:M`; None = it stays dense.
    """

    grid: GridFact | None = None
    pattern: str | None = None

    @staticmethod
    def of(entry: Mapping[str, Any]) -> Planned:
        """Return what `dataclasses.asdict` has written."""
        grid = entry["grid"]
        return Planned(grid=GridFact(**{**grid, "others": ()}) if grid else None, pattern=entry["pattern"])


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The shape of one block; a part of size 0 is absent and adds nothing to the residual, unless one linear stands in.

    Attributes:
        heads: query heads.
        kv_heads: key and value heads; every one serves as many query heads.
        head_dim: width of a head.
        ffn: neurons of the FFN.
        linear_attention: whether, in place of attention without heads, each token passes one linear (the output
            projection, `[hidden, hidden]`) by itself.
        linear_ffn: whether, in place of an FFN without neurons, one linear stands (the FFN's last, `[hidden, hidden]`).
    """

    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    linear_attention: bool = False
    linear_ffn: bool = False

    def __post_init__(self) -> None:
        """Raise `ValueError` for a shape that no block can have."""
        if min(self.heads, self.kv_heads, self.ffn) < 0 or self.head_dim < 1:
            raise ValueError(f"{self}: sizes must not be negative, nor head_dim 0")
        if bool(self.heads) != bool(self.kv_heads) or (self.heads and self.heads % self.kv_heads):
            raise ValueError(f"{self}: every key head must serve as many query heads")
        if (self.linear_attention and self.heads) or (self.linear_ffn and self.ffn):
            raise ValueError(f"{self}: a linear stands only in place of a part that has no heads, or no neurons")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the model at one point of the pipeline, from configuration and settings alone."""

    family: str
    task: Task
    tied: bool
    shapes: Mapping[str, tuple[int, int]]  # block linears: name -> (out, in)
    biases: Mapping[str, int]  # every bias of the model: parameter name -> elements
    norms: Mapping[str, int]  # every norm parameter but biases: parameter name -> elements
    head: tuple[str, tuple[int, int]] | None
    parameters: int
    vocabulary: int
    positions: int | None  # longest sequence the model takes; None = no limit of its own
    layout: tuple[BlockConfig, ...]  # the blocks, first to last
    masks: Mapping[str, MaskFact] = field(default_factory=dict)
    grids: Mapping[str, GridFact] = field(default_factory=dict)  # block linears whose weights are codes
    branches: Mapping[str, int] = field(default_factory=dict)  # block linears with a low-rank path: name -> rank
    plan: Mapping[str, Planned] = field(default_factory=dict)  # what a solver chose: block linear -> codes and zeros
    library: bool = False  # whether blocks to choose from come with the model
    trained: bool = False
    dropped: int = 0  # how many blocks of the dense parent are gone
    stored: bool = False  # whether the weights of the blocks stay on disk
    open: bool = False  # whether a choice yet to be made may leave any of this smaller, so that it is judged again then

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.layout)

    def admits(self, grids: Mapping[str, GridFact]) -> bool:
        """Tell whether a model with just these codes is what is known here."""
        return grids.keys() == self.grids.keys() and all(g in self.grids[n].possible for n, g in grids.items())

    def after(self, **changes: Any) -> Facts:
        """Return a copy with some facts replaced."""
        return dataclasses.replace(self, **changes)
