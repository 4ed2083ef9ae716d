"""How dense each block stays: alike, or the denser the more outliers its weights times inputs have.

Yin et al. 2023, Outlier Weighed Layerwise Sparsity (arXiv 2310.05175).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from compress import files, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BrokenPromise
from passes._layerwise import Layer, LayerwiseSettings, walk_
from passes._masks import Rule

_LEAST = 0.1  # of the mean density, that every block keeps


def outlier_share(scores: Collection[Tensor], threshold: float) -> float:
    """Return the share of the scores of a block that lie above `threshold` times their mean."""
    count = sum(s.numel() for s in scores)
    bar = threshold * sum(float(s.sum(dtype=torch.float64)) for s in scores) / count
    return sum(int((s > bar).sum()) for s in scores) / count


def spread(shares: Sequence[float], sizes: Sequence[int], sparsity: float, width: float) -> list[float]:
    """Return the sparsity of each block, 0 <= s < 1, whose mean over all weights is `sparsity`.

    Densities lie on a line through the shares, from the least to the most outliers `2 * width` apart; those that would
    leave [a tenth of the mean, 1] stop there, and the others make up for it.

    Args:
        shares: of outliers, by block.
        sizes: weights of each block.
        sparsity: the mean.
        width: the paper's lambda.
    """
    low, high, mean = min(shares), max(shares), 1 - sparsity
    along = [2 * width * (d - low) / (high - low) if high > low else 0.0 for d in shares]

    def moved(by: float) -> list[float]:
        return [min(max(a + by, _LEAST * mean), 1.0) for a in along]

    below, above = -2 * width - 1.0, 1.0  # where every block is at its least, and at 1
    for _ in range(100):
        middle = (below + above) / 2
        found = sum(d * n for d, n in zip(moved(middle), sizes, strict=True)) / sum(sizes)
        below, above = (middle, above) if found < mean else (below, middle)
    return [1 - d for d in moved(above)]


def squares(
    artifact: Artifact, names: Collection[str], settings: LayerwiseSettings, context: Context
) -> dict[str, Tensor]:
    """Return the mean square of what each named linear reads in the model as it is, float32 `[in]`.

    One walk over the blocks that changes nothing; what it found is kept for whoever resumes.
    """
    folder = context.folder / "squares"
    folder.mkdir(exist_ok=True)
    path = folder / "found.safetensors"
    found = load_file(path) if path.exists() else {}

    def look(layers: Sequence[Layer]) -> dict[str, Tensor]:
        found.update({layer.name: layer.inputs.square.cpu().clone() for layer in layers})
        files.write_atomic(path, save(found))
        return {}

    given = settings.model_copy(update={"sequential": "block", "reference": "sparse"})
    if set(names) - found.keys():
        walk_(artifact, names, given, replace(context, folder=folder), look, gram=False)
    return {n: found[n] for n in names}


def rules(
    artifact: Artifact, rule: Rule, inputs: Mapping[str, Tensor], *, width: float, threshold: float
) -> dict[str, Rule]:
    """Return the rule of each linear, with the sparsity that the outliers of its block earn.

    Args:
        artifact: whose weights are read one at a time.
        rule: that gives the mean sparsity.
        inputs: `squares` of the linears to prune.
        width: the paper's lambda.
        threshold: how many times the mean score an outlier is.
    """
    by_block = {b: [n for n in inputs if n.startswith(f"{b}.")] for b in tree.blocks(artifact.model)}
    by_block = {b: names for b, names in by_block.items() if names}
    shares, sizes = [], []
    for names in by_block.values():
        read = {n: artifact.tensor(f"{n}.weight").float().abs() for n in names}
        shares.append(outlier_share([w * inputs[n].to(w.device).sqrt() for n, w in read.items()], threshold))
        sizes.append(sum(w.numel() for w in read.values()))
    found = zip(by_block.values(), spread(shares, sizes, rule.sparsity, width), strict=True)
    shapes = {n: linear.weight.shape for n, linear in tree.block_linears(artifact.model).items()}
    exact = {n: s for names, s in found for n in names}
    return {n: replace(rule, sparsity=s) for n, s in rounded(exact, shapes, by_row=rule.scope == "row").items()}


def rounded(sparsities: Mapping[str, float], shapes: Mapping[str, Sequence[int]], *, by_row: bool) -> dict[str, float]:
    """Return sparsities that whole counts of zeros have, what one linear's rounding leaves going to the next.

    Args:
        sparsities: by linear.
        shapes: `(out, in)` by linear.
        by_row: whether every row of a linear has the same count.
    """
    left, found = 0.0, dict[str, float]()
    for name, sparsity in sparsities.items():
        out, inputs = shapes[name]
        units, size = (out, inputs) if by_row else (1, out * inputs)
        count = min(max(round((sparsity * out * inputs + left) / units), 0), size - 1)
        left += sparsity * out * inputs - count * units
        found[name] = count / size
    return found


def check(rule: Rule, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Raise `BrokenPromise` unless each unit of a linear lost as many, and all together the mean, up to one a unit.

    Args:
        rule: with the mean sparsity.
        old: masks of before.
        new: the masks to check.
    """
    asked = pruned = slack = 0.0
    for name, mask in new.items():
        size = mask.shape[1] if rule.scope == "row" else mask.numel()
        zeros = (~mask).reshape(-1, size).sum(1)
        replace(rule, sparsity=int(zeros.min()) / size).check(old, {name: mask})
        asked, pruned, slack = asked + rule.sparsity * mask.numel(), pruned + int(zeros.sum()), max(slack, len(zeros))
    if pruned < asked - slack or (pruned > asked + slack and not old.keys() & new.keys()):
        raise BrokenPromise(f"all linears together lost {pruned:.0f} weights where {asked:.0f} were asked for")
