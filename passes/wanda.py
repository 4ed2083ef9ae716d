"""Wanda: prune the weights whose product with what they read is smallest, row by row; no training, no weight changes.

Formula: `score = |W_ij| * |X_j|` with `|X_j|` the root mean square of input j over the calibration tokens; within each
output row the lowest are pruned, the same number in every row, or N of every M neighbours along the inputs stay.
Blocks are done in order, each on what the pruned blocks before it give.

Options: `refine = "swaps"` lets kept and pruned weights of a row change places while that lowers the error of the row's
outputs, which the products of inputs tell exactly (SparseSwaps); `densities = "owl"` leaves blocks with many outlier
scores denser, at the same mean (OWL).

Papers: Sun et al. 2023, A Simple and Effective Pruning Approach for LLMs (arXiv 2306.11695); SparseSwaps (arXiv
2512.10922); Yin et al. 2023, OWL (arXiv 2310.05175).

Cost: two forwards of the calibration windows, block by block, and one sort per row.  Swaps need `in^2` products a token
and, for each of a row's swaps, `in^2` steps where the pattern is unstructured, `in * M` for N:M.
Keeps: every weight that stays, bit for bit; earlier masks, biases, norms, embeddings and head.
Helps: language models whose inputs have outlier channels, where magnitude fails.  On the demo model (perplexity 9.3; 48
windows of 128 tokens) `owl` takes 60 % from 23.2 to 18.9, and swaps 2:4 from 32.0 to 21.5.
Hurts: little models without outliers gain nothing over magnitude (demo model at 50 %: 14.0 against 13.9); swaps fit the
calibration text, so that where they gain little on held-out windows they gain nothing; `sparsegpt` or training (`perp`)
keeps far more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from compress.artifact import Artifact
from compress.context import Context
from passes._layerwise import Inputs
from passes._masks import Scope
from passes._oneshot import Attempt, Oneshot, OneshotSettings, Task


class WandaSettings(OneshotSettings):
    """Settings of Wanda."""


def score(weight: Tensor, square: Tensor) -> Tensor:
    """Return |W_ij| * |X_j|, float32 `[out, in]`.

    Args:
        weight: W `[out, in]`.
        square: mean square of each input, `[in]`.
    """
    return weight.abs().float() * square.sqrt()


class Wanda(Oneshot):
    """Prune what adds least to what is read."""

    Settings = WandaSettings
    settings: WandaSettings
    scope: Scope = "row"

    def attempts(self, inputs: Inputs, tasks: Sequence[Task], note: Callable[[str], None]) -> Iterator[list[Attempt]]:
        """Yield plain zeroing of the lowest scores and, where asked for, what swaps make of it."""
        for task in tasks:
            yield self.refined(task.weight, task.mask(score(task.weight, inputs.square)), task)

    def saliency(self, weight: Tensor, square: Tensor) -> Tensor:
        """Return |W_ij| * |X_j|."""
        return score(weight, square)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Prune block by block."""
        return self.prune(artifact, context)

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check the counts of every row or group, the zeros, and that nothing else changed by a bit."""
        self.check(before, after)
