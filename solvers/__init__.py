"""Solvers of the block choice: one option per layer and sub-block, of least damage, within all budgets.

A solver is one file with one subclass of `Solver`: `mip` is exact, `exhaustive` the oracle of small problems,
`greedy`, `uniform` and `random` are baselines, `lagrangian` is a bound.
`compress.registry.load("solvers", name, Solver)` finds it by name.

    problem = Problem(slots=(...), base={"decode_ms": 0.4, ...}, budgets=(Budget(cost="decode_ms", limit=3.0),))
    solution = Mip().solve(problem)          # verified; raises Infeasible with the least that can be reached
    for point in front(problem, "decode_ms", [2.0, 2.5, 3.0], Mip()): ...
"""

from solvers._backends import versions
from solvers._costs import COSTS, SUMS, TOLERANCE
from solvers._explain import Least, least
from solvers._faults import BadProblem, Infeasible, Unsolved
from solvers._problem import Budget, Option, Picks, Problem, Slot
from solvers._search import Found
from solvers._solution import Solution, verify
from solvers._solver import Solver, SolverSettings
from solvers._ways import AtBatch, Point, Price, best_batch, diverse, front, shadow_prices

__all__ = [
    "COSTS", "SUMS", "TOLERANCE", "AtBatch", "BadProblem", "Budget", "Found", "Infeasible", "Least", "Option", "Picks",
    "Point", "Price", "Problem", "Slot", "Solution", "Solver", "SolverSettings", "Unsolved", "best_batch", "diverse",
    "front", "least", "shadow_prices", "verify", "versions",
]  # fmt: skip
