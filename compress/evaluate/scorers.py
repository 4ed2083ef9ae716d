"""One face for whatever is evaluated: token ids in, float32 outputs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from compress import tree
from compress.artifact import Artifact
from compress.contracts import Engine
from compress.evaluate.result import Kind

Batch = Mapping[str, Any]
Calling = Callable[[], AbstractContextManager[None]]


class Scorer(ABC):
    """Something that turns a batch of token ids into outputs.

    Attributes:
        kind: what it is.
        positions: the longest sequence that it takes; None = no limit of its own.
    """

    kind: Kind
    positions: int | None

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """Return the next-token logits float32 `[rows, tokens, vocabulary]` of a causal model."""

    @abstractmethod
    def outputs(self, batch: Batch, pooled: bool) -> Tensor:
        """Return float32 `[rows, labels]`, or where `pooled` the mean `[rows, hidden]` of the last hidden states."""


class ModelScorer(Scorer):
    """A torch model, on the device where it stands.

    Args:
        model: the model, with the head of its task.
        kind: `artifact` when it came from one.
        calling: entered around every call of the model.
    """

    def __init__(self, model: PreTrainedModel, kind: Kind = "model", calling: Calling = nullcontext) -> None:
        self.model, self.kind, self._calling = model, kind, calling
        self.positions = tree.positions(model)

    def logits(self, batch: Batch) -> Tensor:
        """Run the causal model without a cache."""
        with _evaluating(self.model), self._calling():
            given = self._given(batch)
            logits: Tensor = self.model(
                **given, position_ids=_positions(given["attention_mask"]), use_cache=False
            ).logits
        return logits.float()

    def outputs(self, batch: Batch, pooled: bool) -> Tensor:
        """Run the model's head, or its backbone where the output is pooled.

        A decoder's label is read at the last real token by the mask; transformers would look for padding ids, which
        a text may hold too.
        """
        causal = tree.family(self.model).decoder
        with _evaluating(self.model), self._calling():
            given = self._given(batch)
            mask = given["attention_mask"]
            if not (pooled or causal):
                outputs: Tensor = self.model(**given).logits
                return outputs.float()
            extra = {"position_ids": _positions(mask), "use_cache": False} if causal else {}
            hidden = tree.backbone(self.model)(**given, **extra).last_hidden_state.float()
            if pooled:
                weights = mask[:, :, None].float()
                mean: Tensor = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
                return mean
            last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)
            score: Any = self.model.score
            chosen = hidden[torch.arange(len(last), device=mask.device), last].to(score.weight.dtype)
            labels: Tensor = score(chosen)
        return labels.float()

    def _given(self, batch: Batch) -> dict[str, Tensor]:
        names = ["input_ids", "attention_mask"]
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            names.append("token_type_ids")
        return {n: torch.as_tensor(batch[n]).to(self.model.device) for n in names if n in batch}


class EngineScorer(Scorer):
    """A loaded engine; a decoder reads each window at once, with an empty past."""

    kind: Kind = "engine"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.positions = engine.manifest.get("positions")

    def logits(self, batch: Batch) -> Tensor:
        """Run one step over whole windows."""
        ids, mask = _arrays(batch, "input_ids", "attention_mask")
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        logits, _ = self.engine.step(ids, mask, positions, self.engine.empty_past(len(ids)))
        return torch.from_numpy(np.asarray(logits, dtype=np.float32))

    def outputs(self, batch: Batch, pooled: bool) -> Tensor:
        """Run the engine, which pools by itself."""
        given = [n for n in ("input_ids", "attention_mask", "token_type_ids") if n in batch]
        return torch.from_numpy(np.asarray(self.engine.encode(*_arrays(batch, *given)), dtype=np.float32))


Subject = Artifact | PreTrainedModel | Engine | Scorer


def scorer_of(subject: Subject) -> Scorer:
    """Return the face of an artifact, a model or an engine."""
    if isinstance(subject, Scorer):
        return subject
    if isinstance(subject, Engine):
        return EngineScorer(subject)
    if isinstance(subject, Artifact):
        return ModelScorer(subject.model, "artifact", subject.called)
    return ModelScorer(subject)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off and gradients too; leave every module in the mode in which it was."""
    training = [m for m in model.modules() if m.training]
    model.train(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _arrays(batch: Batch, *names: str) -> list[NDArray[np.int64]]:
    return [np.ascontiguousarray(np.asarray(batch[n]), dtype=np.int64) for n in names]
