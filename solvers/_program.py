"""The choice as a mixed-integer program.

Costs are those of shapes, so the same in many layers.  Where there are few distinct ones, what matters is how many
layers take each: with these counts whole, the rest is a transport problem, whose corners are whole by themselves.  Then
the counts are the integers and the choices are not, which is a far smaller search.

Rows are a millionth looser than the budgets, so that no choice that keeps these lies within a solver's tolerance of a
row: there both CBC and HiGHS were seen to call a choice optimal that is not.  Who calls takes out what is beyond.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pulp

from solvers._backends import Backend, run
from solvers._table import Choice, Reals, Table

_LARGEST = 1000.0  # entry of a row, and about the value of the objective: tolerances of 1e-7 are 1e-10 of it
_LOOSER = 1e-6  # of the largest cost; tolerances of solvers are at most 1e-6 in rows whose largest entry is 1000
_ROUNDED = 1e-7  # of the objective: what variables that are whole but for a tolerance change in it


@dataclass(frozen=True)
class Outcome:
    """How a search ended.

    Attributes:
        choice: the best that was found, or None.
        bound: of the objective, in the units of the table; -inf where nothing is known.
        finished: whether the search was not cut short: without a choice there is none.
        objective: of the choice; inf without one.
    """

    choice: Choice | None
    bound: float
    finished: bool
    objective: float


def minimise(
    table: Table, engine: Backend, *, scale: float = 1.0, without: tuple[Choice, ...] = (), stretch: Reals | None = None
) -> Outcome:
    """Return the best choice of a table.

    Args:
        table: of the problem, reduced or not.
        engine: what runs it.
        scale: scaled score that the best choice is expected to have about.
        without: choices beyond a budget that are not to come back.
        stretch: [B], what a relative loosening of 1 adds to each room; then the sum of loosenings is minimised in the
            place of the score.
    """
    factor = _LARGEST / scale if stretch is None else 1.0
    program = _Program(table, factor, stretch)
    relaxed = program.relax()
    for beyond in without:
        program.refuse(beyond)
    ended = run(program.made, engine)
    choice = program.choice() if ended.solved else None
    if relaxed and choice is None and ended.solved:  # not a corner: the same counts have a whole choice as good
        program.settle()
        choice = program.choice() if run(program.made, engine).solved else None
    if choice is None:
        return Outcome(None, ended.bound / factor, ended.finished and not ended.solved, math.inf)
    objective = table.scored(choice) if stretch is None else ended.objective
    same = abs(factor * objective - ended.bound) <= _ROUNDED * max(ended.bound, 1.0)
    return Outcome(choice, objective if same else ended.bound / factor, ended.finished, objective)


class _Program:
    """A program and its variables: 1 where a group takes an option."""

    def __init__(self, table: Table, factor: float, stretch: Reals | None) -> None:
        self.table, self.made = table, pulp.LpProblem("choice", pulp.LpMinimize)
        self._counts: dict[bytes, Any] = {}
        self._digits: dict[str, list[Any]] = {}
        self.picked = {
            (g, j): self.made.add_variable(f"x{g}_{j}", 0, 1, "Integer")
            for g, j in zip(*map(np.ndarray.tolist, np.nonzero(np.isfinite(table.score))), strict=True)
        }
        self.classes: dict[bytes, list[Any]] = {}  # the options of each cost
        for (g, j), x in self.picked.items():
            self.classes.setdefault(table.costs[:, g, j].tobytes(), []).append(x)
        loose = [] if stretch is None else [self.made.add_variable(f"r{b}", 0) for b in range(len(table.room))]
        goal = [(x, 1.0) for x in loose] or [(x, float(factor * table.score[at])) for at, x in self.picked.items()]
        self.made.setObjective(pulp.LpAffineExpression(goal))  # zeros too: PuLP wants one
        for g, options in enumerate(np.isfinite(table.score)):
            self.made.addConstraint(_sum((self.picked[g, j], 1.0) for j in np.flatnonzero(options)) == 1)
        for b, room in enumerate(table.room):
            terms = [(x, _LARGEST * table.costs[b][at]) for at, x in self.picked.items()]
            terms += [] if stretch is None else [(loose[b], -_LARGEST * stretch[b])]
            self.made.addConstraint(_sum(terms) <= _LARGEST * (room + _LOOSER))
        self._differ()

    def _differ(self) -> None:
        """Add the rows of what must differ; a layer of several slots gets a variable that is 1 where all are equal."""
        for a, alike in enumerate(self.table.alike):
            equal = []
            for i, literals in enumerate(alike.layers):
                held = [self.picked[at] for at in literals if at in self.picked]
                if len(held) < len(literals):
                    continue  # an option that is ruled out: this layer differs anyway
                if len(held) == 1:
                    equal.append((held[0], 1.0))
                    continue
                both = self.made.add_variable(f"e{a}_{i}", 0, 1)
                self.made.addConstraint(_sum([(both, -1.0), *((x, 1.0) for x in held)]) <= len(held) - 1)
                equal.append((both, 1.0))
            if len(equal) > alike.most:
                self.made.addConstraint(_sum(equal) <= alike.most)

    def relax(self) -> bool:
        """Make integers of the counts alone, where there are few; return whether there are.

        Options that stand in what must differ stay integers of their own, so that the rest is a transport problem.
        With more than one cost for two open groups, counts decide little, and the search is longer, not shorter.
        """
        open_groups = int((np.isfinite(self.table.score).sum(axis=1) > 1).sum())
        if 2 * len(self.classes) > open_groups:
            return False
        marked = {at for alike in self.table.alike for literals in alike.layers for at in literals}
        for at, x in self.picked.items():
            x.cat = "Integer" if at in marked else "Continuous"
        return bool(self.counts())

    def counts(self) -> dict[bytes, Any]:
        """Return how many groups take each cost; variables that are made when first asked for."""
        if not self._counts:
            for key, same in self.classes.items():
                self._counts[key] = self.made.add_variable(f"n{len(self._counts)}", 0, len(same), "Integer")
                self.made.addConstraint(_sum([(self._counts[key], -1.0), *((x, 1.0) for x in same)]) == 0)
        return self._counts

    def refuse(self, choice: Choice) -> None:
        """Rule out a choice beyond a budget, and with it all of the same counts, which cost the same."""
        taken = Counter(self.table.costs[:, g, j].tobytes() for g, j in enumerate(choice))
        terms, ones = [], 0
        for key, n in self.counts().items():
            for i, bit in enumerate(self._bits(n)):
                one = taken[key] >> i & 1
                terms.append((bit, 1.0 if one else -1.0))
                ones += one
        self.made.addConstraint(_sum(terms) <= ones - 1)

    def _bits(self, n: Any) -> list[Any]:
        """Return the binary digits of a count, lowest first; made when first asked for."""
        if n.name not in self._digits:
            bits = [self.made.add_variable(f"{n.name}_{i}", 0, 1, "Integer") for i in range(n.upBound.bit_length())]
            self.made.addConstraint(_sum([(n, -1.0), *((bit, float(1 << i)) for i, bit in enumerate(bits))]) == 0)
            self._digits[n.name] = bits
        return self._digits[n.name]

    def settle(self) -> None:
        """Fix the counts at what they are and make integers of the choices again."""
        for n in self.counts().values():
            n.bounds(round(n.varValue), round(n.varValue))
        for x in self.picked.values():
            x.cat = "Integer"

    def choice(self) -> Choice | None:
        """Return the choice that the variables hold; None where they are not whole."""
        share = np.full(self.table.score.shape, -1.0)
        for at, x in self.picked.items():
            share[at] = x.varValue or 0.0
        return share.argmax(axis=1) if (share.max(axis=1) > 1 - 1e-6).all() else None


def _sum(terms: Any) -> pulp.LpAffineExpression:
    """Return an expression; PuLP's own constructor would keep only the last of a variable's terms."""
    added: dict[Any, float] = {}
    for x, value in terms:
        if value:
            added[x] = added.get(x, 0.0) + float(value)
    return pulp.LpAffineExpression(list(added.items()))
