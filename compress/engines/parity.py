"""Compare an engine's outputs with the model's.

The reference is torch in float32, one sequence at a time, without padding, mask or past: however the engine is fed,
at the real tokens it must agree with that.  Where the engine's linears read static inputs, the reference's do so too,
and the engine's manifest has the tolerance: what is almost between two codes may become either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from compress import tree
from compress.artifact import Artifact
from compress.contracts import Engine
from compress.engines.choice import INTEGER
from compress.engines.twin import twin
from compress.errors import ParityError
from compress.facts import Task
from compress.grid import Grid
from compress.reading import reading, static

# Of one sequence: the engine's output and the model's, the engine's keys and values and the model's.
Pair = tuple[np.ndarray, np.ndarray, list[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Tolerance:
    """What may differ: a share of the reference's largest value, taken as at least `floor`."""

    share: float
    floor: float


# float32: another library adds in another order, which costs about 1e-6; a wrong graph costs far more.
# float16: every operation rounds at 5e-4.  bfloat16: at 4e-3.
TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(1e-4, 1.0), "fp16": Tolerance(2e-2, 0.0), "bf16": Tolerance(1e-1, 0.0),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One comparison: sequences at once, tokens cached, tokens new, padded tokens of the first sequence."""

    batch: int
    past: int
    new: int
    padded: int = 0

    def __str__(self) -> str:
        return f"batch {self.batch}, past {self.past}, new {self.new}, padding {self.padded}"


DECODER_SHAPES = (
    Shape(1, 0, 7), Shape(2, 0, 16, 3), Shape(1, 7, 1), Shape(3, 31, 1, 4), Shape(2, 9, 6, 2), Shape(1, 1, 1),
)  # fmt: skip
ENCODER_SHAPES = (Shape(1, 0, 5), Shape(3, 0, 33, 4), Shape(2, 0, 1), Shape(2, 0, 17, 9))
LONG_PAST = 192


@dataclass
class _Worst:
    """The largest difference of one output so far, and the largest value of the reference."""

    difference: float = 0.0
    magnitude: float = 0.0
    equal: list[bool] = field(default_factory=list)

    def add(self, name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: Tolerance, shape: Shape) -> float:
        """Take in one pair of outputs and return what was allowed."""
        if ours.shape != theirs.shape:
            raise ParityError(f"engine's {name} at {shape}: has shape {ours.shape}, the model's {theirs.shape}")
        difference = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))
        magnitude = float(np.abs(theirs).max(initial=0.0))
        allowed = tolerance.share * max(magnitude, tolerance.floor)
        if not difference <= allowed:  # NaN too
            raise ParityError(
                f"engine's {name} at {shape}: differ from the model's by {difference:.2g}, allowed {allowed:.2g} "
                f"({tolerance.share:g} of the largest, {magnitude:.2g})"
            )
        self.difference, self.magnitude = max(self.difference, difference), max(self.magnitude, magnitude)
        return allowed

    def choose(self, ours: np.ndarray, theirs: np.ndarray, allowed: float, shape: Shape) -> None:
        """Compare the best token or label; the engine must share every choice that is clear."""
        if theirs.shape[-1] < 2:
            return
        first, second = np.argmax(theirs, -1), np.partition(theirs, -2, axis=-1)[..., -2]
        equal = np.argmax(ours, -1) == first
        clear = theirs.max(-1) - second > allowed
        if not equal[clear].all():
            raise ParityError(f"engine at {shape}: chooses other tokens or labels where the model's choice is clear")
        self.equal += equal.ravel().tolist()


def verify(engine: Engine, artifact: Artifact) -> dict[str, Any]:
    """Compare at several shapes and return the largest differences.

    Args:
        engine: as its runtime loaded it.
        artifact: what it was made of.

    Returns:
        `shapes`: how many; for `logits` (and `past`) the largest absolute `difference` and the `magnitude` of the
        reference; `agreement`: the share of equal best tokens or labels, where there are such.

    Raises:
        ParityError: a difference is beyond the tolerance, or a clear choice differs.
    """
    model, task, about = artifact.model, artifact.task, engine.manifest
    tolerance = Tolerance(**about["tolerance"]) if "tolerance" in about else TOLERANCES[about["precision"]]
    changes = static(artifact.grids) if about.get("codes", {}).get("kernels") == INTEGER else {}
    logits, past = _Worst(), _Worst()
    shapes = [s for s in _shapes(model, task) if engine.takes(s.past + s.new)]
    with twin(model, torch.float32) as reference, reading(reference, changes):
        if reference is not model:
            to_codes_(reference, artifact.grids)
        for shape in shapes:
            tokens = draw_tokens(model, shape)
            compare = _decoder if task == "causal-lm" else _encoder
            for ours, theirs, ours_past, theirs_past in compare(engine, reference, task, tokens, shape):
                allowed = logits.add("logits", ours, theirs, tolerance, shape)
                if task in ("causal-lm", "classification"):
                    logits.choose(ours, theirs, allowed, shape)
                for mine, given in zip(ours_past, theirs_past, strict=True):
                    past.add("keys and values", mine, given, tolerance, shape)
    figures: dict[str, Any] = {"shapes": len(shapes), "logits": _figures(logits)}
    if task == "causal-lm":
        figures["past"] = _figures(past)
    if logits.equal:
        figures["agreement"] = sum(logits.equal) / len(logits.equal)
    return figures


def to_codes_(model: PreTrainedModel, grids: Mapping[str, Grid]) -> None:
    """Give a copy the weights that codes stand for, which the model itself may hold rounded to fewer bits."""
    for name in grids:
        weight = model.get_parameter(f"{name}.weight")
        weight.data = grids[name].dequantized().to(weight)


def _decoder(engine: Engine, reference: PreTrainedModel, task: Task, tokens: np.ndarray, shape: Shape) -> list[Pair]:
    """Return logits and past of every sequence at its real tokens."""
    mask = np.ones_like(tokens)
    mask[0, : shape.padded] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    old, past = shape.past, engine.empty_past(shape.batch)
    if old:
        past = engine.step(tokens[:, :old], mask[:, :old], positions[:, :old], past)[1]
    logits, present = engine.step(tokens[:, old:], mask, positions[:, old:], past)
    found: list[Pair] = []
    for row, ids in enumerate(tokens):
        start = shape.padded if row == 0 else 0
        cache = DynamicCache()
        result = reference(input_ids=_ids(reference, ids[start:]), past_key_values=cache, use_cache=True)
        layers: list[Any] = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
        found.append(
            (
                logits[row, max(start - old, 0) :],
                _numpy(result.logits[0, max(old - start, 0) :]),
                [array[row, :, start:] for pair in present for array in pair],
                [_numpy(tensor[0]) for layer in layers for tensor in (layer.keys, layer.values)],
            )
        )
    return found


def _encoder(engine: Engine, reference: PreTrainedModel, task: Task, tokens: np.ndarray, shape: Shape) -> list[Pair]:
    """Return what is said of every text."""
    mask = np.ones_like(tokens)
    mask[0, shape.new - shape.padded :] = 0
    typed = any(i["name"] == "token_type_ids" for i in engine.manifest["inputs"])
    types = np.random.default_rng(1).integers(0, 2, tokens.shape)
    results = engine.encode(tokens, mask, types)
    found: list[Pair] = []
    for row, ids in enumerate(tokens):
        real = int(mask[row].sum())
        given = {"token_type_ids": _ids(reference, types[row, :real])} if typed else {}
        result = reference(input_ids=_ids(reference, ids[:real]), **given)
        theirs = result.last_hidden_state.mean(1) if task == "embedding" else result.logits
        found.append((results[row], _numpy(theirs[0]), [], []))
    return found


def _shapes(model: PreTrainedModel, task: Task) -> list[Shape]:
    positions = tree.facts(model, task).positions or LONG_PAST + 1
    long = Shape(1, min(LONG_PAST, positions - 1), 1)
    shapes: Sequence[Shape] = (*DECODER_SHAPES, long) if task == "causal-lm" else ENCODER_SHAPES
    return [s for s in shapes if s.past + s.new <= positions]


def draw_tokens(model: PreTrainedModel, shape: Shape) -> np.ndarray:
    """Return int64 tokens `[batch, past + new]`, never the padding token, which some models look for."""
    config: Any = model.config
    choice = np.delete(np.arange(config.vocab_size), [p for p in [config.pad_token_id] if p is not None])
    return np.random.default_rng(0).choice(choice, (shape.batch, shape.past + shape.new))


def _ids(model: PreTrainedModel, ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(ids)[None]).to(model.device)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _figures(worst: _Worst) -> dict[str, float]:
    return {"difference": worst.difference, "magnitude": worst.magnitude}
