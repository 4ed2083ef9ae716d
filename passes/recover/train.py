"""Set a method up on the model, train it with the task's loss, and leave plain linears."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BadModel
from passes import _adapter, _keeping, _masks
from passes._train import Group, classifier, frozen, look_every, recomputed, split_on, thaw_, train_
from passes.recover.borrowed import Adaptive, Borrowed
from passes.recover.chosen import Chosen
from passes.recover.scaled import Scaled
from passes.recover.settings import RecoverSettings
from passes.recover.support import supports_of

Loss = Callable[[int], Tensor]


@dataclass(kw_only=True)
class Attached:
    """A method on a model.

    Attributes:
        parameters: what it trains, by name.
        merge_: leaves plain linears that compute what was trained.
        masks: of those that are weights with zeros to be kept.
        adaptive: of AdaLoRA, what goes along with the training.
    """

    parameters: dict[str, nn.Parameter]
    merge_: Callable[[], object]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    adaptive: Adaptive | None = None


def run_(artifact: Artifact, chosen: Chosen, settings: RecoverSettings, context: Context) -> None:
    """Train what was chosen and merge it.

    Raises:
        BrokenPromise: a zero under a mask is none any more.
    """
    model, device = artifact.model, context.device
    loss_of, judge = split_on(artifact, settings, context)
    with frozen(model, settings, device), recomputed(tree.blocks(model).values(), settings.recompute):
        attached = attach_(artifact, chosen, settings, context, loss_of)
        adaptive = attached.adaptive
        done = train_(
            [Group(attached.parameters, settings.lr, settings.weight_decay, attached.masks)],
            _pulled(loss_of, adaptive) if adaptive else loss_of,
            settings,
            context,
            validate=judge,
            every=look_every(settings.steps),
            since=settings.steps - settings.settled + 1 if adaptive else 0,
            companion=adaptive,
        )
        if adaptive:
            _tell(adaptive.ranks(), settings, context)
        attached.merge_()
        _keeping.check_zeros(model, artifact.masks)
        for name, mask in artifact.masks.items():
            _masks.apply_(tree.block_linears(model)[name].weight, mask.to(device))  # a negative scale leaves -0
    for step, value in done.validations:
        context.report.record("held_out_loss", [step, value])
    if judge:
        context.report.note(f"the state after step {done.best} is the best on the examples that are held out")


def attach_(artifact: Artifact, chosen: Chosen, settings: RecoverSettings, context: Context, loss_of: Loss) -> Attached:
    """Put the method into the frozen model, which still computes what it did, and let what it trains take gradients.

    Raises:
        BadModel: a chosen linear is not a plain one.
    """
    model, method = artifact.model, settings.method
    layers = {n: m for n, m in tree.block_linears(model).items() if n in set(chosen.linears)}
    for name, layer in layers.items():
        if type(layer) is not nn.Linear and method != "full":
            kind = type(layer).__name__
            raise BadModel(f"{name}: is a {kind}, and {method!r} merges into plain linears alone; 'full' would do")
    outside = _named(model, classifier(model)) if chosen.classifier else {}
    if method == "full":
        masks = {f"{n}.weight": artifact.masks[n] for n in layers if n in artifact.masks}
        named = _named(model, chosen.changes(model))
        attached = Attached(parameters=named, merge_=lambda: None, masks=masks)
    elif method == "sparse_delta":
        supports = supports_of(artifact, _weights(layers), loss_of, settings, context)
        context.report.record("support", {n: len(at) for n, at in supports.items()})
        attached = _adapters(artifact, supports, settings, context.seed, supports)
    elif method in ("lora", "mask_lora"):
        attached = _adapters(artifact, layers, settings, context.seed)
    elif method == "scale_bias_norm":
        attached = _scaled(model, layers, _named(model, [*chosen.biases, *chosen.norms]))
    elif method == "adalora":
        adaptive = Adaptive(model, chosen, settings, context.seed)
        attached = Attached(parameters=adaptive.parameters, merge_=adaptive.merge_, adaptive=adaptive)
    else:
        borrowed = Borrowed(model, chosen, settings, context.seed)
        attached = Attached(parameters=borrowed.parameters, merge_=borrowed.merge_)
    attached.parameters = attached.parameters | outside
    thaw_(attached.parameters.values())
    return attached


def _named(model: nn.Module, names: Collection[str]) -> dict[str, nn.Parameter]:
    """Return parameters by name, one that has two names once."""
    return {n: p for n, p in model.named_parameters() if n in set(names)}


def _weights(layers: Mapping[str, nn.Linear]) -> dict[str, nn.Parameter]:
    return {n: cast(nn.Parameter, layer.weight) for n, layer in layers.items()}


def _adapters(
    artifact: Artifact,
    names: Iterable[str],
    settings: RecoverSettings,
    seed: int,
    supports: Mapping[str, Tensor] | None = None,
) -> Attached:
    """Return our adapters: of the support's values alone where there is one, else of low rank."""
    adapters = _adapter.attach_(
        artifact.model,
        names,
        artifact.masks,
        form="lora" if settings.method == "lora" else "mask_lora",
        rank=settings.rank if supports is None else 0,
        scale=settings.scale if supports is None else 1.0,
        seed=seed,
        supports=supports,
    )
    return Attached(parameters=_adapter.trained(adapters), merge_=partial(_adapter.merge_, artifact.model))


def _scaled(model: nn.Module, layers: Mapping[str, nn.Linear], small: Mapping[str, nn.Parameter]) -> Attached:
    scaled = {n: Scaled(layer) for n, layer in layers.items()}
    for name, layer in scaled.items():
        tree.replace_(model, name, layer)

    def merge_() -> None:
        for name, layer in scaled.items():
            tree.replace_(model, name, layer.merge())

    return Attached(parameters={**{f"{n}.scale": m.scale for n, m in scaled.items()}, **small}, merge_=merge_)


def _pulled(loss_of: Loss, adaptive: Adaptive) -> Loss:
    """Return the loss with the gradient of the penalty but not its value, so that the curve stays the task's."""

    def pulled(number: int) -> Tensor:
        loss, penalty = loss_of(number), adaptive.penalty()
        return loss + (penalty - penalty.detach())

    return pulled


def _tell(ranks: Mapping[str, int], settings: RecoverSettings, context: Context) -> None:
    context.report.record("ranks", dict(ranks))
    found = sorted(ranks.values())
    context.report.note(
        f"adalora leaves {sum(found)} ranks of {settings.first_rank * len(found)}, a budget of "
        f"{settings.rank * len(found)}: {found[0]} to {found[-1]} a linear, {found.count(0)} linears without any"
    )
