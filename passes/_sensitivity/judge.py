"""The distance between the outputs of a changed model and of the one given, from what their last blocks give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from compress import tree
from compress.artifact import Artifact
from compress.data.examples import IGNORED
from compress.errors import BadData, BadSettings
from compress.evaluate.scorers import ModelScorer
from compress.facts import Task
from passes._layerwise import ended
from passes._train import inputs_of

Kind = Literal["kl", "lm", "hidden", "task"]

_ENTRIES = 2**22  # logits of one model at once
_LOGITS = ("causal-lm", "classification")


def check(kind: Kind, task: Task) -> None:
    """Raise `BadSettings` about the key `score` where models for such a task cannot be judged so."""
    if kind == "task" and task != "classification":
        raise BadSettings(f"'task' counts right classes, which a {task} model has not; 'kl' would do", key="score")
    if kind == "lm" and task == "embedding":
        raise BadSettings("'lm' is the task's own loss, which an embedding model has not; 'kl' would do", key="score")


class Judge:
    """Judges models that differ from the given one in their blocks alone, row by row.

    Formulas, p being the given model's distribution, of tokens (padding left out) or rows, in float64, for at 8 bits
    the terms all but cancel:

        kl       `KL(p || q) = sum_v p_v (log p_v - log q_v)` of causal language models and classifiers, in nats; else
                 `|y_q - y|^2 / |y|^2` of the outputs, each over all rows
        lm       how much higher the task's own loss is: next-token cross-entropy, cross-entropy, squared error
        hidden   `1 - cos(h_q, h)` of the final hidden states of tokens
        task     how many fewer rows get their right class, as a share of the rows

    Args:
        artifact: the given model, what lies outside its blocks being real.
        batches: rows as `Examples.batch` returns them.
        hidden: what its last block gives for each batch, [batch, tokens, hidden].
        kind: of the formulas.

    Attributes:
        weights: of each row, what its sums are a share of: tokens, 1, or its part of `|y|^2`.

    Raises:
        BadData: the rows have no labels, where the formula needs some.
    """

    def __init__(
        self,
        artifact: Artifact,
        batches: Sequence[Mapping[str, Tensor]],
        hidden: Sequence[Tensor],
        kind: Kind = "kl",
    ) -> None:
        self._model, self._task, self._batches, self._kind = artifact.model, artifact.task, batches, kind
        self._by_token = kind == "hidden" or artifact.task == "causal-lm"
        self._head = tree.head(artifact.model) if artifact.task == "causal-lm" and kind != "hidden" else None
        self._labels = [self._labels_of(batch) for batch in batches]
        self._given = [self._outputs(number, each) for number, each in enumerate(hidden)]
        weights = (self._weights(number, given) for number, given in enumerate(self._given))
        self.weights = tuple(w for number, each in enumerate(weights) for w in self._summed(number, each))

    def distances(self, models: Sequence[Sequence[Tensor]]) -> list[float]:
        """Return how far each of several models is; as `rows`, over all of them."""
        whole = sum(self.weights)
        return [sum(each) / whole for each in self.rows(models)]

    @torch.no_grad()
    def rows(self, models: Sequence[Sequence[Tensor]]) -> list[list[float]]:
        """Return of each of several models how far each row is, summed over what it is judged by.

        Args:
            models: of each what its last block gives for each batch, [batch, tokens, hidden].
        """
        found: list[list[float]] = [[] for _ in models]
        for number, given in enumerate(self._given):
            outputs = [self._outputs(number, hidden[number]) for hidden in models]
            count, values = self._at_once(), [list[Tensor]() for _ in models]
            for here in (slice(at, at + count) for at in range(0, len(given), count)):
                expected, labels = self._told(given[here]), self._labels[number][here]
                for own, each in zip(values, outputs, strict=True):
                    own.append(self._values(expected, self._told(each[here]), labels))
            for own, rows in zip(values, found, strict=True):
                rows += self._summed(number, torch.cat(own))
        return found

    def _outputs(self, number: int, hidden: Tensor) -> Tensor:
        """Return final hidden states [tokens, hidden], or the task's outputs [rows, outputs]."""
        batch = self._batches[number]
        with ended(self._model, hidden), torch.no_grad():
            if not self._by_token:
                return ModelScorer(self._model).outputs(batch, pooled=self._task == "embedding")
            inputs = inputs_of(self._model, batch, hidden.device)
            read: Tensor = tree.backbone(self._model)(**inputs).last_hidden_state
            return read[inputs["attention_mask"].bool()]

    def _told(self, outputs: Tensor) -> Tensor:
        """Return logarithms of probabilities, or outputs that are none."""
        if self._head:
            outputs = self._head[1](outputs)
        if self._kind != "hidden" and self._task in _LOGITS:
            return functional.log_softmax(outputs.double(), dim=-1)
        return outputs.double()

    def _values(self, expected: Tensor, found: Tensor, labels: Tensor) -> Tensor:
        """Return how far each token or row is, float64 [items]."""
        match self._kind:
            case "hidden":
                return 1 - functional.cosine_similarity(expected, found, dim=-1)
            case "task":
                right = [(told.argmax(-1) == labels).double() for told in (expected, found)]
                return right[0] - right[1]
            case "lm" if self._task in _LOGITS:
                known = labels != IGNORED
                at = labels.where(known, 0)[:, None]
                return (expected - found).gather(-1, at).squeeze(-1) * known
            case "lm":
                errors = [(told.squeeze(-1) - labels).square() for told in (expected, found)]
                return errors[1] - errors[0]
        if self._task in _LOGITS:
            return functional.kl_div(found, expected, reduction="none", log_target=True).sum(-1)
        return (found - expected).square().sum(-1)

    def _weights(self, number: int, given: Tensor) -> Tensor:
        """Return what the values of tokens or rows are a share of, float64 [items]."""
        if self._kind == "kl" and self._task not in _LOGITS:
            return given.double().square().sum(-1)
        return (self._labels[number] != IGNORED).double()

    def _labels_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the labels of tokens or rows; where none are read, zeros."""
        real, device = batch["attention_mask"].bool(), self._model.device
        if self._kind not in ("lm", "task"):
            return torch.zeros(int(real.sum()) if self._by_token else len(real), dtype=torch.int64, device=device)
        if "labels" not in batch:
            raise BadData(f"calibration: holds no labels, which score = {self._kind!r} needs; 'kl' needs none")
        labels = batch["labels"]
        if self._by_token:
            labels = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)[real]
        return labels.to(device)

    def _summed(self, number: int, values: Tensor) -> list[float]:
        """Return the sums of each row of a batch."""
        if not self._by_token:
            return [float(v) for v in values]
        lengths = self._batches[number]["attention_mask"].sum(1).tolist()
        return [float(row.sum()) for row in torch.split(values, lengths)]

    def _at_once(self) -> int:
        return max(_ENTRIES // self._head[1].out_features, 1) if self._head else 1024
