"""The weight expression: a linear whose weight is a function of frozen and trained tensors.

    What = M * (W + s (B A + S2))       additive: `mask_lora`; without M while it trains: `lora_prune`, `lora`
    What = M * (W * (B A) + s S2)       multiplicative: `scale_lora`
    What = M * (W + s S2) + s B A       `branch`: the low-rank part lies outside the mask and stays beside the weight

W `[out, in]` is frozen with its pruned entries at zero, M `[out, in]` is bool (True = kept), B `[out, rank]` and
A `[rank, in]` are trained, s is a number.  S2 is sparse on a fixed support and held as flat indices and as many trained
values, 0 at the start; it or the low-rank part may be missing.  One pure function, `weight_of`, is the forward, the
merge and, computed again in the backward, the gradient; so merged equals unmerged, no tensor of the weight's size waits
for the backward, and a method that adds a term to the expression adds it in one place.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from compress import tree
from compress.errors import BadSettings, CompressError
from compress.facts import Facts
from passes._adapter.adapter import Adapter, initial, plain
from passes._adapter.expression import FORMS, Form, linear, precision_of, weight_of

__all__ = [
    "FORMS",
    "Adapter",
    "Form",
    "attach_",
    "check_plain",
    "initial",
    "linear",
    "merge_",
    "plain",
    "plain_linear",
    "precision_of",
    "seed_of",
    "trained",
    "weight_of",
]


def attach_(
    model: nn.Module,
    names: Iterable[str],
    masks: Mapping[str, Tensor],
    *,
    form: str,
    rank: int,
    scale: float,
    seed: int,
    supports: Mapping[str, Tensor] | None = None,
) -> dict[str, Adapter]:
    """Put an adapter in the place of each named linear and return them by name; each has a seed of its own name."""
    adapters = {}
    for name in names:
        layer, own = plain_linear(model, name), seed_of(name, seed)
        support = (supports or {}).get(name)
        adapters[name] = Adapter(layer, masks.get(name), form=form, rank=rank, scale=scale, seed=own, support=support)
        tree.replace_(model, name, adapters[name])
    return adapters


def plain_linear(model: nn.Module, name: str) -> nn.Linear:
    """Return the linear of a name.

    Raises:
        CompressError: it is of a subclass, which computes something else with its weight.
    """
    layer = model.get_submodule(name)
    if type(layer) is not nn.Linear:
        raise CompressError(f"{name}: a {type(layer).__name__} takes no adapter; only a plain linear does")
    return layer


def seed_of(name: str, seed: int) -> int:
    """Return the seed of what is random in one linear."""
    return (seed + zlib.crc32(name.encode())) % 2**63


def check_plain(facts: Facts, names: Iterable[str]) -> None:
    """Raise `BadSettings` for a linear that has a low-rank branch, beside which nothing else can be trained."""
    if branched := [n for n in names if n in facts.branches]:
        what = f"{branched[0]} has a low-rank branch from an earlier pass, and only plain linears are trained"
        raise BadSettings(f"{what}; exclude it", key="exclude")


def trained(adapters: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return what adapters, by name, train: the parameters whose names begin with `lora_`."""
    return {
        f"{n}.{inner}": p for n, m in adapters.items() for inner, p in m.named_parameters() if inner.startswith("lora_")
    }


def merge_(model: nn.Module) -> list[str]:
    """Turn every adapter below the module into a plain linear and return their names.

    Raises:
        CompressError: there is none, as after a merge.
    """
    adapters = {n: m for n, m in model.named_modules() if isinstance(m, Adapter)}
    if not adapters:
        raise CompressError("no adapter to merge: none was attached, or they are merged already")
    for name, adapter in adapters.items():
        tree.replace_(model, name, adapter.merge())
    return list(adapters)
