"""Where a scale can be folded: a norm or a linear, and the linears that alone read what it gives."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from compress.facts import BlockConfig, Facts
from compress.families import Family, families


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A module that gives channels, and the linears that alone read them, with no nonlinearity in between.

    Attributes:
        before: name of a norm or a linear.
        after: names of the linears that read it.
        linear: whether `before` is a linear.
        channels: how many channels it gives.
        first: the row of `before` that makes the first of them; all before it make something else.
        each: how many inputs read one channel: the query heads of a key head, else 1.
        width: neighbours that are read together: a head, where there are several; else all channels.
    """

    before: str
    after: tuple[str, ...]
    linear: bool
    channels: int
    first: int = 0
    each: int = 1
    width: int

    def spread(self, channels: Tensor) -> Tensor:
        """Return for every input of the readers the value of the channel that it reads: [channels] -> [in]."""
        return channels.view(-1, 1, self.width).expand(-1, self.each, -1).reshape(-1)

    def gathered(self, inputs: Tensor) -> Tensor:
        """Return for every channel the values of the inputs that read it: [in] -> [channels, each]."""
        return inputs.view(-1, self.each, self.width).transpose(1, 2).reshape(-1, self.each)


def pairs(facts: Facts, *, norm_first: bool = True) -> dict[str, list[Pair]]:
    """Return the pairs of every block by its name, in the order of the forward.

    Args:
        facts: of the model, of which the blocks may have unlike shapes.
        norm_first: whether its norms come before attention and FFN (`tree.norm_first`), where the family has a choice.
    """
    table = families()[facts.family]
    there = {*facts.shapes, *(n.rpartition(".")[0] for n in facts.norms)}
    stack = f".{table.blocks}."
    roots = {(f".{n}".partition(stack)[0] + stack).strip(".") for n in facts.shapes}
    found: dict[str, list[Pair]] = {}
    for root in sorted(roots):  # one, or none where no block has a linear
        for index, config in enumerate(facts.layout):
            block = f"{root}.{index}"
            every = _pairs(table, config, facts, f"{block}.", norm_first=norm_first)
            found[block] = [p for p in every if there.issuperset((p.before, *p.after))]
    return found


def inside(found: Iterable[Pair], names: Collection[str]) -> list[Pair]:
    """Return the pairs of which a pass may change every linear, those being the named ones."""
    return [p for p in found if {*p.after, *([p.before] if p.linear else [])} <= set(names)]


def _pairs(table: Family, config: BlockConfig, facts: Facts, prefix: str, *, norm_first: bool) -> Iterator[Pair]:
    """Yield the pairs that such a block has if all its modules are there."""
    *qkv, output = (prefix + name for name in table.qkvo)
    up, down = tuple(prefix + name for name in table.up), prefix + table.down
    of_norms = [_of_norm(prefix + norm, read, facts) for norm, read in zip(table.norms, (tuple(qkv), up), strict=False)]
    of_norms = of_norms if norm_first else []
    yield from of_norms[:1]
    if config.heads:
        yield Pair(
            before=qkv[-1],
            after=(output,),
            linear=True,
            channels=config.kv_heads * config.head_dim,
            first=2 * config.heads * config.head_dim if table.fused else 0,
            each=config.heads // config.kv_heads,
            width=config.head_dim,
        )
    yield from of_norms[1:]
    if table.factor:
        yield Pair(before=prefix + table.factor, after=(down,), linear=True, channels=config.ffn, width=config.ffn)


def _of_norm(norm: str, after: tuple[str, ...], facts: Facts) -> Pair:
    size = facts.norms.get(f"{norm}.weight", 0)
    return Pair(before=norm, after=after, linear=False, channels=size, width=size)
