"""How a variant's tensors begin, without training: the parent's, chosen, pooled or multiplied."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compress import blocks, tree
from compress.artifact import Artifact
from compress.blocks import Cut
from compress.facts import BlockConfig
from compress.families import Family
from passes._library.formulas import composed, led, pooled, repeated, spread
from passes._library.making import MASK, copied, name_of, reshape_, state_of
from passes._library.space import Variant
from passes._library.worth import Statistics
from passes._narrowing import keep


@torch.no_grad()
def initial(artifact: Artifact, variant: Variant, statistics: Statistics) -> dict[str, Tensor]:
    """Return the state of the changed part as it begins; new tensors, the masks of its linears among them.

    Args:
        artifact: the parent, which stays as it is.
        variant: what to make.
        statistics: of its block, as `statistics` gathers them for this variant.
    """
    table, name = tree.family(artifact.model), name_of(artifact.model, variant.block)
    with artifact.opened(name) as block:
        was = tree.shape(block, table)
        given = {n: t.clone() for n, t in state_of(block, table, variant.part).items()}
        made = copied(block, artifact.model)
    reshape_(made, artifact.model, variant.config)
    wanted = state_of(made, table, variant.part)
    begun, cuts = _begun(table, variant, was, given, statistics)
    masks = {n: artifact.masks[f"{name}.{n}"] for n in _linears(wanted) if f"{name}.{n}" in artifact.masks}
    state = {n: begun.get(n, given[n]) if n in given else begun[n] for n in wanted}
    return state | {f"{n}{MASK}": mask for n, mask in blocks.cut_masks(masks, cuts).items()}


def _begun(
    table: Family, variant: Variant, was: BlockConfig, given: Mapping[str, Tensor], statistics: Statistics
) -> tuple[dict[str, Tensor], dict[str, Cut]]:
    """Return the tensors that are not the parent's, and which rows and columns of its linears stay."""
    now = variant.config
    if variant.part == "ffn":
        if now.linear_ffn and was.ffn:
            up = table.factor or table.up[0]
            return _composed(given, table.down, given[f"{up}.weight"], given.get(f"{up}.bias")), {}
        if 0 < now.ffn < was.ffn:
            assert statistics.neurons is not None, variant.key
            kept = keep(statistics.neurons, now.ffn, variant.group)
            cuts: dict[str, Cut] = {**dict.fromkeys(table.up, (kept, None)), table.down: (None, kept)}
            return _cut(given, cuts), cuts
    elif now.linear_attention and was.heads:
        return _alone(table, was, given), {}
    elif variant.select:
        assert statistics.heads is not None, variant.key
        return _selected(table, was, given, keep(statistics.heads, now.kv_heads))
    elif 0 < now.kv_heads < was.kv_heads:
        both = [n for n in given if n.rpartition(".")[0] in table.qkvo[1:3]]
        return {n: pooled(given[n], was.kv_heads, now.kv_heads) for n in both}, {}
    return {}, {}


def _alone(table: Family, was: BlockConfig, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the linear that is attention of every token to itself."""
    found = [given.get(f"{table.qkvo[-2]}.{kind}") for kind in ("weight", "bias")]
    if table.fused:  # the values are the last rows
        found = [t if t is None else t[-len(t) // 3 :] for t in found]
    each = was.heads // was.kv_heads
    weight, bias = (t if t is None else repeated(t, was.kv_heads, each) for t in found)
    assert weight is not None
    return _composed(given, table.qkvo[-1], weight, bias)


def _composed(given: Mapping[str, Tensor], outer: str, inner: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    weight, found = composed(given[f"{outer}.weight"], inner, given.get(f"{outer}.bias"), bias)
    return {f"{outer}.weight": weight, **({} if found is None else {f"{outer}.bias": found})}


def _selected(
    table: Family, was: BlockConfig, given: Mapping[str, Tensor], leaders: Tensor
) -> tuple[dict[str, Tensor], dict[str, Cut]]:
    """Return attention with some of its key heads, and all queries; those whose head is gone add nothing."""
    query, key, value, output = table.qkvo
    width = was.heads // was.kv_heads * was.head_dim  # of the queries of one key head
    order = led(leaders, was.kv_heads)
    queries, keys = spread(order.reshape(-1), width), spread(leaders, was.head_dim)
    cuts: dict[str, Cut] = {query: (queries, None), key: (keys, None), value: (keys, None), output: (None, queries)}
    made = _cut(given, cuts)
    made[f"{output}.weight"].view(-1, *order.shape, width)[:, :, 1:] = 0
    return made, cuts


def _cut(given: Mapping[str, Tensor], cuts: Mapping[str, Cut]) -> dict[str, Tensor]:
    """Return weights and biases cut."""
    weights = blocks.cut_masks({n: given[f"{n}.weight"] for n in cuts}, cuts)
    rows = {f"{n}.bias": rows for n, (rows, _) in cuts.items() if rows is not None and f"{n}.bias" in given}
    biases = {n: given[n].index_select(0, kept.to(given[n].device)) for n, kept in rows.items()}
    return {f"{n}.weight": weight for n, weight in weights.items()} | biases


def _linears(state: Mapping[str, Tensor]) -> list[str]:
    return [n.removesuffix(".weight") for n in state if n.endswith(".weight")]
