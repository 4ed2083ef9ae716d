"""What PERP trains: chosen by facts alone, then set up on the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from torch import nn
from transformers import PreTrainedModel

from compress import tree
from compress.artifact import Artifact
from compress.errors import BadSettings
from compress.facts import Facts
from compress.families import families
from passes import _adapter
from passes._train import Group, classifier, norms_of, thaw_
from passes.perp.settings import PerpSettings


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is trained, by name.

    Attributes:
        small: norm parameters and biases.
        linears: block linears that get an adapter.
        form: their reparametrisation.
        head: the output head, if it gets a low-rank update.
        classifier: whether everything outside the backbone of a task model is trained whole.
        unmasked: linears that lose their mask.
    """

    small: tuple[str, ...] = ()
    linears: tuple[str, ...] = ()
    form: str | None = None
    head: str | None = None
    classifier: bool = False
    unmasked: frozenset[str] = frozenset()

    def trainable(self, facts: Facts, rank: int) -> int:
        """Return how many parameters are trained: small ones, and rank (out + in) a linear; no classifier's."""
        sizes = {**facts.biases, **facts.norms}
        shapes = [facts.shapes[n] for n in self.linears]
        if self.head and facts.head:
            shapes.append(facts.head[1])
        return sum(sizes[n] for n in self.small) + sum(rank * (out + inputs) for out, inputs in shapes)

    def changes(self, model: PreTrainedModel) -> set[str]:
        """Return the names of the parameters that may differ afterwards."""
        names = {*self.small, *(f"{n}.weight" for n in self.linears)}
        if self.head:
            names.add(f"{self.head}.weight")
        return names | set(classifier(model) if self.classifier else ())


def choose(settings: PerpSettings, facts: Facts) -> Chosen:
    """Return what these settings train on a model with these facts.

    Raises:
        BadSettings: it cannot be.
    """
    wanted = settings.train
    if len(set(wanted)) < len(wanted):
        raise BadSettings(f"must name each subset once, got {list(wanted)}", key="train")
    if facts.task == "embedding" and settings.mode == "retrain":
        raise BadSettings(
            "an embedding model has no loss of its own to retrain with; 'reconstruct' would do", key="mode"
        )
    if settings.mode == "reconstruct" and not facts.masks:
        raise BadSettings("nothing is pruned, so there is nothing to reconstruct; prune before", key="mode")
    if settings.mode == "reconstruct" and facts.dropped:
        what = f"{facts.dropped} blocks of the dense parent are gone, so that the others have no counterpart"
        raise BadSettings(f"{what}; 'retrain' would do", key="mode")
    form = _form(settings, facts)
    linears = tree.select(list(facts.shapes), settings.include, settings.exclude) if form else []
    if not form and (settings.include or settings.exclude):
        key = "include" if settings.include else "exclude"
        raise BadSettings(f"chooses the linears of a low-rank form, and {list(wanted)} has none", key=key)
    _adapter.check_plain(facts, linears)
    for name in linears:
        if settings.rank > min(facts.shapes[name]):
            raise BadSettings(
                f"must be <= {min(facts.shapes[name])}, the rank of {name}, got {settings.rank}", key="rank"
            )
    chosen = Chosen(
        small=_small(settings, facts),
        linears=tuple(linears),
        form=form,
        head=_head(settings, facts),
        classifier="head" in wanted and facts.task != "causal-lm",
        unmasked=frozenset(linears) & facts.masks.keys() if form == "lora" else frozenset(),
    )
    return chosen


def attach_(
    artifact: Artifact, chosen: Chosen, settings: PerpSettings, seed: int, linears: Iterable[str] | None = None
) -> list[Group]:
    """Put the adapters in, let what is chosen take gradients, and return it as groups, adapters first.

    Args:
        artifact: its model, frozen.
        chosen: what is trained.
        settings: rank, scale and learning rate.
        seed: of the adapters.
        linears: only these of the chosen linears, and no head; None = all.
    """
    model = artifact.model
    put_ = partial(_adapter.attach_, model, rank=settings.rank, scale=settings.scale, seed=seed)
    adapters: dict[str, nn.Module] = {}
    if chosen.form:
        names = chosen.linears if linears is None else [n for n in chosen.linears if n in set(linears)]
        adapters |= put_(names, artifact.masks, form=chosen.form)
    if chosen.head and linears is None:
        adapters |= put_([chosen.head], {}, form="lora")
    updates = _adapter.trained(adapters)
    every = dict(model.named_parameters())
    small = {n: every[n] for n in chosen.small}
    whole = {n: every[n] for n in (classifier(model) if chosen.classifier else []) if n not in small}
    thaw_((*small.values(), *whole.values()))
    groups = [Group(found, settings.lr, settings.weight_decay) for found in (updates, whole, small)]
    return [g for g in groups if g.parameters]


def _form(settings: PerpSettings, facts: Facts) -> str | None:
    forms = [s for s in settings.train if s in _adapter.FORMS]
    if len(forms) > 1:
        raise BadSettings(f"must name at most one low-rank form, got {' and '.join(forms)}", key="train")
    form = forms[0] if forms else None
    if form and form != "lora" and not facts.masks:
        raise BadSettings(
            f"no linear has a mask, and {form!r} works under one; prune before, or 'lora' would do", key="train"
        )
    if form == "lora" and facts.masks and not settings.drop_mask:
        what = "'lora' fills the zeros of the masks"
        raise BadSettings(f"{what}; 'mask_lora' keeps them, or drop_mask = true gives them up", key="train")
    if settings.drop_mask and form != "lora":
        raise BadSettings("only with 'lora', which alone fills the zeros, got true; leave it out", key="drop_mask")
    return form


def _small(settings: PerpSettings, facts: Facts) -> tuple[str, ...]:
    """Return the names of norm parameters (their biases too) and of biases."""
    names: dict[str, None] = {}
    if "norms" in settings.train:
        if not facts.norms:
            raise BadSettings(f"'norms': the model ({facts.family}) has none; leave it out", key="train")
        names |= dict.fromkeys(norms_of(facts))
    if "biases" in settings.train:
        if not facts.biases:
            raise BadSettings(f"'biases': the model ({facts.family}) has none; 'norms' would do", key="train")
        names |= dict.fromkeys(facts.biases)
    if settings.mode == "retrain":
        return tuple(names)
    return tuple(n for n in names if f".{families()[facts.family].blocks}." in f".{n}")


def _head(settings: PerpSettings, facts: Facts) -> str | None:
    if "head" not in settings.train:
        return None
    if settings.mode == "reconstruct":
        raise BadSettings("'head' lies outside the blocks that 'reconstruct' trains; leave it out", key="train")
    if facts.task != "causal-lm":
        return None
    if facts.tied or facts.head is None:
        why = "is tied to the input embedding, which would change with it" if facts.tied else "is missing"
        raise BadSettings(f"'head': the output head {why}; leave it out", key="train")
    if settings.rank > min(facts.head[1]):
        raise BadSettings(f"must be <= {min(facts.head[1])}, the rank of the head, got {settings.rank}", key="rank")
    return facts.head[0]
