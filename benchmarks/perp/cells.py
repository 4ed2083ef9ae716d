"""What is measured: the cells of the quick and of the full run, and whose learning rate each of them takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from compress.facts import Facts

PATTERNS = ("60%", "50%", "70%", "2:4")
MIDDLE, RANK, RANKS = "60%", 4, (1, 2, 4, 8, 16)
LORAS = ("mask_lora", "scale_lora", "lora_prune", "lora")
WINDOWS = ("module", "block")
GRID = (3e-4, 1e-3, 3e-3, 1e-2)  # the same for every form
QUICK_GRID = GRID[1:3]
WIDER = (1e-5, 3e-5, 1e-4, *GRID, 3e-2, 1e-1, 3e-1)  # where a form is best at an edge of the grid, this goes on


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training (or none) of one pruned model.

    Attributes:
        pattern: what was pruned by magnitude before: `dense`, a share of every matrix, or N:M.
        form: `none`, `full` (every parameter, under the mask), a subset or a reparametrisation of `perp`.
        rank: of the low-rank forms and of `head`, else 0.
        norms: whether the norms train too (beside a low-rank form).
        window: empty = the whole model on the text (retrain); `module` or `block` = reconstruction of those.
        seed: of initial values and of the order of batches.
        lr: the peak learning rate; None = the one that tuning found.
    """

    pattern: str
    form: str = "none"
    rank: int = 0
    norms: bool = False
    window: str = ""
    seed: int = 0
    lr: float | None = None

    @property
    def key(self) -> str:
        """Return the cell's name in the results."""
        return "/".join(f"{v:g}" if isinstance(v, float) else str(v) for v in dataclasses.astuple(self))

    @property
    def title(self) -> str:
        """Return the form for a reader: `mask_lora r=4 + norms`."""
        rank = f" r={self.rank}" if self.rank else ""
        where = f", reconstruct per {self.window}" if self.window else ""
        return f"{self.form}{rank}{' + norms' if self.norms else ''}{where}"

    @property
    def trains(self) -> bool:
        """Tell whether anything is trained."""
        return self.form != "none"

    def at(self, lr: float | None) -> Cell:
        """Return the cell with another learning rate."""
        return dataclasses.replace(self, lr=lr)

    def tuned_as(self) -> Cell:
        """Return the cell whose learning rates are tried and whose best one this cell takes.

        Full retraining and mask_lora are tuned for every pattern, the others at the middle one.  A low-rank form is
        tuned at rank 4 with norms, reconstruction per module, everything with seed 0.
        """
        everywhere = not self.window and self.form in {"full", "mask_lora"}
        low_rank = self.form in LORAS
        return dataclasses.replace(
            self,
            pattern=self.pattern if everywhere else MIDDLE,
            rank=RANK if self.rank else 0,
            norms=low_rank,
            window=WINDOWS[0] if self.window else "",
            seed=0,
            lr=None,
        )

    def other_rate(self, lr: float) -> float:
        """Return the rate that this cell tries beside the one tuned at rank 4: higher ranks move further a step."""
        if not self.rank or self.rank == RANK:
            return lr
        place = WIDER.index(lr) + (1 if self.rank < RANK else -1)
        return WIDER[min(max(place, 0), len(WIDER) - 1)]


def full(facts: Facts) -> Iterator[Cell]:
    """Yield the full run, what matters most first; the headline cells come with three seeds."""
    yield Cell(pattern="dense")
    for pattern in PATTERNS:
        yield Cell(pattern=pattern)
    for seed in range(3):
        for pattern in PATTERNS:
            yield Cell(pattern=pattern, form="full", seed=seed)
            yield Cell(pattern=pattern, form="mask_lora", rank=RANK, norms=True, seed=seed)
        if seed == 0:
            yield Cell(pattern="dense", form="full")
            yield from (Cell(pattern=p, form="norms") for p in PATTERNS)
    for pattern in PATTERNS:
        yield from _subsets(facts, pattern)
        yield from (Cell(pattern=pattern, form=f, rank=RANK, norms=True) for f in LORAS[1:])
    for window in WINDOWS:
        yield from (Cell(pattern=p, form="mask_lora", rank=RANK, norms=True, window=window) for p in PATTERNS)
    for form in LORAS:
        yield from (Cell(pattern=MIDDLE, form=form, rank=r, norms=True) for r in RANKS)
        yield from (Cell(pattern=MIDDLE, form=form, rank=r) for r in (RANKS if form == LORAS[0] else (RANK,)))
    for pattern in PATTERNS:
        yield from (Cell(pattern=pattern, form="mask_lora", rank=r, norms=True) for r in RANKS)


def quick(facts: Facts) -> Iterator[Cell]:
    """Yield the run of some minutes: one seed, the middle sparsity, every form once."""
    yield Cell(pattern="dense")
    yield from (Cell(pattern=p) for p in PATTERNS)
    yield Cell(pattern=MIDDLE, form="full")
    yield Cell(pattern=MIDDLE, form="mask_lora", rank=RANK, norms=True)
    yield Cell(pattern=MIDDLE, form="norms")
    yield from _subsets(facts, MIDDLE)
    yield from (Cell(pattern=MIDDLE, form=f, rank=RANK, norms=True) for f in LORAS[1:])
    yield Cell(pattern=MIDDLE, form="mask_lora", rank=RANK, norms=True, window=WINDOWS[0])


def _subsets(facts: Facts, pattern: str) -> Iterator[Cell]:
    """Yield the subsets that this model has: biases unless it has none, the head unless it is the embedding."""
    if facts.biases:
        yield Cell(pattern=pattern, form="biases")
    if facts.head and not facts.tied:
        yield Cell(pattern=pattern, form="head", rank=RANK)
