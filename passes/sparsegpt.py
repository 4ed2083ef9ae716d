"""SparseGPT: prune column by column and let the weights that stay make up for it; no training.

Formula: with H the mean of x x^T over calibration tokens, damped, and `C^T C = H^-1` (C upper triangular), columns j go
from left to right: `e = (w_j - q_j) / C_jj` with q_j the column under its mask, then `w_k -= e C_jk` for k > j.  Masks
are chosen from `w^2 / C_jj^2` when the sweep gets there: over all rows of a block of columns, row by row, or N of every
M.  With `update = "exact"` every row is then solved anew on its mask: the least error `(w - t) H (w - t)^T`, t the old
weight.  With `reference = "dense"` t is the weight that comes nearest to the dense model's outputs on the inputs of the
pruned one: `t = W + W (C_x - H) H^-1`, with C_x the mean of x_dense x^T.

Option: `refine = "swaps"` lets kept and pruned weights of a row change places, the restored one with its best value,
while that lowers the error, and solves the rows once more.

Papers: Frantar and Alistarh 2023, SparseGPT (arXiv 2301.00774); swaps after SparseSwaps (arXiv 2512.10922).

Cost: two forwards of the calibration windows, block by block (three with the dense reference), `in^2` products a token
and linear, `in^3` for its inverse and `out * in^2` for its sweep; the exact update some 20 times `out * in^2`.
Keeps: earlier masks, biases, norms, embeddings and head.
Helps: wherever weights may change: it loses a fraction of what masks alone lose (demo model, perplexity 9.3, 48 windows
of 128 tokens: 10.8 at 50 % and 13.2 at 2:4, where `wanda` has 14.0 and 32.0; 11.0 and 13.7 without dense reference).
Hurts: with few calibration windows the update fits their text, as the held-out errors then tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BadModel
from passes import _obs, _swaps
from passes._layerwise import REFERENCE, SEQUENTIAL, Inputs
from passes._masks import Scope
from passes._oneshot import Attempt, Oneshot, OneshotSettings, Task

_ROUNDS = 3  # of swaps and the solution after them


class SparseGPTSettings(OneshotSettings):
    """Settings of SparseGPT."""

    sequential: Literal["linear", "block"] = Field("linear", description=SEQUENTIAL)
    reference: Literal["sparse", "dense"] = Field("dense", description=REFERENCE)
    scope: Literal["matrix", "row"] = Field(
        "matrix", description="what the sparsity is of: all rows of each block of columns, or each row"
    )
    damping: float = Field(0.01, ge=0, le=10, description="added to the diagonal of H, as a share of its mean")
    block_size: int = Field(128, ge=1, description="columns whose mask is chosen at once, when unstructured")
    update: Literal["exact", "obs"] = Field(
        "exact", description="weights that stay: as each row's least squares on its mask, or as the sweep leaves them"
    )


class SparseGPT(Oneshot):
    """Prune by columns and update what stays."""

    Settings = SparseGPTSettings
    settings: SparseGPTSettings
    updates = True

    @property
    def scope(self) -> Scope:
        """What the sparsity is of when the pattern is unstructured."""
        return self.settings.scope

    def attempts(self, inputs: Inputs, tasks: Sequence[Task], note: Callable[[str], None]) -> Iterator[list[Attempt]]:
        """Yield plain zeroing, the updated weight under the same mask and, where asked for, under a refined one."""
        assert inputs.gram is not None
        names = ", ".join(task.layer.name for task in tasks)
        found = _obs.factored(inputs.gram, self.settings.damping, lambda text: note(f"{names}: {text}"))
        if found is None:
            raise BadModel(f"{names}: what they read is too dependent to be inverted; raise damping")
        hessian, upper = found
        for task in tasks:
            target = task.weight
            if inputs.cross is not None:
                target = _obs.towards(target, inputs.gram, inputs.cross, upper)
            yield self._attempts(task, target.masked_fill(inputs.square == 0, 0), hessian, upper)

    def saliency(self, weight: Tensor, square: Tensor) -> Tensor:
        """Return what a weight's loss costs where inputs do not depend on each other: `w^2 / C_jj^2` is `w^2 H_jj`."""
        return weight.float().square() * square

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Prune and update block by block."""
        return self.prune(artifact, context)

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check the counts of the masks, the zeros, and that nothing but the chosen linears' weights changed."""
        self.check(before, after)

    def _attempts(self, task: Task, target: Tensor, hessian: Tensor, upper: Tensor) -> list[Attempt]:
        given, group = self.settings, task.rule.pattern.group
        size = given.block_size + -given.block_size % group if group else given.block_size
        choice = _obs.Choice(task.rule, task.old, size)
        new, mask = _obs.sweep(target, upper, choice, choice.stride, size)
        found = [Attempt("plain zeroing", task.weight.masked_fill(~mask, 0), mask)]
        if given.update == "obs":
            found.append(Attempt("the update", new, mask))
        if given.update == "exact" or given.refine == "swaps":
            new = _obs.refit(new, mask, target, hessian)
        if given.update == "exact":
            found.append(Attempt("the update", new, mask))
        if given.refine == "swaps":
            for _ in range(_ROUNDS):
                before = mask
                new, mask = _swaps.swaps(
                    new, mask, target, hessian, allowed=task.old, group=group, cycles=given.refine_cycles
                )
                new = _obs.refit(new, mask, target, hessian)
                if mask.equal(before):
                    break
            found.append(Attempt("swaps", new, mask))
        return found
