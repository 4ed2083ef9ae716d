"""Which weights stay: exact counts per matrix, per row or over all matrices, and N of every M.

Scores are floats `[out, in]`, the highest stay; masks are bool `[out, in]`, True = kept.  No value decides alone: of
equal scores those that come first go first, so every count is exact and the same everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from torch import Tensor

from compress.contracts import PassSettings
from compress.errors import BadModel, BadSettings, BrokenPromise
from compress.facts import Facts, MaskFact

Scope = Literal["matrix", "row", "global"]


@dataclass(frozen=True)
class Pattern:
    """Where zeros may lie: anywhere, or so that of every `group` neighbours along `in` at most `keep` stay."""

    keep: int = 0
    group: int = 0  # 0 = unstructured

    @staticmethod
    def parse(text: str) -> Pattern:
        """Read `unstructured` or `N:M`.

        Raises:
            PydanticCustomError: it is neither (a ValueError, which settings report with file and line).
        """
        if text == "unstructured":
            return Pattern()
        found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
        if not found or int(found[1]) >= int(found[2]):
            message = "must be 'unstructured' or N:M with N < M, got '{got}'"
            raise PydanticCustomError("pattern", message, {"got": text})
        return Pattern(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}" if self.group else "unstructured"

    @property
    def sparsity(self) -> float | None:
        """The share of zeros that N:M fixes; None when unstructured."""
        return 1 - self.keep / self.group if self.group else None


class MaskSettings(PassSettings):
    """What every pass that makes masks takes."""

    pattern: Annotated[str, AfterValidator(lambda text: str(Pattern.parse(text)))] = Field(
        "unstructured", description="'unstructured', or N:M: of every M neighbours along the inputs keep N"
    )
    sparsity: float | None = Field(None, ge=0, lt=1, description="share of zeros; empty = 0.5, or what N:M fixes")


def keep_top(score: Tensor, sparsity: float, scope: Literal["matrix", "row"] = "matrix") -> Tensor:
    """Return the mask that prunes the lowest `round(sparsity * n)` scores of the matrix, or of each row."""
    rows = score if scope == "row" else score.reshape(1, -1)
    return ~_lowest(rows, round(sparsity * rows.shape[-1])).view(score.shape)


def keep_n_of_m(score: Tensor, n: int, m: int) -> Tensor:
    """Return the mask that keeps the highest n of every m neighbours along `in`; m must divide `in`."""
    return ~_lowest(score.reshape(score.shape[0], -1, m), m - n).view(score.shape)


def keep_top_of_all(scores: Mapping[str, Tensor], sparsity: float, floors: Mapping[str, int]) -> dict[str, Tensor]:
    """Return masks that together prune the lowest `round(sparsity * all)` scores (all on one device).

    `floors` tells how many weights of each matrix stay at least: its highest are out of reach before the rest compete.
    """
    reachable = {n: _lowest(s.reshape(1, -1), s.numel() - floors[n]).view(-1) for n, s in scores.items()}
    pool = torch.cat([s.reshape(-1).masked_fill(~reachable[n], torch.inf) for n, s in scores.items()])
    pruned = _lowest(pool.view(1, -1), round(sparsity * pool.numel())).view(-1)
    parts = torch.split(pruned, [s.numel() for s in scores.values()])
    return {n: ~part.view(s.shape) for (n, s), part in zip(scores.items(), parts, strict=True)}


def sparsity_of(masks: Iterable[Tensor]) -> float:
    """Return the share of zeros over all masks together."""
    masks = list(masks)
    return sum(int((~m).sum()) for m in masks) / sum(m.numel() for m in masks)


def fact(mask: Tensor) -> MaskFact:
    """Return what is known of a mask by itself; its pattern is what was asked for, never inferred."""
    return MaskFact("unstructured", sparsity_of([mask]))


def apply_(weight: Tensor, mask: Tensor) -> None:
    """Set to +0 what the mask prunes; what it keeps stays bit for bit."""
    with torch.no_grad():
        weight.masked_fill_(~mask, 0)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are equal to the last bit, so that -0 is not 0 and NaN is itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8).to(a.device))


def _lowest(score: Tensor, count: int) -> Tensor:
    """Return True at the `count` lowest entries of the last dimension; of equal ones, at those that come first."""
    if score.isnan().any():
        raise ValueError("scores hold NaN, which has no order")
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    pivot = score.kthvalue(count, dim=-1, keepdim=True).values
    below, equal = score < pivot, score == pivot
    missing = count - below.sum(-1, keepdim=True)
    return below | (equal & (equal.cumsum(-1) <= missing))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a pass asks of its masks: planned on facts, made from scores, checked on what came out.

    A mask only grows: what an earlier mask pruned stays pruned and counts towards the sparsity.

    Attributes:
        pattern: where zeros may lie.
        sparsity: share of zeros, 0 <= sparsity < 1.
        scope: what the share is of, when unstructured.
        minimum_density: with scope `global`, the share of every matrix that stays at least.
    """

    pattern: Pattern
    sparsity: float
    scope: Scope = "matrix"
    minimum_density: float = 0.0

    @staticmethod
    def of(settings: MaskSettings, scope: Scope = "matrix", minimum_density: float = 0.0) -> Rule:
        """Return the rule that settings give.

        Raises:
            BadSettings: `sparsity` contradicts the pattern, or `scope` goes with N:M.
        """
        pattern = Pattern.parse(settings.pattern)
        fixed, asked = pattern.sparsity, settings.sparsity
        if fixed is not None and asked is not None and abs(asked - fixed) > 1e-3:  # 0.667 is 1:3 as people write it
            raise BadSettings(f"{pattern} fixes the sparsity at {fixed:g}, got {asked:g}; leave it out", key="sparsity")
        if fixed is not None and scope != "matrix":
            raise BadSettings(f"{pattern} fixes where zeros lie, got {scope!r}; leave it out", key="scope")
        sparsity = fixed if fixed is not None else 0.5 if asked is None else asked
        return Rule(pattern=pattern, sparsity=sparsity, scope=scope, minimum_density=minimum_density)

    def plan(self, facts: Facts, names: Sequence[str]) -> Facts:
        """Return the facts with the masks that this rule will leave on the named linears.

        Raises:
            BadSettings: M does not divide the inputs of a linear, the minimum density leaves too few weights to prune,
                or every named linear is sparser already.
        """
        shapes = [facts.shapes[n] for n in names]
        for name, (_, inputs) in zip(names, shapes, strict=True):
            if self.pattern.group and inputs % self.pattern.group:
                what = f"{self.pattern} does not divide the {inputs} inputs of {name}"
                raise BadSettings(f"{what}; exclude it or choose another pattern", key="pattern")
        sizes = [rows * inputs for rows, inputs in shapes]
        free, asked = sum(n - self._floor(n) for n in sizes), round(self.sparsity * sum(sizes))
        if free < asked:
            what = f"leaves {free} weights to prune where sparsity {self.sparsity:g} asks for {asked}"
            raise BadSettings(f"{what}, got {self.minimum_density:g}; lower one of them", key="minimum_density")
        old = [facts.masks.get(n, MaskFact("unstructured", 0.0)) for n in names]
        least = min(o.sparsity for o in old)
        if not self.pattern.group and least > self.sparsity:
            what = f"earlier passes prune {least:g} of every chosen linear and masks only grow"
            raise BadSettings(f"{what}, got {self.sparsity:g}; ask for more", key="sparsity")
        return facts.after(masks={**facts.masks, **{n: self._after(o) for n, o in zip(names, old, strict=True)}})

    def masks(self, scores: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the masks of the scored linears, each within the old one where there is one.

        Args:
            scores: per linear `[out, in]`, the highest stay.
            old: masks of earlier passes; those of other linears do not matter.

        Raises:
            BadModel: a score is NaN.
        """
        for name, score in scores.items():
            if score.isnan().any():
                raise BadModel(f"{name}: a score is NaN, so the weights or the data through them are not finite")
        before = {n: _before(old, n, s) for n, s in scores.items()}
        scores = {n: s.masked_fill(~before[n], -torch.inf) for n, s in scores.items()}
        if self.scope == "global":
            floors = {n: min(self._floor(m.numel()), int(m.sum())) for n, m in before.items()}
            new = keep_top_of_all(scores, self.sparsity, floors)
        elif self.pattern.group:
            new = {n: keep_n_of_m(s, self.pattern.keep, self.pattern.group) for n, s in scores.items()}
        else:
            new = {n: keep_top(s, self.sparsity, self.scope) for n, s in scores.items()}
        return {n: m & before[n] for n, m in new.items()}

    def check(self, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
        """Raise `BrokenPromise` unless the new masks lie within the old ones and hold this rule's exact counts.

        In every unit (matrix, row, group of M, or all together) as many are pruned as asked, or as before if more.
        """
        before = {n: _before(old, n, m) for n, m in new.items()}
        for name, mask in new.items():
            if torch.any(mask & ~before[name]):
                raise BrokenPromise(f"{name}: weights that an earlier mask pruned came back")
            if self.scope == "global" and mask.sum() < min(self._floor(mask.numel()), int(before[name].sum())):
                raise BrokenPromise(f"{name}: fewer weights stay than minimum_density {self.minimum_density:g} asks")
        if self.scope == "global":
            joined = [torch.cat([m.reshape(-1) for m in masks.values()]) for masks in (before, new)]
            self._check_units("all linears together", *joined)
            return
        for name, mask in new.items():
            self._check_units(name, before[name], mask)

    def _check_units(self, name: str, old: Tensor, new: Tensor) -> None:
        size = self.pattern.group or (new.shape[-1] if self.scope == "row" else new.numel())
        was, now = ((~m).reshape(-1, size).sum(-1) for m in (old, new))
        wrong = (now != was.clamp(min=round(self.sparsity * size))).sum()
        if wrong:
            raise BrokenPromise(
                f"{name}: {wrong} of {len(now)} counts of zeros miss {self.sparsity:g} ({self.pattern})"
            )

    def _floor(self, size: int) -> int:
        # 1e-9: 0.07 * 100 is a hair over 7 and still means 7
        return math.ceil(self.minimum_density * size - 1e-9) if self.scope == "global" else 0

    def _after(self, old: MaskFact) -> MaskFact:
        """Both patterns hold afterwards; the sparser, then the finer one is told."""
        held = [p for p in (self.pattern, Pattern.parse(old.pattern)) if p.group]
        told = min(held, key=lambda p: (p.keep / p.group, p.group), default=self.pattern)
        return MaskFact(str(told), max(old.sparsity, self.sparsity))


def _before(old: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    return old[name].to(like.device) if name in old else torch.ones_like(like, dtype=torch.bool)
