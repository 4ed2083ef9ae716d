"""The optimal brain surgeon on one linear: prune columns left to right, spread each error over the columns to come.

Tensors: weights W `[out, in]`, masks bool `[out, in]` (True = kept), H `[in, in]` the mean of x x^T over tokens; all
in float32 on one device.  The error of weights V towards T is `tr (V - T) H (V - T)^T`, the mean square of what the
outputs differ by.  Frantar and Alistarh 2023, SparseGPT (arXiv 2301.00774), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from passes import _masks
from passes._masks import Rule

Select = Callable[[int, Tensor], Tensor]  # first column, scores [out, stride] -> mask [out, stride]


def damped(gram: Tensor, damping: float) -> Tensor:
    """Return H + damping * mean(diag H) * I; an input that is never anything but 0 gets a diagonal of 1 + that.

    Args:
        gram: H `[in, in]`.
        damping: share of the mean over the inputs that are alive.
    """
    diagonal = gram.diagonal()
    dead = diagonal == 0
    mean = diagonal[~dead].mean() if not dead.all() else torch.ones_like(diagonal[0])
    return gram + torch.diag(dead.to(gram.dtype) + damping * mean)


def inverse_factor(hessian: Tensor) -> Tensor | None:
    """Return upper triangular C `[in, in]` with `C^T C = H^-1` in H's precision; None when H is not positive enough."""
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if failed:
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return upper if not failed and bool(upper.isfinite().all()) else None


def factored(gram: Tensor, damping: float, failed: Callable[[str], None]) -> tuple[Tensor, Tensor] | None:
    """Return the damped H and C in float32; where H has no factor, in float64, then with ten times the damping.

    Args:
        gram: H `[in, in]`.
        damping: as `damped` has it.
        failed: is told of each attempt that failed.
    """
    for share, double in ((damping, False), (damping, True), (10 * damping, True)):
        hessian = damped(gram.double() if double else gram, share)
        upper = inverse_factor(hessian)
        if upper is not None:
            return hessian.float(), upper.float()
        failed(f"H has no Cholesky factor with damping {share:g} in fp{64 if double else 32}")
    return None


@dataclass(frozen=True)
class Choice:
    """Which weights a sweep prunes: each stretch of columns when the sweep comes to it, by the scores of that moment.

    The zeros that a rule asks for are dealt out evenly over the weights that an earlier mask left, so that the counts
    of the whole are those of the rule.

    Attributes:
        rule: what is asked for; scope `matrix` compares all rows of a stretch, `row` each row by itself.
        before: bool `[out, in]`, what an earlier mask kept.
        block: columns of a stretch when the rule is unstructured.
    """

    rule: Rule
    before: Tensor
    block: int

    @property
    def stride(self) -> int:
        """How many columns are chosen at once."""
        return self.rule.pattern.group or self.block

    def __call__(self, at: int, score: Tensor) -> Tensor:
        """Return the mask of the columns that start at `at`, given their scores `[out, stride]`."""
        kept = self.before[:, at : at + score.shape[1]]
        score = score.masked_fill(~kept, -torch.inf)
        pattern = self.rule.pattern
        if pattern.group:
            return _masks.keep_n_of_m(score, pattern.keep, pattern.group) & kept
        units = score if self.rule.scope == "row" else score.reshape(1, -1)
        counts = self._until(at + score.shape[1]) - self._until(at)
        ranks = units.argsort(dim=1, stable=True).argsort(dim=1)  # of equal scores those that come first go first
        return (ranks >= counts.unsqueeze(1)).view(score.shape)

    def _until(self, columns: int) -> Tensor:
        """Return how many weights are pruned left of a column, int64 `[units]`."""
        before = self.before if self.rule.scope == "row" else self.before.reshape(1, -1)
        left = self.before[:, :columns]
        left = left if self.rule.scope == "row" else left.reshape(1, -1)
        free, size = before.sum(1), before.shape[1]
        more = (round(self.rule.sparsity * size) - (size - free)).clamp(min=0)
        now = left.sum(1)
        return left.shape[1] - now + (2 * more * now + free) // (2 * free).clamp(min=1)


