"""The closed list of costs, and which totals keep a limit."""

from __future__ import annotations

from collections.abc import Mapping

COSTS = ("prefill_ms", "decode_ms", "request_ms", "weights_mib", "kv_mib", "parameters", "bytes")
SUMS: Mapping[str, tuple[str, ...]] = {"memory_mib": ("weights_mib", "kv_mib")}  # what a budget may name beside COSTS
EXACT = frozenset({"parameters", "bytes"})  # counts: a sum of whole numbers has no rounding to forgive
TOLERANCE = 1e-9  # relative; sums of some hundred measured costs differ in the 14th digit by their order alone


def keeps(cost: str, total: float, limit: float) -> bool:
    """Return whether a total keeps a limit: exactly for counts, else up to `TOLERANCE` of the limit."""
    return total <= (limit if cost in EXACT else limit + TOLERANCE * abs(limit))


def close(a: float, b: float) -> bool:
    """Return whether two scores or totals are the same number but for rounding."""
    return a == b or abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + 1e-12
