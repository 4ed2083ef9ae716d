"""Where a scale can be folded: a norm or a linear, and the linears that alone read what it gives."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.facts import BlockConfig, Facts
from compress.families import Family, families


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A module that gives channels, and the linears that alone read them, with no nonlinearity in between.

    Attributes:
        block: name of the block that both are in.
        before: name of a norm or a linear.
        after: names of the linears that read it.
        linear: whether `before` is a linear.
        channels: how many channels it gives.
        first: the row of `before` that makes the first of them; all before it make something else.
        each: how many inputs read one channel: the query heads of a key head, else 1.
        width: neighbours that are read together: a head, where there are several; else all channels.
    """

    block: str
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


def pairs(facts: Facts, names: Collection[str], *, norm_first: bool = True) -> list[Pair]:
    """Return the pairs of which every linear is among the named ones, in the order of the forward.

    Args:
        facts: of the model, of which the blocks may have unlike shapes.
        names: linears that may change.
        norm_first: whether its norms come before attention and FFN (`tree.norm_first`), where the family has a choice.
    """
    table = families()[facts.family]
    there = {*names, *(n.rpartition(".")[0] for n in facts.norms)}
    stack = f".{table.blocks}."
    roots = {(f".{n}".partition(stack)[0] + stack).strip(".") for n in facts.shapes}
    return [
        pair
        for root in roots  # one, or none where no block has a linear
        for index, config in enumerate(facts.layout)
        for pair in _pairs(table, config, facts, f"{root}.{index}", norm_first=norm_first)
        if there.issuperset((pair.before, *pair.after))
    ]


def pairs_in(artifact: Artifact, names: Collection[str]) -> list[Pair]:
    """Return the pairs of a model of which every linear is among the named ones."""
    facts = tree.facts(artifact.model, artifact.task)
    return pairs(facts, names, norm_first=tree.norm_first(artifact.model))


def _pairs(table: Family, config: BlockConfig, facts: Facts, block: str, *, norm_first: bool) -> Iterator[Pair]:
    """Yield the pairs that such a block has if all its modules are there."""
    *qkv, output = (f"{block}.{name}" for name in table.qkvo)
    up, down = tuple(f"{block}.{name}" for name in table.up), f"{block}.{table.down}"
    norms = table.norms if norm_first else ()
    of_norms = [
        _of_norm(block, f"{block}.{norm}", after, facts) for norm, after in zip(norms, (tuple(qkv), up), strict=False)
    ]
    yield from of_norms[:1]
    if config.heads:
        yield Pair(
            block=block,
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
        size, before = config.ffn, f"{block}.{table.factor}"
        yield Pair(block=block, before=before, after=(down,), linear=True, channels=size, width=size)


def _of_norm(block: str, norm: str, after: tuple[str, ...], facts: Facts) -> Pair:
    size = facts.norms.get(f"{norm}.weight", 0)
    return Pair(block=block, before=norm, after=after, linear=False, channels=size, width=size)
