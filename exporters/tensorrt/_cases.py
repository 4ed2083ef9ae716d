"""What an engine has to say on its target: inputs by the graph's names, and the outputs that the model gives them.

Arrays are named `<case>/<input>`, `<case>/expected <output>` and `<case>/real <output>`; the last tells, over the first
axes of the output, where a real token stands: what is said of padding is nobody's concern.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from compress.artifact import Artifact
from compress.engines import parity
from compress.engines.parity import DECODER_SHAPES, ENCODER_SHAPES, Shape
from compress.engines.twin import twin
from compress.reading import Change, reading, static
from exporters import _graph

Arrays = dict[str, np.ndarray]


def proof(
    artifact: Artifact, precision: str, batch: int, length: int, *, rounds: bool
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return all cases that fit in so many sequences and tokens, and how far an engine may be from them.

    What is almost between two codes may become either, so that with rounded inputs two engines that are right may be
    as far from each other as what rounding costs, which the tolerance then allows beside what the precision does.

    Args:
        artifact: whose model computes the expected outputs, in float32.
        precision: of the engine.
        batch: sequences at most.
        length: tokens at most.
        rounds: whether linears read their static inputs rounded.
    """
    tolerance = parity.TOLERANCES[precision]
    found = cases(artifact, batch, length)
    if not rounds:
        return {**found}, vars(tolerance)
    floats, found = found, cases(artifact, batch, length, static(artifact.grids))
    share = max(_apart(found, floats, n, tolerance.floor) for n in found if "/expected " in n)
    return {**found}, {**vars(tolerance), "share": tolerance.share + share}


def _apart(found: Arrays, others: Arrays, name: str, floor: float) -> float:
    """Return how far one expected output is from another way to compute it, as a share of its largest value."""
    real = found[name.replace("/expected ", "/real ")]
    largest = max(float(np.abs(found[name][real]).max(initial=0)), floor)
    return float(np.abs(found[name] - others[name])[real].max(initial=0)) / largest if largest else 0.0


def cases(artifact: Artifact, batch: int, length: int, changes: Mapping[str, Change] | None = None) -> Arrays:
    """Return all cases that fit, with what linears read changed or, unless given, as it is; as `proof` does."""
    decoder = artifact.task == "causal-lm"
    shapes = DECODER_SHAPES[1:4] if decoder else ENCODER_SHAPES[:2]
    made: Arrays = {}
    with twin(artifact.model, torch.float32, "cpu") as model, reading(model, changes or {}):
        if model is not artifact.model:
            parity.to_codes_(model, artifact.grids)
        call = _graph.decoder_call(model) if decoder else _graph.encoder_call(model, artifact.task)
        module = call.module.eval()
        for index, shape in enumerate(s for s in shapes if s.batch <= batch and s.past + s.new <= length):
            tokens = torch.from_numpy(parity.draw_tokens(artifact.model, shape))
            found = _decoded(module, call, tokens, shape) if decoder else _encoded(module, call, tokens, shape)
            made |= {f"{index}/{name}": np.ascontiguousarray(array) for name, array in found.items()}
    return made


def _decoded(module: Any, call: _graph.Call, tokens: torch.Tensor, shape: Shape) -> Arrays:
    """Return a step of a decoder behind the past that the tokens before it leave."""
    mask = torch.ones_like(tokens)
    mask[0, : shape.padded] = 0
    positions, old = (mask.cumsum(1) - 1).clamp(min=0), shape.past
    past = [tuple(torch.zeros(shape.batch, k.heads, 0, k.head_dim) for _ in range(2)) for k in call.past]
    if old:
        past = module(tokens[:, :old], mask[:, :old], positions[:, :old], past)[1]
    given = (tokens[:, old:], mask, positions[:, old:], *(t for pair in past for t in pair))
    logits, present = module(*given[:3], past)
    outputs = (logits, *(t for pair in present for t in pair))
    real = (mask[:, old:] > 0, *((mask > 0)[:, None].expand(t.shape[:3]) for t in outputs[1:]))
    return _named(call, given, outputs, real)


def _encoded(module: Any, call: _graph.Call, tokens: torch.Tensor, shape: Shape) -> Arrays:
    """Return a step of an encoder over texts of which the first ends in padding."""
    mask = torch.ones_like(tokens)
    mask[0, shape.new - shape.padded :] = 0
    given = (tokens, mask, tokens % 2)[: len(call.inputs)]
    output = module(*given)
    return _named(call, given, (output,), (torch.ones(len(output), dtype=torch.bool),))


def _named(call: _graph.Call, given: Any, outputs: Any, real: Any) -> Arrays:
    arrays = {name: tensor.numpy() for name, tensor in zip(call.inputs, given, strict=True)}
    arrays |= {f"expected {name}": tensor.numpy() for name, tensor in zip(call.outputs, outputs, strict=True)}
    return arrays | {f"real {name}": tensor.numpy() for name, tensor in zip(call.outputs, real, strict=True)}
