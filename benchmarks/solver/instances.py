"""Problems shaped like real libraries, from a seed.

Until libraries of large models are measured, costs come from shapes: floating-point operations and bytes of every block
over the peak rates of an accelerator, with one error of a percent or so per shape, as a profile has (its keys are
shapes, so that equal blocks of different layers cost the same).  Scores come from what is known of such libraries:
damage grows faster than what is removed, the first and last layers are the most sensitive, neighbours are alike, and
the score of a pair of sub-blocks is not quite the sum of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from solvers import Budget, Option, Problem, Slot
from solvers.greedy import Greedy

RATIOS = {9: (1.0, 0.87, 0.75, 0.5, 0.25, 0.2, 0.1), 10: (1.0, 0.87, 0.75, 0.6, 0.5, 0.25, 0.2, 0.1)}
RATIOS[8] = (1.0, 0.75, 0.5, 0.25, 0.2, 0.1)
BUDGETS = ("decode_ms", "memory_mib", "prefill_ms")
BATCH, PROMPT, GENERATE = 16, 1024, 256
FLOPS, BANDWIDTH, LAUNCH_MS = 500e12, 2.5e12, 0.004  # reached on one accelerator of the 2024 generation
BYTES = {"fp16": 2.0, "int8": 1.03, "int4": 0.56}


@dataclass(frozen=True)
class Shape:
    """A model's geometry and the options of a layer: attention x FFN x precision."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: tuple[int, ...]  # kept; 0 = no attention, -1 = a linear in its place
    ffn: int
    ffn_options: int
    precisions: tuple[str, ...] = ("fp16",)
    vocabulary: int = 128256

    @property
    def options(self) -> int:
        """Return the options of a layer."""
        return len(self.kv_heads) * self.ffn_options * len(self.precisions)


_LARGE = {"layers": 80, "hidden": 8192, "heads": 64, "ffn": 28672}
SHAPES = (
    Shape("12 x 54", 12, 768, 12, (12, 6, 3, 1, -1, 0), 3072, 9, vocabulary=50257),
    Shape("80 x 16", **_LARGE, kv_heads=(8, 0), ffn_options=8),
    Shape("80 x 54", **_LARGE, kv_heads=(8, 4, 2, 1, -1, 0), ffn_options=9),
    Shape("160 x 60", 160, 16384, 128, (8, 4, 2, 1, -1, 0), 53248, 10),
    Shape("80 x 162", **_LARGE, kv_heads=(8, 4, 2, 1, -1, 0), ffn_options=9, precisions=("fp16", "int8", "int4")),
)


@dataclass(frozen=True)
class _Part:
    """A sub-block: its name, parameters, KV-cache bytes, operations of attention, and the share of damage it does."""

    name: str
    parameters: float
    kv_bytes: float
    attended: float  # multiply-adds per prompt of the batch
    damage: float


