"""What DSEE prunes and what it updates, by facts alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compress import tree
from compress.errors import BadSettings
from compress.facts import Facts
from compress.families import families
from passes import _adapter, _narrowing
from passes._masks import Rule
from passes._narrowing import Plan
from passes.dsee.settings import DseeSettings


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is worked on.

    Attributes:
        pruned: block linears that get a mask.
        updated: those of them that get the update.
        rule: of the masks.
    """

    pruned: tuple[str, ...]
    updated: tuple[str, ...]
    rule: Rule

    def trainable(self, facts: Facts, settings: DseeSettings) -> int:
        """Return how many numbers are trained: rank (out + in) + entries a linear; no classifier's."""
        shapes = [facts.shapes[n] for n in self.updated]
        return sum(settings.rank * (out + inputs) + settings.entries for out, inputs in shapes)


def choose(settings: DseeSettings, facts: Facts) -> Chosen:
    """Return what these settings choose of a model with these facts.

    Raises:
        BadSettings: nothing to update or to train, or more than a linear can hold.
    """
    if facts.task == "embedding":
        raise BadSettings("an embedding model has no loss of its own to tune with; 'magnitude' would do", key="use")
    _check_update(settings)
    pruned = tree.select(list(facts.shapes), settings.include, settings.exclude)
    updated = pruned if settings.linears == "all" else [n for n in pruned if _is_qv(n, facts)]
    if not updated:
        raise BadSettings("no query or value is among the chosen linears, got 'qv'; 'all' would do", key="linears")
    _adapter.check_plain(facts, updated)
    _check_sizes(settings, facts, updated)
    return Chosen(pruned=tuple(pruned), updated=tuple(updated), rule=Rule.of(settings))


def narrowed(settings: DseeSettings, facts: Facts, chosen: Chosen) -> Plan:
    """Return what becomes of the blocks when heads and neurons are removed.

    Raises:
        BadSettings: it cannot be, or goes with another setting.
    """
    for key in ("pattern", "sparsity"):
        if key in settings.model_fields_set:
            what = "no mask is made where heads or neurons are removed"
            raise BadSettings(f"{what}, got {getattr(settings, key)}; leave one of them out", key=key)
    if settings.merge == "branch":
        raise BadSettings("smaller matrices take the whole update, got 'branch'; 'inside' would do", key="merge")
    try:
        planned = _narrowing.plan(settings.asked, facts)
    except BadSettings as error:
        renamed = f"structured_{error.key}" if error.key in ("heads", "neurons") else error.key
        raise BadSettings(str(error), key=renamed) from None
    if settings.structured_heads and not {n for n in facts.shapes if _is_qv(n, facts)} <= set(chosen.updated):
        what = "heads are scored by the updates of their queries and values, and some have none"
        raise BadSettings(f"{what}, got {settings.structured_heads:g}; do not exclude them", key="structured_heads")
    _check_sizes(settings, planned.facts, chosen.updated)
    return planned


def _check_sizes(settings: DseeSettings, facts: Facts, updated: Iterable[str]) -> None:
    for name in updated:
        out, inputs = facts.shapes[name]
        if settings.rank > min(out, inputs):
            raise BadSettings(f"must be <= {min(out, inputs)}, the rank of {name}, got {settings.rank}", key="rank")
        if settings.entries > out * inputs:
            size = f"{out * inputs}, the size of {name}"
            raise BadSettings(f"must be <= {size}, got {settings.entries}", key="entries")


def _check_update(settings: DseeSettings) -> None:
    if settings.rank == 0:
        if settings.entries == 0:
            raise BadSettings("rank 0 and no entries leave nothing to train, got 0; give one of them", key="entries")
        if settings.alpha is not None:
            raise BadSettings(f"belongs to the low-rank part, got {settings.alpha:g} at rank 0", key="alpha")
        if settings.merge == "branch":
            raise BadSettings("rank 0 leaves no branch, got 'branch'; 'inside' would do", key="merge")
        if settings.entries and settings.support == "decomposition":
            what = "takes the rank of the update, which is 0"
            raise BadSettings(f"'decomposition' {what}; 'top-magnitude' would do", key="support")
    elif settings.entries == 0 and "support" in settings.model_fields_set:
        raise BadSettings(f"there are no entries to place, got {settings.support!r}; leave it out", key="support")


def _is_qv(name: str, facts: Facts) -> bool:
    table = families()[facts.family]
    inner = table.qkvo[:1] if table.fused else (table.qkvo[0], table.qkvo[2])
    return any(name.endswith(f".{part}") for part in inner)
