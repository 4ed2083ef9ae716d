"""Counted memory of a training step: a decoder layer of a 0.5 B Llama whose linears are trained in some way.

What is counted of the whole model: parameters in bfloat16, AdamW's two moments of what is trained, and for all layers
but the one that computes, gradients and what autograd keeps for the backward (`saved_tensors_hooks`, each storage once,
parameters not).  Of that one layer it is the highest sum of all storages that live at once over forward and backward,
temporaries among them.  What single kernels use inside is not seen, nor what lies outside the layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from compress import tree
from compress.facts import GridFact
from passes import _quant
from passes.l4q.linear import Rounded

HALF_BILLION = LlamaConfig(
    vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
    num_key_value_heads=2, tie_word_embeddings=True, attn_implementation="sdpa",
)  # fmt: skip
RANK = 4

Make = Callable[[nn.Linear], nn.Module]


@dataclass(frozen=True)
class Counted:
    """Bytes of a step of the whole model.

    Attributes:
        parameters: of the model, and what is trained beside them.
        optimizer: AdamW's moments.
        waiting: gradients and saved tensors of all layers but one.
        peak: of that one, all that lives at once.
    """

    parameters: int
    optimizer: int
    waiting: int
    peak: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.optimizer + self.waiting + self.peak


class PlainLora(nn.Module):
    """`x W^T + s (x A^T) B^T`, as LoRA on 16-bit weights is trained: no weight is ever merged."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(RANK, layer.in_features) / 30)
        self.b = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        low = functional.linear(x, self.a.to(x.dtype))
        return functional.linear(x, self.weight) + 2 * functional.linear(low, self.b.to(x.dtype))


class NaiveQat(PlainLora):
    """`x Q(W + s B A)^T` with trained steps, left to autograd."""

    def __init__(self, layer: nn.Linear, fact: GridFact) -> None:
        super().__init__(layer)
        self.fact = fact
        self.steps = nn.Parameter(_quant.span(layer.weight.detach(), fact).scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        low, high = -(2 ** (self.fact.bits - 1)), 2 ** (self.fact.bits - 1) - 1
        whole = self.weight.float() + 2 * self.b @ self.a
        steps = self.steps.unsqueeze(-1)
        scaled = (whole.view(*self.steps.shape, -1) / steps).clamp(low, high)
        rounded = scaled + (scaled.round() - scaled).detach()
        return functional.linear(x, (rounded * steps).view_as(whole).to(x.dtype))


def l4q(fact: GridFact) -> Make:
    """Return what makes L4Q's linear."""

    def make(layer: nn.Linear) -> nn.Module:
        steps = _quant.span(layer.weight.detach(), fact)
        return Rounded(layer, None, fact, steps, rank=RANK, alpha=2.0, seed=0)

    return make


def counted(make: Make, tokens: int, config: LlamaConfig = HALF_BILLION) -> Counted:
    """Return the bytes of a training step.

    Args:
        make: what stands in the place of a linear of a layer, `[out, in]` in bfloat16, while it is trained.
        tokens: of the one sequence of a step.
        config: of the model.
    """
    torch.manual_seed(0)
    layer = LlamaDecoderLayer(config, 0).to(torch.bfloat16)  # type: ignore[no-untyped-call]
    layer.requires_grad_(False)
    for name, linear in [(n, m) for n, m in layer.named_modules() if isinstance(m, nn.Linear)]:
        tree.replace_(layer, name, make(linear))
    trained = sum(p.nbytes for p in layer.parameters() if p.requires_grad)
    x = torch.randn(1, tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    places = LlamaRotaryEmbedding(config)(x, torch.arange(tokens)[None])
    own = [*layer.parameters(), *layer.buffers(), x, *places]
    saved: dict[int, int] = {}
    known = {t.untyped_storage()._cdata for t in own}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with Live(own) as live, torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        layer(x, position_embeddings=places, attention_mask=None).sum().backward()
    outside = 2 * (config.vocab_size + 1) * config.hidden_size
    whole = sum(p.nbytes for p in layer.parameters())
    return Counted(
        parameters=outside + config.num_hidden_layers * whole,
        optimizer=2 * config.num_hidden_layers * trained,
        waiting=(config.num_hidden_layers - 1) * (sum(saved.values()) + x.nbytes + trained),
        peak=live.peak + x.nbytes,
    )


class Live(TorchDispatchMode):
    """Notes the highest sum of bytes of all storages that are made inside and live at once.

    Args:
        own: tensors from before, which are not counted.
    """

    def __init__(self, own: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {t.untyped_storage()._cdata for t in own}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function and take note of what it made."""
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
