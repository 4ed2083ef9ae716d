"""Run one block: to pass the hidden states on, or just far enough to see what its linears read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import BadModel
from passes._layerwise.capture import Call, Chunk
from passes._layerwise.stream import Stream


def run(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """Return the hidden states that a block gives."""
    args, kwargs = call
    return first(block(hidden, *args, **kwargs))


def first(output: Any) -> Tensor:
    """Return the hidden states of what a block or its attention returned."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


@torch.no_grad()
def pass_(block: nn.Module, index: int, chunks: Sequence[Chunk], stream: Stream) -> None:
    """Let the chunks that are at the door of the block, number `index`, pass it."""
    for number, chunk in enumerate(chunks):
        if stream.at(number) == index:
            stream.put(number, index + 1, run(block, stream.get(number), chunk.calls[index]))


@torch.no_grad()
def groups(
    block: nn.Module, layers: Mapping[str, nn.Module], hidden: Tensor, chunk: Chunk, index: int
) -> list[list[str]]:
    """Return the layers in the order in which the block calls them, those that read the same tensor together.

    Raises:
        BadModel: a layer is called never, or more than once, or reads something else than a row for each token.
    """
    seen: list[tuple[str, Tensor]] = []  # tensors are held, so that no two have the same identity

    def see(name: str) -> Any:
        return lambda module, args: seen.append((name, args[0]))

    hooks = [layer.register_forward_pre_hook(see(name)) for name, layer in layers.items()]
    try:
        run(block, hidden, chunk.calls[index])
    finally:
        for hook in hooks:
            hook.remove()
    calls = [name for name, _ in seen]
    for name in layers:
        if calls.count(name) != 1:
            raise BadModel(f"{name}: its block calls it {calls.count(name)} times, and 1 is needed; exclude it")
    found: dict[int, list[str]] = {}
    for name, tensor in seen:
        if tensor.shape[:-1].numel() != chunk.real.numel():
            what = f"{tensor.shape[:-1].numel()} rows where there are {chunk.real.numel()} tokens"
            raise BadModel(f"{name}: reads {what}, so that none can be told from padding; exclude it")
        found.setdefault(id(tensor), []).append(name)
    return list(found.values())


@torch.no_grad()
def reads(block: nn.Module, layers: Sequence[nn.Module], hidden: Tensor, chunk: Chunk, index: int) -> list[Tensor]:
    """Return what the layers read, [tokens, in] each, padding left out; the block stops when all is seen.

    Args:
        block: that they are of.
        layers: no two that read the same tensor, as `groups` tells them.
        hidden: what the block reads.
        chunk: the windows.
        index: the block's number.

    Raises:
        BadModel: one of them is not called.
    """
    seen: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[module] = args[0]
        if len(seen) == len(layers):
            raise _Reached

    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    try:
        run(block, hidden, chunk.calls[index])
    except _Reached:
        return [seen[layer].reshape(-1, seen[layer].shape[-1])[chunk.real.reshape(-1)] for layer in layers]
    finally:
        for hook in hooks:
            hook.remove()
    raise BadModel(f"block {index}: does not call the same linears for every window")


class _Reached(Exception):
    """All is seen."""