def sweep(weight: Tensor, upper: Tensor, select: Select, stride: int, block: int) -> tuple[Tensor, Tensor]:
    """Return the pruned weight and its mask, both `[out, in]`.

    Column j by column j, with q the column under its mask: `e = (w_j - q) / C_jj`, then `w_k -= e C_jk` for all
    columns k to come; within a block at once, beyond it when the block is done.

    Args:
        weight: W; zero in the columns of dead inputs.
        upper: C with `C^T C = H^-1`.
        select: gives the mask of a stretch by its scores `w^2 / C_jj^2` when the sweep comes to it.
        stride: columns of a stretch.
        block: columns of a block, a multiple of the stretch; the result for given masks does not depend on it.
    """
    work, mask = weight.clone(), torch.empty_like(weight, dtype=torch.bool)
    diagonal = upper.diagonal()
    for start in range(0, work.shape[1], block):
        stop = min(start + block, work.shape[1])
        errors = torch.empty_like(work[:, start:stop])
        for at in range(start, stop):
            if (at - start) % stride == 0:
                ahead = slice(at, min(at + stride, stop))
                mask[:, ahead] = select(at, (work[:, ahead] / diagonal[ahead]).square())
            column = work[:, at].masked_fill(mask[:, at], 0)
            error = column / diagonal[at]
            work[:, at + 1 : stop] -= torch.outer(error, upper[at, at + 1 : stop])
            work[:, at] -= column
            errors[:, at - start] = error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    return work, mask


def towards(weight: Tensor, gram: Tensor, cross: Tensor, upper: Tensor) -> Tensor:
    """Return the weight `[out, in]` whose outputs on today's inputs come nearest to the dense outputs.

    Least squares with a penalty on what differs from W, as damping is one: `W + W (X - H) C^T C`, with
    X = mean of x_dense x_now^T.

    Args:
        weight: W `[out, in]`.
        gram: H of today's inputs `[in, in]`, not damped.
        cross: X `[in, in]`.
        upper: C of the damped H.
    """
    return weight + weight @ (cross - gram) @ upper.T @ upper


def error(weight: Tensor, target: Tensor, hessian: Tensor) -> Tensor:
    """Return the error of each row, float64 `[out]`."""
    off = (weight - target).double()
    return ((off @ hessian.double()) * off).sum(1)


def refit(
    weight: Tensor, mask: Tensor, target: Tensor, hessian: Tensor, *, residual: float = 1e-3, limit: int = 16
) -> Tensor:
    """Return the weights under the mask with the least error towards the target, `[out, in]`.

    Each row solves `H_SS w_S = (H t)_S` over what its mask keeps, by conjugate gradients preconditioned with the
    diagonal, all rows at once; a row never ends with a larger error than it began with.

    Args:
        weight: where to start.
        mask: what may differ from 0.
        target: T.
        hessian: H, positive definite.
        residual: share of the first gradient at which a row is done.
        limit: most steps; of a sweep's result, 16 leave less than a hundredth of what there is to gain.
    """
    scale = hessian.diagonal().reciprocal()
    start = weight.masked_fill(~mask, 0)
    found = start.clone()
    left = ((target - found) @ hessian).masked_fill(~mask, 0)
    whole = ((target @ hessian).masked_fill(~mask, 0).square() * scale).sum(1, keepdim=True)
    direction = left * scale
    size = (left * direction).sum(1, keepdim=True)
    for _ in range(limit):
        going = size > residual**2 * whole
        if not going.any():
            break
        ahead = (direction @ hessian).masked_fill(~mask, 0)
        step = torch.where(going, size / (direction * ahead).sum(1, keepdim=True), 0)
        found += step * direction
        left -= step * ahead
        preconditioned = left * scale
        after = (left * preconditioned).sum(1, keepdim=True)
        direction = preconditioned + torch.where(going, after / size, 0) * direction
        size = after
    better = error(found, target, hessian) <= error(start, target, hessian)
    return torch.where(better.unsqueeze(1), found, start)