def problem(shape: Shape, seed: int, budgets: int) -> Problem:
    """Return the problem of a shape, with the first `budgets` of `BUDGETS` and up to five tied pairs of neighbours.

    The first limit is a drawn share of what the parent costs; each further one a drawn share, 90 to 97 %, of what the
    greedy choice under the limits before it costs, so that all of them bind.
    """
    rng = np.random.default_rng([seed, shape.layers, shape.options])
    pairs = [(a, f) for a in _attentions(shape) for f in _ffns(shape)]
    costs = {(a.name, f.name, p): _costs(a, f, p, rng) for a, f in pairs for p in shape.precisions}
    sensitivity = _sensitivity(shape.layers, rng)
    slots = []
    for layer in range(shape.layers):
        options = []
        for a, f in pairs:
            own = sensitivity[layer] * (np.array([a.damage, f.damage]) * rng.lognormal(0.0, 0.25, 2))
            both = own.sum() + 0.3 * float(np.sqrt(own.prod())) * rng.normal(0.3, 0.3)
            for p in shape.precisions:
                coarse = (
                    {"fp16": 0.0, "int8": 0.002, "int4": 0.03}[p] * sensitivity[layer].mean() * rng.lognormal(0, 0.4)
                )
                size = (a.parameters + f.parameters) / (pairs[0][0].parameters + pairs[0][1].parameters)
                score = max(0.0, both) + coarse * size
                options.append(Option(name=f"{a.name}/{f.name}/{p}", score=score, costs=costs[a.name, f.name, p]))
        slots.append(Slot(name=f"layers.{layer}", options=tuple(options), parent=options[0].name))
    first = sorted(rng.choice(shape.layers // 2, min(5, shape.layers // 6), replace=False).tolist())
    tied = tuple((f"layers.{2 * i}", f"layers.{2 * i + 1}") for i in first)
    base = _base(shape)
    whole = base[BUDGETS[0]] + shape.layers * slots[0].options[0].costs[BUDGETS[0]]
    share = rng.uniform(0.45, 0.8) * (0.5 if len(shape.precisions) > 1 else 1.0)  # below what integers alone reach
    made = Problem(slots=tuple(slots), base=base, budgets=(Budget(cost=BUDGETS[0], limit=share * whole),), tied=tied)
    for cost in BUDGETS[1:budgets]:
        limit = Greedy().solve(made).totals[cost] * rng.uniform(0.9, 0.97)
        made = replace(made, budgets=(*made.budgets, Budget(cost=cost, limit=limit)))
    return made


def _attentions(shape: Shape) -> list[_Part]:
    head = shape.hidden // shape.heads
    found = []
    for kept in shape.kv_heads:
        share = kept / shape.kv_heads[0]
        if kept <= 0:
            parameters = shape.hidden**2 * (kept < 0)
            found.append(_Part("linear" if kept else "none", parameters, 0, 0, 0.8 if kept else 1.0))
            continue
        parameters = 2 * shape.hidden**2 + 2 * shape.hidden * kept * head
        cache = 2 * 2 * kept * head * BATCH * (PROMPT + GENERATE)
        found.append(_Part(f"kv{kept}", parameters, cache, BATCH * PROMPT**2 * shape.hidden, 0.5 * (1 - share) ** 1.5))
    return found


def _ffns(shape: Shape) -> list[_Part]:
    found = []
    for ratio in RATIOS[shape.ffn_options]:
        width = round(shape.ffn * ratio / 256) * 256 or 256
        found.append(_Part(f"ffn{width}", 3 * shape.hidden * width, 0, 0, (1 - ratio) ** 1.6))
    return [*found, _Part("linear", shape.hidden**2, 0, 0, 1.1), _Part("none", 0, 0, 0, 1.25)]


def _costs(attention: _Part, ffn: _Part, precision: str, rng: np.random.Generator) -> dict[str, float]:
    """Return what a pair costs on the accelerator; times have an error of one percent, and are never negative."""
    parameters = attention.parameters + ffn.parameters
    weights = parameters * BYTES[precision]
    rate = FLOPS * {"fp16": 1.0, "int8": 1.6, "int4": 0.9}[precision]
    launches = LAUNCH_MS * (4 * (attention.parameters > 0) + 3 * (ffn.parameters > 0))
    prefill = 1e3 * (2 * parameters * BATCH * PROMPT + 2 * attention.attended) / rate + launches
    decode = 1e3 * max((weights + attention.kv_bytes) / BANDWIDTH, 2 * parameters * BATCH / rate) + launches
    prefill, decode = (float(t * rng.normal(1.0, 0.01)) for t in (prefill, decode))
    return {
        "prefill_ms": prefill, "decode_ms": decode, "request_ms": prefill + GENERATE * decode,
        "weights_mib": weights / 2**20, "kv_mib": attention.kv_bytes / 2**20, "parameters": float(parameters),
        "bytes": float(round(weights)),
    }  # fmt: skip


def _base(shape: Shape) -> dict[str, float]:
    """Return the costs of embedding and head."""
    embedded = _Part("head", 2 * shape.vocabulary * shape.hidden, 0, 0, 0)
    nothing = _Part("none", 0, 0, 0, 0)
    return _costs(nothing, embedded, "fp16", np.random.default_rng(0))


def _sensitivity(layers: int, rng: np.random.Generator) -> np.ndarray:
    """Return how much attention and FFN of each layer matter, [layers, 2]: a walk, higher at both ends."""
    walk = np.exp(np.cumsum(rng.normal(0.0, 0.15, (layers, 2)), axis=0))
    depth = np.linspace(0.0, 1.0, layers)[:, None]
    ends = 1.0 + 6.0 * np.exp(-depth * layers / 2) + 3.0 * np.exp(-(1 - depth) * layers / 2)
    later = np.hstack([1.3 - depth, 0.8 + 0.4 * depth])  # late attention matters less
    found: np.ndarray = 0.05 * walk * ends * later
    return found
