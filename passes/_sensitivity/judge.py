"""The distance between the outputs of a changed model and of the one given, from what their last blocks give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from compress import tree
from compress.artifact import Artifact
from compress.evaluate.scorers import ModelScorer
from passes._layerwise import ended
from passes._train import inputs_of

_ENTRIES = 2**22  # logits of one model at once


class Judge:
    """Judges models that differ from the given one in their blocks alone.

    Formula: of causal language models and classifiers the mean of `KL(p || q) = sum_v p_v (log p_v - log q_v)` over
    tokens (padding left out) or rows, in nats, p being the given model's distribution; else `|y_q - y|^2 / |y|^2` of
    the outputs on all rows.  In float64, for at 8 bits the terms all but cancel.

    Args:
        artifact: the given model, what lies outside its blocks being real.
        batches: rows as `Examples.batch` returns them.
        hidden: what its last block gives for each batch, [batch, tokens, hidden].
    """

    def __init__(self, artifact: Artifact, batches: Sequence[Mapping[str, Tensor]], hidden: Sequence[Tensor]) -> None:
        self._model, self._task, self._batches = artifact.model, artifact.task, batches
        self._head = tree.head(artifact.model) if artifact.task == "causal-lm" else None
        self._given = [self._outputs(number, each) for number, each in enumerate(hidden)]
        if artifact.task in ("causal-lm", "classification"):
            self._whole = float(sum(len(g) for g in self._given))
        else:
            self._whole = sum(float(g.double().square().sum()) for g in self._given)

    @torch.no_grad()
    def distances(self, models: Sequence[Sequence[Tensor]]) -> list[float]:
        """Return how far each of several models is.

        Args:
            models: of each what its last block gives for each batch, [batch, tokens, hidden].
        """
        sums = [0.0] * len(models)
        for number, given in enumerate(self._given):
            outputs = [self._outputs(number, hidden[number]) for hidden in models]
            count = self._at_once()
            for here in (slice(at, at + count) for at in range(0, len(given), count)):
                expected = self._told(given[here])
                for model, found in enumerate(outputs):
                    sums[model] += float(self._distance(expected, self._told(found[here])))
        return [each / self._whole for each in sums]

    def _outputs(self, number: int, hidden: Tensor) -> Tensor:
        """Return what a causal model's head reads, [tokens, hidden], or any other's outputs, [rows, outputs]."""
        batch = self._batches[number]
        with ended(self._model, hidden), torch.no_grad():
            if self._task != "causal-lm":
                return ModelScorer(self._model).outputs(batch, pooled=self._task == "embedding")
            inputs = inputs_of(self._model, batch, hidden.device)
            read: Tensor = tree.backbone(self._model)(**inputs).last_hidden_state
            return read[inputs["attention_mask"].bool()]

    def _told(self, outputs: Tensor) -> Tensor:
        """Return logarithms of probabilities, or outputs that are none."""
        if self._head:
            outputs = self._head[1](outputs)
        if self._task in ("causal-lm", "classification"):
            return functional.log_softmax(outputs.double(), dim=-1)
        return outputs.double()

    def _distance(self, expected: Tensor, found: Tensor) -> Tensor:
        if self._task in ("causal-lm", "classification"):
            return functional.kl_div(found, expected, reduction="sum", log_target=True)
        return (found - expected).square().sum()

    def _at_once(self) -> int:
        return max(_ENTRIES // self._head[1].out_features, 1) if self._head else 1024
