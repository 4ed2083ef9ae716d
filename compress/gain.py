"""What a pass is worth on the engine: whether it pays, is neutral or costs, and what its author expected of it.

The engine of the model before the pass and that of the model after it are timed in turns on the target's request.  A
pass *pays* that makes a request clearly faster, or the engine's files clearly smaller at the same speed; it *costs*
where a request is clearly slower, or files are larger at the same speed; else it is *neutral*.  Clear is more than 3 %,
which the 95 % interval of the ratio must not doubt.  Where both models give one graph, of the same operators, shapes
and types, there is nothing to time: the values of weights do not change time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from compress import files, tensors
from compress.card import read_card
from compress.facts import Facts
from compress.measure import Measurement, Time, digits
from compress.settings.expecting import Expect

NOISE = 0.03  # ratios of times repeat within 3 %; nearer to 1 is no difference
Verdict = Literal["pays", "neutral", "costs"]

_MASKS = "masks.safetensors"
_PHASES = {"decode_speedup": "decode", "prefill_speedup": "prefill", "request_speedup": "request"}
_TOLD = {
    "decode_speedup": "decode", "prefill_speedup": "prefill", "request_speedup": "request", "smaller": "engine files",
}  # fmt: skip


@dataclass(frozen=True)
class Factor:
    """How many times as fast, or as small, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether it is no chance that this is not 1."""
        return abs(math.log(self.value)) >= -math.log1p(-NOISE) and not self.low <= 1 <= self.high

    def __str__(self) -> str:
        between = f" ({digits(self.low)} to {digits(self.high)})" if self.low < self.high else ""
        return f"{digits(self.value)} times{between}"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a pass is worth.

    Attributes:
        verdict: in a word.
        factors: `decode_speedup`, `prefill_speedup`, `request_speedup` and `smaller`; no decode where nothing is
            generated.
        why: what the figures do not say by themselves, such as that there was nothing to measure; may be empty.
        kernels: in words, how many layers of the engine after the pass have kernels that use its zeros and codes; empty
            where the runtime leaves no doubt.
    """

    verdict: Verdict
    factors: Mapping[str, Factor]
    why: str = ""
    kernels: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """The verdict with its figures, in a line."""
        if self.why:
            return f"{self.verdict}: {self.why}"
        faster = f"a request is {self.factors['request_speedup']} as fast"
        told = f"{self.verdict}: {faster}, engine files are {self.factors['smaller']} smaller"
        return "; ".join([told, *self.kernels])

    def missed(self, expect: Expect | None) -> list[str]:
        """Return, in words, what was expected and is not there; a factor is there when its interval reaches it.

        Without any expectation a pass is expected to pay.
        """
        if expect is None:
            return [] if self.verdict == "pays" else [f"expected that it pays, and it is {self.told}"]
        return [
            f"expected {name} = {wanted:g}, measured {_TOLD[name]} {self.factors[name]} as {_as(name)}"
            for name, wanted in expect.wanted.items()
            if self.factors[name].high < wanted
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**asdict(self), "kernels": list(self.kernels)}


def of_measurement(measured: Measurement, kernels: Sequence[str] = ()) -> Gain:
    """Return the worth of what made the second of two engines out of the first.

    Args:
        measured: both, in turns.
        kernels: what the second is known to use, in words.
    """
    before, after = measured.engines
    times: dict[str, Time | None] = {name: getattr(after, phase) for name, phase in _PHASES.items()}
    factors = {n: Factor(1 / t.ratio, 1 / t.ratio_high, 1 / t.ratio_low) for n, t in times.items() if t}
    size = before.file_mib / after.file_mib
    factors["smaller"] = Factor(size, size, size)
    for name in ("request_speedup", "smaller"):
        if factors[name].clear:
            verdict: Verdict = "pays" if factors[name].value > 1 else "costs"
            return Gain(verdict=verdict, factors=factors, kernels=tuple(kernels))
    return Gain(verdict="neutral", factors=factors, kernels=tuple(kernels))


def of_one_graph(before: Facts, after: Facts, patterns: Collection[str], runtime: str) -> Gain:
    """Return the worth of a pass that leaves the graph as it is.

    Args:
        before: of the model before it.
        after: of the model that it left.
        patterns: of zeros that the runtime has kernels for.
        runtime: of the target.
    """
    why = "the same graph, so as fast and as large as before"
    new = {fact.pattern for name, fact in after.masks.items() if before.masks.get(name) != fact}
    if idle := sorted(new - set(patterns)):
        why += f"; {runtime} has no kernels for {' or '.join(idle)} zeros, which only make an archive of it smaller"
    names = _TOLD if after.task == "causal-lm" else _TOLD.keys() - {"decode_speedup"}
    return Gain(verdict="neutral", factors={n: Factor(1.0, 1.0, 1.0) for n in names}, why=why)


def graph_of(folder: Path, facts: Facts, patterns: Collection[str]) -> str:
    """Return the digest of all in an artifact that decides the operators, shapes and types of its engine.

    Args:
        folder: the artifact's.
        facts: of it; tell the patterns of masks.
        patterns: of zeros that the runtime has kernels for.
    """
    found = {path: tensors.places(path) for path in sorted(folder.glob("*.safetensors")) if path.name != _MASKS}
    shapes = {n: [str(p.layout.dtype), *p.layout.shape] for places in found.values() for n, p in places.items()}
    sparse = {n: fact.pattern for n, fact in facts.masks.items() if fact.pattern in patterns}
    config = {k: v for k, v in files.read_json(folder / "config.json").items() if not k.startswith("_")}
    return files.digest_of([config, shapes, read_card(folder)["grids"], sparse])


def _as(name: str) -> str:
    return "small" if name == "smaller" else "fast"
