"""Which weights a sparse delta trains: the best of all chosen linears together, never a pruned one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from compress import files
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BadModel
from passes import _masks
from passes._train import Group, autocast, thaw_, train_
from passes.recover.chosen import entries
from passes.recover.settings import RecoverSettings

Loss = Callable[[int], Tensor]


def supports_of(
    artifact: Artifact, weights: Mapping[str, nn.Parameter], loss_of: Loss, settings: RecoverSettings, context: Context
) -> dict[str, Tensor]:
    """Return per linear the chosen positions in its flat weight, int64, ascending; linears without any are left out.

    They are found once and kept in `context.folder`.
    """
    path, curve = context.folder / "support.safetensors", list[float]()
    if path.exists():
        with safe_open(path, framework="pt", device=str(context.device)) as file:
            curve = json.loads(file.metadata()["curve"])
            found = {n: file.get_tensor(n) for n in weights if n in set(file.keys())}
    else:
        masks = {n: artifact.masks[n].to(w.device) for n, w in weights.items() if n in artifact.masks}
        if settings.support == "lottery":
            scores, curve = moved(weights, masks, loss_of, settings, context)
        elif settings.support == "squared-gradients":
            scores = squared_gradients(weights, loss_of, settings, context)
        else:
            scores = {n: w.detach().abs().float() for n, w in weights.items()}
        found = best(scores, masks, settings)
        files.write_atomic(path, save(found, metadata={"curve": json.dumps(curve)}))
        (context.folder / "lottery.safetensors").unlink(missing_ok=True)
    for step, value in enumerate(curve):
        context.report.record("lottery_loss", [step, value])
    return found


def best(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], settings: RecoverSettings) -> dict[str, Tensor]:
    """Return the positions of the highest scores of all matrices together, as many as the share asks for.

    Raises:
        BadModel: a score is NaN, or nothing survives.
    """
    for name, score in scores.items():
        if score.isnan().any():
            raise BadModel(f"{name}: a score is NaN, so the weights or the data through them are not finite")
    alive = {n: masks.get(n, torch.ones_like(s, dtype=torch.bool)) for n, s in scores.items()}
    total, surviving = sum(s.numel() for s in scores.values()), sum(int(m.sum()) for m in alive.values())
    if not surviving:
        raise BadModel("every weight of the chosen linears is pruned, so there is nothing to train")
    open_ = {n: s.masked_fill(~alive[n], -torch.inf) for n, s in scores.items()}
    share = 1 - entries(settings, surviving) / total
    chosen = _masks.keep_top_of_all(open_, share, dict.fromkeys(scores, 0))
    return {n: m.view(-1).nonzero().view(-1) for n, m in chosen.items() if m.any()}


def squared_gradients(
    weights: Mapping[str, nn.Parameter], loss_of: Loss, settings: RecoverSettings, context: Context
) -> dict[str, Tensor]:
    """Return the sum of g^2 over batches, float32 `[out, in]` each; one gradient at a time waits to be squared."""
    sums = {n: torch.zeros_like(w, dtype=torch.float32) for n, w in weights.items()}

    def square_(total: Tensor, parameter: Tensor) -> None:
        assert parameter.grad is not None
        total += parameter.grad.float().square()
        parameter.grad = None

    for weight in weights.values():
        weight.requires_grad_(True)
    hooks = [
        w.register_post_accumulate_grad_hook(partial(square_, sums[n]))  # type: ignore[no-untyped-call]
        for n, w in weights.items()
    ]
    with context.report.bar("sensitivity", settings.probes) as bar:
        for number in range(settings.probes):
            with autocast(settings, context.device):
                loss = loss_of(number)
            loss.backward()  # type: ignore[no-untyped-call]
            bar.advance()
    for hook, weight in zip(hooks, weights.values(), strict=True):
        hook.remove()
        weight.requires_grad_(False)
    return sums


def moved(
    weights: Mapping[str, nn.Parameter],
    masks: Mapping[str, Tensor],
    loss_of: Loss,
    settings: RecoverSettings,
    context: Context,
) -> tuple[dict[str, Tensor], list[float]]:
    """Return how far each weight moves when all are trained, and the losses; the weights are put back to the bit."""
    start = {n: w.detach().clone() for n, w in weights.items()}
    thaw_(weights.values())
    groups = [Group(weights, settings.lr, settings.weight_decay, masks)]
    done = train_(groups, loss_of, settings, context, name="lottery", curve=None)
    scores = {n: (w.detach() - start[n]).abs_() for n, w in weights.items()}
    for name, weight in weights.items():
        weight.requires_grad_(False).grad = None
        weight.data = start[name]
    return scores, done.curve
