"""What is trained, by facts alone, and what cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from compress import tree
from compress.errors import BadSettings
from compress.facts import Facts
from compress.families import families
from passes import _adapter
from passes._train import classifier, count_whole, norms_of, pruned_of, whole_names
from passes.recover.settings import FILLING, KEEPING, ONLY_WITH, RANKED, RecoverSettings


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is trained, by name.

    Attributes:
        linears: block linears whose weight changes.
        biases: their biases that change, by parameter name.
        norms: norm parameters, their biases too.
        downs: of the linears, those that read the neurons of an FFN.
        rest: whether all that lies outside the block linears is trained as well.
        classifier: whether everything outside the backbone of a task model is trained whole.
        count: trained numbers, but a classifier's, whose size is not among the facts; pruned weights do not count.
    """

    linears: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    downs: tuple[str, ...] = ()
    rest: bool = False
    classifier: bool = False
    count: int = 0

    def changes(self, model: PreTrainedModel) -> set[str]:
        """Return the names of the parameters that may differ afterwards."""
        names = {*self.biases, *self.norms, *(f"{n}.weight" for n in self.linears)}
        if self.classifier:
            names |= set(classifier(model))
        if self.rest:
            names |= set(whole_names(model, self.linears))
        return names


def choose(settings: RecoverSettings, facts: Facts) -> Chosen:
    """Return what these settings train on a model with these facts.

    Raises:
        BadSettings: it cannot be.
    """
    method = settings.method
    for key, methods in ONLY_WITH.items():
        if key in settings.model_fields_set and method not in methods:
            wanted = " or ".join(repr(m) for m in methods)
            raise BadSettings(f"only with method {wanted}, got method {method!r}; leave it out", key=key)
    if "probes" in settings.model_fields_set and settings.support != "squared-gradients":
        what = f"only with support 'squared-gradients', got {settings.support!r}"
        raise BadSettings(f"{what}; leave it out", key="probes")
    if facts.task == "embedding":
        raise BadSettings("an embedding model has no loss of its own to train with; leave recover out", key="use")
    linears = _linears(settings, facts)
    _check(settings, facts, linears)
    biases = [f"{n}.bias" for n in linears if f"{n}.bias" in facts.biases]
    table = families()[facts.family]
    downs = [n for n in linears if re.search(rf"\.\d+\.{re.escape(table.down)}$", n)]
    if method == "ia3":
        biases = [n for n in biases if n.removesuffix(".bias") not in downs]
    elif method not in ("full", "scale_bias_norm") or not settings.bias:
        biases = []
    norms = norms_of(facts) if method in ("scale_bias_norm", "ln_tuning") else []
    return Chosen(
        linears=tuple(linears),
        biases=tuple(biases),
        norms=tuple(norms),
        downs=tuple(downs),
        rest=method == "full",
        classifier=facts.task != "causal-lm" and method != "full",
        count=_count(settings, facts, linears, biases, norms, downs),
    )


def entries(settings: RecoverSettings, surviving: int) -> int:
    """Return how many of the surviving weights a sparse delta trains."""
    return max(round(settings.share * surviving), 1)


def _linears(settings: RecoverSettings, facts: Facts) -> list[str]:
    if settings.method != "ln_tuning":
        return tree.select(list(facts.shapes), settings.include, settings.exclude)
    for key in ("include", "exclude"):
        if patterns := getattr(settings, key):
            raise BadSettings(f"chooses linears, and 'ln_tuning' trains none, got {list(patterns)}", key=key)
    if not facts.norms:
        raise BadSettings(f"'ln_tuning': the model ({facts.family}) has no norm; 'ia3' would do", key="method")
    return []


def _check(settings: RecoverSettings, facts: Facts, linears: Sequence[str]) -> None:
    """Raise `BadSettings` where the method does not fit the masks, the branches or the shapes of its linears."""
    if settings.method != "full":
        _adapter.check_plain(facts, linears)
    method, masked = settings.method, [n for n in linears if n in facts.masks]
    if method in FILLING and masked:
        what = f"{method!r} fills the zeros of {len(masked)} pruned linears, {masked[0]} the first"
        raise BadSettings(f"{what}; {', '.join(map(repr, KEEPING))} keep them", key="method")
    if method == "mask_lora" and not masked:
        raise BadSettings("no chosen linear has a mask, and 'mask_lora' works under one; 'lora' would do", key="method")
    if method == "adalora" and settings.steps < 2:
        raise BadSettings(f"'adalora' needs 2 steps or more to shed ranks, got {settings.steps}", key="steps")
    rank = settings.first_rank if method == "adalora" else settings.rank
    for name in linears if method in RANKED else ():
        if rank > min(facts.shapes[name]):
            first = f", which starts with {rank}" if method == "adalora" else ""
            what = f"must leave no more than {min(facts.shapes[name])}, the rank of {name}"
            raise BadSettings(f"{what}, got {settings.rank}{first}; lower it", key="rank")


def _count(
    settings: RecoverSettings,
    facts: Facts,
    linears: Sequence[str],
    biases: Sequence[str],
    norms: Sequence[str],
    downs: Sequence[str],
) -> int:
    shapes = {n: facts.shapes[n] for n in linears}
    small = sum({**facts.biases, **facts.norms}[n] for n in (*biases, *norms))
    alive = {n: math.prod(s) - pruned_of(facts, n) for n, s in shapes.items()}
    match settings.method:
        case "full":
            return count_whole(facts, linears)
        case "sparse_delta":
            return entries(settings, sum(alive.values()))
        case "scale_bias_norm":
            return sum(inputs for _, inputs in shapes.values()) + small
        case "ia3":
            return sum(inputs if n in downs else out for n, (out, inputs) in shapes.items())
        case "ln_tuning":
            return small
        case "adalora":
            return sum(settings.first_rank * (out + inputs + 1) for out, inputs in shapes.values())
    return sum(settings.rank * (out + inputs) for out, inputs in shapes.values())
