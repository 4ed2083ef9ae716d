"""What the choice of blocks takes: the space, what its options are scored and priced by, and the budget."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from compress.budgets import BudgetTable
from compress.sweep import clock
from passes._library import SpaceSettings
from passes._sensitivity import Kind


class PuzzleSettings(SpaceSettings):
    """Settings of the choice."""

    budget: BudgetTable = Field(
        {"weights_mib": "0.75x"},
        min_length=1,
        description="limits on the whole model, such as { decode = '0.6x', weights_mib = 40 }: of prefill, decode and "
        "request in ms, weights_mib, kv_mib, memory_mib, parameters, bytes; '0.6x' = that share of the dense model's",
    )
    target: str = Field("", description="name of the target whose request the budget is about; empty = the first")
    profile: str = Field(
        "", description="latency profile: a file, or the name of a datasheet; empty = measured here and kept"
    )
    score: Kind = Field(
        "kl",
        description="what a changed part costs: distance to the parent's outputs, higher loss of the task, cosine "
        "distance of the final hidden states, or fewer right classes",
    )
    windows: int = Field(32, ge=1, description="calibration windows by which quality is judged")
    precisions: tuple[str, ...] = Field(
        ("fp32",),
        min_length=1,
        description="what the linears of a part may be stored in: the floats of the target, int4-g32 (groups of 32), "
        "int8-dynamic (inputs of 8 bits too), each also with -exact kernels; `bits = 'plan'` makes the chosen ones",
    )
    patterns: tuple[str, ...] = Field(
        ("dense",),
        min_length=1,
        description="zeros that the linears of a part may get: dense, or N:M; `pattern = 'plan'` makes the chosen ones",
    )
    quantizer: str = Field("rtn", description="the pass that tells what codes cost in quality")
    pruner: str = Field("magnitude", description="the pass that tells what zeros cost in quality")
    solver: str = Field(
        "mip", description="who chooses: mip (proven), exhaustive, lagrangian, or a baseline: greedy, uniform, random"
    )
    tolerance: float = Field(0.02, gt=0, lt=1, description="how far over its budget a measured time may be, relative")
    rounds: int = Field(5, ge=1, description="choices to build and time at most until the budget is met on the clock")
    looks: tuple[PositiveInt, ...] = Field(
        clock.PROCESSES,
        min_length=1,
        description="fresh processes in which a built choice is timed, ascending: more until its share is known within "
        "1 %, or there are no more",
    )
    seconds: float = Field(
        0.3, gt=0, description="where parts are measured here: to aim at, for each phase in each process"
    )
    rescore: int = Field(
        2,
        ge=0,
        description="how often at most shapes are scored anew among those that were chosen, and others chosen by that: "
        "scores of one change each do not add up where much is removed",
    )
    refine: bool = Field(
        False,
        description="whether a second round trains the picked options and their neighbours together in their blocks, "
        "scores them and chooses anew",
    )
    steps: int = Field(200, ge=0, description="with refine: optimizer steps of each training")
    lr: float = Field(1e-3, gt=0, description="with refine: highest learning rate")
    batch: int = Field(8, ge=1, description="with refine: sequences at once")
