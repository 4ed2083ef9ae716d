"""The stages: tune the update on the dense weight, make the mask, tune on under it, merge."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.blocks import Branch, branch_
from compress.context import Context
from compress.errors import BadModel
from passes import _adapter, _masks
from passes._adapter import Adapter
from passes._train import Group, frozen, heads_of, look_every, recomputed, split_on, thaw_, train_
from passes.dsee.plan import Chosen
from passes.dsee.settings import DseeSettings
from passes.dsee.support import support_of


def run_(artifact: Artifact, chosen: Chosen, settings: DseeSettings, context: Context) -> Artifact:
    """Tune, prune, tune on and merge; return the artifact with its new masks."""
    model = artifact.model
    with frozen(model, settings, context.device):
        adapters = attach_(artifact, chosen, settings, context)
        groups = groups_of(artifact, adapters, settings)
        context.report.record("trainable", sum(p.numel() for g in groups for p in g.parameters.values()))
        with recomputed(tree.blocks(model).values(), settings.recompute):
            tune_(artifact, groups, settings, context, pruned=False)
            masks = masks_of(artifact, chosen, adapters, settings)
            prune_(artifact, adapters, masks)
            _tell(adapters, masks, settings, context)
            tune_(artifact, groups, settings, context, pruned=True)
        branches = settle_(artifact, adapters, settings)
    branch_(model, branches)  # here, where weights have their own precision again
    return artifact.after(masks={**artifact.masks, **masks})


def attach_(artifact: Artifact, chosen: Chosen, settings: DseeSettings, context: Context) -> dict[str, Adapter]:
    """Put an update on every linear that gets one; the model computes what it did."""
    return _adapter.attach_(
        artifact.model,
        chosen.updated,
        artifact.masks,
        form=settings.form,
        rank=settings.rank,
        scale=settings.scale,
        seed=context.seed,
        supports=supports_of(artifact, chosen, settings, context),
    )


def supports_of(artifact: Artifact, chosen: Chosen, settings: DseeSettings, context: Context) -> dict[str, Tensor]:
    """Return where each update's sparse part lies.

    Raises:
        BadModel: a weight is not finite.
    """
    found: dict[str, Tensor] = {}
    names = chosen.updated if settings.entries else ()
    with context.report.bar("supports", len(names)) as bar:
        for name in names:
            weight = artifact.model.get_parameter(f"{name}.weight").detach()
            if not weight.isfinite().all():
                raise BadModel(f"{name}: a weight is NaN or infinite; the model is damaged")
            found[name] = support_of(
                weight, artifact.masks.get(name), settings.support, entries=settings.entries, rank=settings.rank,
                seed=(context.seed + zlib.crc32(name.encode())) % 2**63,
            )  # fmt: skip
            bar.advance()
    return found


def groups_of(artifact: Artifact, adapters: Mapping[str, Adapter], settings: DseeSettings) -> list[Group]:
    """Return what is trained, updates first; a task model's classifier is let take gradients."""
    updates = _adapter.trained(adapters)
    every = dict(artifact.model.named_parameters())
    heads = {n: every[n] for n in heads_of(artifact)}
    thaw_(heads.values())
    return [Group(found, settings.lr, settings.weight_decay) for found in (updates, heads) if found]


def tune_(
    artifact: Artifact,
    groups: list[Group],
    settings: DseeSettings,
    context: Context,
    *,
    pruned: bool,
    penalty: Callable[[], Tensor | float] = lambda: 0.0,
) -> None:
    """Train one stage; the state before the first never stays, for what is pruned may be told by the update.

    Args:
        artifact: the model, with its updates.
        groups: what is trained.
        settings: how.
        context: data, seed, and where checkpoints and figures go.
        pruned: whether it is the second stage.
        penalty: what is added to the loss that is trained on, not to the one that is judged by.
    """
    loss_of, validate = split_on(artifact, settings, context)
    steps = settings.steps if pruned else settings.tune_steps
    train_(
        groups,
        lambda number: loss_of(number) + penalty(),
        settings.model_copy(update={"steps": steps}),
        context,
        name="retune" if pruned else "tune",
        curve="loss" if pruned else "tune_loss",
        validate=validate,
        every=look_every(steps),
        since=0 if pruned else 1,
    )


def masks_of(
    artifact: Artifact, chosen: Chosen, adapters: Mapping[str, Adapter], settings: DseeSettings
) -> dict[str, Tensor]:
    """Return the mask of every linear to prune, each by itself: by the score of its update, or by |W| without one.

    Raises:
        BadModel: an update that shall tell is still zero.
    """
    masks: dict[str, Tensor] = {}
    for name in chosen.pruned:
        if name in adapters:
            score = score_of(name, adapters[name], settings)
        else:
            score = artifact.model.get_parameter(f"{name}.weight").detach().abs().float()
        masks |= chosen.rule.masks({name: score}, artifact.masks)
    return masks


def score_of(name: str, adapter: Adapter, settings: DseeSettings) -> Tensor:
    """Return what an updated linear's weights are worth, float32 `[out, in]`: |update|, |W| or |W + update|.

    Raises:
        BadModel: the update shall tell and is still zero.
    """
    weight = adapter.weight.detach()
    if settings.mask_from == "weight":
        return weight.abs().float()
    update = adapter.update()
    if not update.any():
        what = "tuning left its update at zero, so that nothing can be pruned by it"
        raise BadModel(f"{name}: {what}; mask_from = 'weight', more data or a higher lr would do")
    return (update if settings.mask_from == "update" else weight + update).abs().float()


def prune_(artifact: Artifact, adapters: Mapping[str, Adapter], masks: Mapping[str, Tensor]) -> None:
    """Put the masks into the adapters, and zero what they prune, also of linears without one."""
    for name, mask in masks.items():
        if name in adapters:
            adapters[name].prune_(mask)
        else:
            _masks.apply_(artifact.model.get_parameter(f"{name}.weight"), mask)


def settle_(artifact: Artifact, adapters: Mapping[str, Adapter], settings: DseeSettings) -> dict[str, Branch]:
    """Put plain linears in the adapters' places and return what is to stand beside them."""
    if settings.merge == "inside":
        _adapter.merge_(artifact.model)
        return {}
    branches: dict[str, Branch] = {}
    for name, adapter in adapters.items():
        plain, a, b = adapter.split()
        tree.replace_(artifact.model, name, plain)
        branches[name] = Branch(a, b)
    return branches


def _tell(
    adapters: Mapping[str, Adapter], masks: Mapping[str, Tensor], settings: DseeSettings, context: Context
) -> None:
    alive = sum(int(masks[n].view(-1)[a.support.cpu()].sum()) for n, a in adapters.items() if a.support is not None)
    entries = settings.entries * len(adapters)
    spikes = f"; {alive:,} of {entries:,} entries lie where the masks keep" if entries else ""
    context.report.note(
        f"pruned {_masks.sparsity_of(masks.values()):.2%} of {len(masks)} linears, "
        f"{len(adapters)} of them by {settings.mask_from}{spikes}"
    )
