"""One linear to prune, and what it may become."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from passes._layerwise import Layer
from passes._masks import Rule


@dataclass(frozen=True)
class Task:
    """One linear to prune: what it reads, what is asked, and what an earlier mask kept."""

    layer: Layer
    rule: Rule
    old: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight as it is, float32 `[out, in]`."""
        return self.layer.linear.weight.detach().float()

    def mask(self, score: Tensor) -> Tensor:
        """Return the mask that the rule makes of scores."""
        name = self.layer.name
        return self.rule.masks({name: score}, {name: self.old})[name]


@dataclass(frozen=True)
class Attempt:
    """What a linear may become: float32 `[out, in]`, zero where its mask prunes."""

    what: str
    weight: Tensor
    mask: Tensor
