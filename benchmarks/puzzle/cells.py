"""What is compared, and how much of it: every engine is a cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compress.contracts import Target

TARGET = Target(name="laptop", threads=1, batch=1, prompt=128, generate=64, huge_pages=True)
BATCHES = (1, 8)
STRUCTURE, ALL, SINGLE = "structure", "all", "single"  # curves: shapes alone; with codes and zeros; one method
PUZZLE, CONTROL, DENSE = "puzzle", "control", "dense"
SOLVERS = {"uniform": STRUCTURE, "greedy": ALL, "random": ALL}  # that choose worse -> where above all
DROPS = {"drop similarity": "similarity", "drop das": "das"}
QUANTIZED: dict[str, dict[str, Any]] = {
    "int4": {"bits": 4, "group_size": 32},
    "int4 gptq": {"bits": 4, "group_size": 32},
    "int8": {"bits": 8, "activation": "dynamic"},
}
ALONE, NO_BLD = "scores alone", "no bld"
# What is left out of Puzzle on the curve of shapes, the first on both -> what of the choice is other.
ABLATIONS: dict[str, dict[str, Any]] = {
    ALONE: {"rescore": 0}, "lm scores": {"score": "lm"}, NO_BLD: {}, "coupled": {"refine": True},
}  # fmt: skip
BUDGETS = {STRUCTURE: (0.8, 0.65, 0.55, 0.46, 0.38), ALL: (0.55, 0.46, 0.38, 0.32, 0.27)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is run.

    Attributes:
        budgets: by curve, shares of the dense engine's decode time; codes alone give half of it and more.
        baselines: by curve, those at which baselines of the choice, and what is left out of Puzzle, stand.
        both: whether these baselines stand on both curves.
        drops: how many blocks go.
        ways: what is run beside Puzzle, and what of Puzzle is left out.
        attention: variants.
        ffn: likewise.
        precisions: of the curve of all options.
        patterns: likewise.
        bld: steps of each block's distillation.
        heal: steps by which every engine is healed, all trainings of a cell together.
        batch: windows of a step.
        windows: of training text at most.
        scoring: calibration windows by which options are judged.
        rescore: how often options are scored anew among what was chosen.
        rounds: of the loop on the clock at most.
        looks: processes in which that loop times a choice.
        seconds: of the clock, for each part that a profile times.
        processes: of the last, common timing; the next count is tried while not all is known within 1 %.
        lr: of healing by distillation.
        control_lr: of the parent's own training.
        geometries: at which speed alone is measured.
    """

    budgets: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: dict(BUDGETS))
    baselines: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: dict(BUDGETS))
    both: bool = True
    drops: tuple[int, ...] = (1, 2, 3, 4)
    ways: tuple[str, ...] = (*SOLVERS, *DROPS, *QUANTIZED, *ABLATIONS)
    attention: tuple[str, ...] = ("parent", "kv 50%", "kv 25%", "linear", "none")
    ffn: tuple[str, ...] = ("parent", "75%", "50%", "25%", "linear", "none")
    precisions: tuple[str, ...] = ("fp32", "int4-g32", "int8-dynamic")
    patterns: tuple[str, ...] = ("dense", "2:4")
    bld: int = 100
    heal: int = 200
    batch: int = 8
    windows: int = 2048
    scoring: int = 32
    rescore: int = 4
    rounds: int = 4
    looks: tuple[int, ...] = (4,)
    seconds: float = 1.0
    processes: tuple[int, ...] = (6,)
    lr: float = 1e-3
    control_lr: float = 3e-4
    geometries: tuple[str, ...] = ("135 M", "0.5 B")


FULL = Plan()
QUICK = Plan(
    budgets={STRUCTURE: (0.65, 0.46), ALL: (0.36, 0.28)}, baselines={STRUCTURE: (0.46,), ALL: (0.28,)}, both=False,
    drops=(2,),
    ways=("uniform", "greedy", "random", "drop similarity", "int4", "int8"),
    attention=("parent", "kv 50%", "none"), ffn=("parent", "50%", "none"), patterns=("dense",),
    bld=12, heal=24, batch=4, windows=512, scoring=8, rescore=1, rounds=3, looks=(1,), seconds=0.2,
    processes=(2,), geometries=(),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One engine: on which curve it stands, how it is made, and its budget, or the blocks that go."""

    curve: str
    way: str
    amount: float = 0.0

    @property
    def key(self) -> str:
        """Return its name in the results."""
        return f"engine/{self.curve}/{self.way}" + (f"/{self.amount:g}" if self.amount else "")

    @property
    def chosen(self) -> bool:
        """Whether the solver, or what stands in for it, made it."""
        return self.curve != SINGLE and self.way not in DROPS


def cells(plan: Plan) -> Iterator[Cell]:
    """Yield what is to be run, Puzzle's own first."""
    yield Cell(SINGLE, DENSE)
    for curve in (ALL, STRUCTURE):
        yield from (Cell(curve, PUZZLE, budget) for budget in plan.budgets[curve])
    yield Cell(SINGLE, CONTROL)
    yield from (Cell(SINGLE, way) for way in QUANTIZED if way in plan.ways)
    yield from (Cell(STRUCTURE, way, count) for way in DROPS if way in plan.ways for count in plan.drops)
    for way in (w for w in SOLVERS if w in plan.ways):
        curves = (ALL, STRUCTURE) if plan.both else (SOLVERS[way],)
        yield from (Cell(curve, way, budget) for curve in curves for budget in plan.baselines[curve])
    for way in (w for w in ABLATIONS if w in plan.ways):
        for curve in (ALL, STRUCTURE) if way == ALONE else (STRUCTURE,):
            yield from (Cell(curve, way, budget) for budget in plan.baselines[curve])


def choice(cell: Cell, plan: Plan) -> dict[str, Any]:
    """Return the settings of the choice of a cell."""
    every = cell.curve == ALL
    found: dict[str, Any] = {
        "attention": plan.attention, "ffn": plan.ffn, "budget": {"decode": f"{cell.amount:g}x"},
        "precisions": plan.precisions if every else plan.precisions[:1],
        "patterns": plan.patterns if every else plan.patterns[:1],
        "windows": plan.scoring, "rounds": plan.rounds, "looks": plan.looks, "seconds": plan.seconds, "steps": plan.bld,
        "lr": 3e-3, "rescore": plan.rescore,
    }  # fmt: skip
    return found | ({"solver": cell.way, "rescore": 0} if cell.way in SOLVERS else {}) | ABLATIONS.get(cell.way, {})
