"""From outputs to one number per window or example; only these outlive a batch, never the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, log_softmax

from compress.evaluate.scorers import Batch

_PLACES = 256  # tokens whose distribution over the vocabulary is held at once
_IGNORED = -100

Found = dict[str, Tensor]


def language(batch: Batch, logits: Tensor, reference: Tensor | None) -> Found:
    """Return per window the mean loss of its predicted tokens, and how far it is from the reference.

    A token is predicted from those before it, so a window of n tokens predicts n - 1.

    Args:
        batch: `labels [rows, tokens]`, -100 where nothing is predicted; `bytes [rows]` of the predicted text, if known.
        logits: `[rows, tokens, vocabulary]`.
        reference: the parent's logits of the same batch.

    Returns:
        `loss` in nats, `tokens`, `bytes` if known; with a reference `kl` = KL(parent || child) in nats per token and
        `agreement`, the share of tokens where both prefer the same one.
    """
    labels = torch.as_tensor(batch["labels"]).to(logits.device)[:, 1:]
    rows = []
    for row, label in enumerate(labels):
        places = (label != _IGNORED).nonzero()[:, 0]
        sums = torch.zeros(3, dtype=torch.float64, device=logits.device)
        for part in places.split(_PLACES):
            ours = log_softmax(logits[row, part].float(), -1)
            sums[0] -= ours.gather(-1, label[part, None]).sum(dtype=torch.float64)
            if reference is not None:
                theirs = log_softmax(reference[row, part].to(ours), -1)
                sums[1] += divergence(theirs, ours).sum(dtype=torch.float64)
                sums[2] += (ours.argmax(-1) == theirs.argmax(-1)).sum()
        rows.append(sums / len(places))  # NaN where a window predicts nothing
    loss, kl, agreement = torch.stack(rows).T
    found = {"loss": loss, "tokens": (labels != _IGNORED).sum(1)}
    if "bytes" in batch:
        found["bytes"] = torch.as_tensor(batch["bytes"])
    return found if reference is None else {**found, "kl": kl, "agreement": agreement}


def classes(batch: Batch, outputs: Tensor, reference: Tensor | None) -> Found:
    """Return per example the predicted and the true class; with a reference KL(parent || child) and agreement."""
    found = {"predicted": outputs.argmax(-1), "label": torch.as_tensor(batch["labels"])}
    if reference is None:
        return found
    kl = divergence(log_softmax(reference.double(), -1), log_softmax(outputs.double(), -1))
    agreement = (outputs.argmax(-1) == reference.argmax(-1)).double()
    return {**found, "kl": kl, "agreement": agreement}


def scores(batch: Batch, outputs: Tensor, reference: Tensor | None) -> Found:
    """Return per example the predicted and the true number."""
    return {"score": outputs[:, 0], "target": torch.as_tensor(batch["labels"])}


def embeddings(batch: Batch, outputs: Tensor, reference: Tensor | None) -> Found:
    """Return per text the cosine to the parent's embedding; nothing without a parent, since there is no gold."""
    return {} if reference is None else {"cosine": cosine_similarity(outputs.double(), reference.double(), dim=-1)}


def divergence(theirs: Tensor, ours: Tensor) -> Tensor:
    """Return KL(theirs || ours) `[...]` of log-probabilities `[..., classes]`; impossible classes count nothing."""
    return torch.where(theirs == -torch.inf, 0.0, theirs.exp() * (theirs - ours)).sum(-1)


MEASURES: dict[str, Callable[[Batch, Tensor, Tensor | None], Found]] = {
    "causal-lm": language,
    "classification": classes,
    "regression": scores,
    "embedding": embeddings,
}
