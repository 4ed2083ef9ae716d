"""What a user can mend in a problem: faults of its tables, budgets that nothing keeps, and too little time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.errors import UserFault

_SHOWN = 20


class BadProblem(UserFault):
    """A problem that cannot be right, found before any search; one line per fault.

    Args:
        faults: all of them; the message shows the first twenty and counts the rest.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        more = len(faults) - _SHOWN
        super().__init__("\n".join([*faults[:_SHOWN], *([f"and {more} more of the kind"] if more > 0 else [])]))
        self.faults = tuple(faults)


class Infeasible(UserFault):
    """No choice keeps all budgets and constraints.

    Args:
        message: one line.
        binding: names of the budgets that cannot hold: each alone, or all of them together; empty where the
            constraints other than budgets contradict each other.
        least: of each binding budget, the least total that can be reached: alone where it binds alone, else with the
            other binding budgets kept.
        nearest: limits of all budgets that can be kept together, from the smallest sum of relative loosenings.
    """

    def __init__(
        self,
        message: str,
        *,
        binding: tuple[str, ...] = (),
        least: Mapping[str, float] | None = None,
        nearest: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(message)
        self.binding, self.least, self.nearest = binding, dict(least or {}), dict(nearest or {})


class Unsolved(UserFault):
    """A search that ended without a choice, though there is one or may be one."""
