"""Budgets in words: `{ decode = "0.6x", prefill = 12.5, weights_mib = 40 }` is a limit on each of three costs.

Text such as `"0.6x"` is a share of what the dense model costs, a number is in the cost's own unit: times in ms, sizes
in MiB.  Shares of times are taken of the dense engine timed in the same run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from compress import registry
from compress.errors import BadSettings

TIMES = ("prefill_ms", "decode_ms", "request_ms")
_UNITS = {
    "prefill_ms": "ms", "decode_ms": "ms", "request_ms": "ms", "weights_mib": "MiB", "kv_mib": "MiB",
    "memory_mib": "MiB", "parameters": "", "bytes": "bytes",
}  # fmt: skip
_NAMES = {name: cost for cost in _UNITS for name in (cost.removesuffix("_ms"), cost)}
_SHARE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*x\s*")


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An upper limit on one cost of the whole model.

    Attributes:
        cost: of `prefill_ms`, `decode_ms` (one token), `request_ms`, `weights_mib`, `kv_mib`, `memory_mib` (both of
            them), `parameters` and `bytes`.
        share: of what the dense model costs; None where `value` is given.
        value: in the cost's own unit.
    """

    cost: str
    share: float | None = None
    value: float | None = None

    @property
    def title(self) -> str:
        """The cost as budgets name it: `decode`, `weights_mib`."""
        return self.cost.removesuffix("_ms")

    @property
    def timed(self) -> bool:
        """Whether a clock tells the cost, and not arithmetic."""
        return self.cost in TIMES

    def of(self, dense: float) -> float:
        """Return the limit in the cost's unit, for what the dense model costs."""
        return dense * self.share if self.share is not None else self.value or 0.0

    def __str__(self) -> str:
        return f"{self.title} {f'{self.share:g}x' if self.share is not None else amount(self.cost, self.value or 0.0)}"


def parse(budget: Mapping[str, str | float]) -> tuple[Limit, ...]:
    """Return the limits of a budget, in the order given.

    Raises:
        BadSettings: all that is wrong with it, a line each, about the key `budget`.
    """
    faults: list[str] = []
    found: dict[str, Limit] = {}
    for name, given in budget.items():
        cost = _NAMES.get(name)
        if cost is None:
            faults.append(f"{name}: no such cost{registry.nearest(name, (c.removesuffix('_ms') for c in _UNITS))}")
        elif cost in found:
            faults.append(f"{name}: is limited twice; keep one of them")
        else:
            found[cost] = Limit(cost=cost, value=1.0)  # stands until it is read, so that a second one is told too
            try:
                found[cost] = _limit(cost, given)
            except ValueError as error:
                faults.append(f"{name}: {error}")
    if not budget:
        faults.append('holds no limit; { decode = "0.6x" } would do')
    if faults:
        raise BadSettings("\n".join(faults), key="budget")
    return tuple(found.values())


def checked(budget: Mapping[str, str | float]) -> Mapping[str, str | float]:
    """Return a budget that can be read, for tables of settings; else raise `ValueError` with all its faults."""
    if budget:
        try:
            parse(budget)
        except BadSettings as error:
            raise ValueError("; ".join(str(error).splitlines())) from None
    return budget


BudgetTable = Annotated[Mapping[str, str | float], AfterValidator(checked)]  # of settings; empty = no budget


def absolute(limits: Sequence[Limit], dense: Mapping[str, float]) -> dict[str, float]:
    """Return every limit in its cost's own unit.

    Args:
        limits: of the whole model.
        dense: what the dense model costs, by cost; `memory_mib` is weights_mib + kv_mib unless it is told.

    Raises:
        BadSettings: such a model has no such cost, as an encoder has no `decode`.
    """
    known = dict(dense)
    if "memory_mib" not in known and "weights_mib" in known:
        known["memory_mib"] = known["weights_mib"] + known.get("kv_mib", 0.0)
    faults = [
        f"{limit.title}: such a model has no such cost, got {limit}; known: "
        + ", ".join(c.removesuffix("_ms") for c in _UNITS if c in known)
        for limit in limits
        if limit.cost not in known
    ]
    if faults:
        raise BadSettings("\n".join(faults), key="budget")
    return {limit.cost: limit.of(known[limit.cost]) for limit in limits}


def amount(cost: str, value: float) -> str:
    """Return a value of a cost with its unit."""
    text = f"{value:,.0f}" if cost in ("parameters", "bytes") else f"{value:.4g}"
    return f"{text} {_UNITS[cost]}".rstrip()


def told(limits: Sequence[Limit]) -> str:
    """Return limits in words."""
    return ", ".join(str(limit) for limit in limits)


def slug(limits: Sequence[Limit]) -> str:
    """Return a name for files: `decode-0.6x`, `prefill-12.5-weights_mib-40`."""
    return "-".join(
        f"{limit.title}-" + (f"{limit.share:g}x" if limit.share is not None else f"{limit.value:g}") for limit in limits
    )


def _limit(cost: str, given: str | float) -> Limit:
    read = _SHARE.fullmatch(given) if isinstance(given, str) else None
    if isinstance(given, bool) or not (read or isinstance(given, int | float)):
        unit = f" in {_UNITS[cost]}" if _UNITS[cost] else ""
        raise ValueError(f'must be a share such as "0.6x", or a number{unit}, got {given!r}')
    number = float(read[1] if read else given)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"must be finite and more than 0, got {given!r}")
    return Limit(cost=cost, share=number) if read else Limit(cost=cost, value=number)
