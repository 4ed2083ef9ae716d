"""From a model and wishes to the parts that are to be measured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compress import loading
from compress.errors import BadSettings
from compress.profiling import Wanted
from profiles import _precision
from profiles._geometry import base_of, hidden_of, parse, parts_of
from profiles._parts import Attention, Base, Choice, Ffn, Linear, Part

_DEEPEST = 8  # blocks of a whole model: enough to tell what sums miss, and quickly measured
_ROOM = 512 * 2**20  # bytes up to which it may be deeper, and so as large as models that it is to tell of


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be measured.

    Attributes:
        config: of the architecture.
        choices: parts, first the model's own.
        base: what stands outside the blocks.
        block: the parts of the model's first block, of which the reference engine and those of the base are made.
        blocks: of the model.
        parameters: of the model.
        requests: batch and prompt of each, the target's first.
    """

    config: Any
    choices: tuple[Choice, ...]
    base: Choice
    block: tuple[Choice, ...]
    blocks: int
    parameters: int
    requests: tuple[tuple[int, int], ...]

    @property
    def vocabulary(self) -> int:
        """Tokens of the model."""
        assert isinstance(self.base.part, Base)
        return self.base.part.vocabulary


def plan(wanted: Wanted) -> Plan:
    """Return what is to be measured.

    Raises:
        BadModel: the model cannot be opened.
        BadSettings: a wish that cannot be.
    """
    facts = loading.facts_of(wanted.model, wanted.task)
    config = loading.read_config(loading.locate(wanted.model))
    family, hidden = config.model_type, hidden_of(facts)
    _check(wanted, facts.positions)
    layouts = (facts.layout, *wanted.layouts)
    own = list(dict.fromkeys(p for layout in layouts for block in layout for p in parts_of(block, family, hidden)))
    parts: list[Part] = [*own, *_narrower(own, wanted), *(parse(text, family) for text in wanted.shapes)]
    precisions = dict.fromkeys([*wanted.precisions, *map(_precision.of, wanted.grids)])
    kinds = [(p, z) for p in precisions for z in wanted.patterns]
    choices = [Choice(part=part, precision=p, pattern=z) for p, z in kinds for part in parts]
    floats = wanted.target.precision
    first = next(found for block in facts.layout if (found := parts_of(block, family, hidden)))
    requests = dict.fromkeys([(wanted.target.batch, wanted.target.prompt), *wanted.requests])
    return Plan(
        config=config, choices=tuple(dict.fromkeys(choices)), base=base_of(facts, family), blocks=facts.blocks,
        parameters=facts.parameters,
        block=tuple(Choice(part=p, precision=floats) for p in first), requests=tuple(requests),
    )  # fmt: skip


def wholes(plan: Plan, count: int, seed: int) -> list[tuple[Choice, ...]]:
    """Return whole models of random parts: every block has attention, an FFN, or both, of any shape and precision.

    The same seed gives the same models, in the same order, however many are asked for.
    """
    rng, found = random.Random(seed), []
    attention, ffn = ([c for c in plan.choices if _stands(c.part, place)] for place in ("attention", "ffn"))
    kinds, deepest = sorted({k for c in plan.choices if (k := _kernels(c))}), _deepest(plan)
    for _ in range(count):
        kernels = rng.choice(kinds) if kinds else None  # one engine multiplies all its codes by one kind of kernels
        depth = rng.randint(2, max(2, deepest))
        picks: list[Choice] = []
        for _ in range(depth):
            missing = rng.choice(("attention", "ffn", "", "", ""))
            for name, options in (("attention", attention), ("ffn", ffn)):
                fitting = [c for c in options if _kernels(c) in (None, kernels)]
                if fitting and name != missing:
                    picks.append(rng.choice(fitting))
        found.append(tuple(picks) or plan.block)
    return found


def _deepest(plan: Plan) -> int:
    """Return of how many blocks whole models are at most."""
    floats = _precision.BYTES[plan.block[0].precision]
    base, block = plan.base.bytes_with(floats), sum(c.bytes_with(floats) for c in plan.block)
    return min(plan.blocks, max(_DEEPEST, (_ROOM - base) // block))


def _stands(part: Part, place: str) -> bool:
    """Tell whether a part is attention, or an FFN, or the linear in its place."""
    return part.part == place or (isinstance(part, Linear) and part.place == place)


def _kernels(choice: Choice) -> str | None:
    """Return which kernels multiply by a choice's codes, None where there are none."""
    own = _precision.parse(choice.precision)
    return own.kernels if own.grid else None


def _narrower(own: Sequence[Part], wanted: Wanted) -> list[Part]:
    """Return the model's parts with fewer key heads and fewer neurons, as many as were asked for."""
    found: list[Part] = []
    for part in own:
        if isinstance(part, Attention):
            for count in wanted.kv_heads:
                if part.heads % count:
                    raise BadSettings(f"must divide {part.heads} query heads, got {count}", key="kv_heads")
                found.append(part.model_copy(update={"kv_heads": count}))
        elif isinstance(part, Ffn):
            found += [part.model_copy(update={"neurons": n}) for n in wanted.neurons]
    return found


def _check(wanted: Wanted, positions: int | None) -> None:
    for name in wanted.precisions:
        if _precision.parse(name).grid is None and name != wanted.target.precision:
            raise BadSettings(f"the target's graph is {wanted.target.precision}, got {name!r}", key="precision")
    for pattern in wanted.patterns:
        _precision.check_pattern(pattern)
    if len(wanted.copies) < 2 or list(wanted.copies) != sorted(set(wanted.copies)) or wanted.copies[0] < 1:
        raise BadSettings(f"must be two or more ascending depths, got {wanted.copies}", key="copies")
    longest = max([wanted.target.prompt, *(prompt for _, prompt in wanted.requests)]) + 1
    if positions is not None and longest + wanted.target.generate > positions:
        what = f"a prompt of {longest - 1} and {wanted.target.generate} new tokens"
        raise BadSettings(f"{what} are more than the {positions} positions of the model", key="prompt")
