"""SparseGPT on one linear: better than zeroing, exact better than swept, inputs that are dead or dependent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.errors import BadModel
from passes._layerwise import Inputs, Layer
from passes._obs import damped, error, inverse_factor
from passes._oneshot import Attempt, Task
from passes.sparsegpt import SparseGPT

ROWS, COLUMNS, TOKENS = 12, 32, 200


def inputs(seed: int = 0, dead: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(TOKENS, COLUMNS, generator=random) @ torch.randn(COLUMNS, COLUMNS, generator=random)
    x[:, :dead] = 0
    return x


def attempts(
    x: Tensor, notes: list[str] | None = None, old: Tensor | None = None, dense: Tensor | None = None, **given: Any
) -> tuple[Tensor, list[Attempt]]:
    """Return a weight and what the pass makes of it."""
    plugin = SparseGPT(SparseGPT.Settings(**given))
    linear = nn.Linear(COLUMNS, ROWS)
    linear.weight.data = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(5))
    gram = x.T @ x / len(x)
    cross = None if dense is None else dense.T @ x / len(x)
    read = Inputs(gram=gram, square=gram.diagonal().clone(), held_out=x, cross=cross, held_out_dense=dense)
    task = Task(Layer("x", linear, read), plugin.rule, torch.ones(ROWS, COLUMNS, dtype=torch.bool))
    if old is not None:
        linear.weight.data *= old
        task = Task(task.layer, task.rule, old)
    found = [] if notes is None else notes
    return linear.weight.data, next(plugin.attempts(read, [task], found.append))


def missed(x: Tensor, weight: Tensor, attempt: Attempt) -> float:
    return float(error(attempt.weight, weight, damped(x.T @ x / len(x), 0.01)).sum())


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_each_step_lowers_the_error(pattern: str) -> None:
    x = inputs()
    weight, (plain, swept) = attempts(x, pattern=pattern, update="obs")
    _, (_, exact) = attempts(x, pattern=pattern)
    _, (_, _, swaps) = attempts(x, pattern=pattern, refine="swaps")
    assert exact.mask.equal(plain.mask)
    assert swept.mask.equal(plain.mask)
    errors = [missed(x, weight, a) for a in (plain, swept, exact, swaps)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.7 * errors[2]
    assert errors[2] > 1.01 * errors[3]
    for attempt in (plain, swept, exact, swaps):
        assert (attempt.weight[~attempt.mask] == 0).all()
        SparseGPT(SparseGPT.Settings(pattern=pattern)).rule.check({}, {"x": attempt.mask})


def test_scope_row_prunes_each_row_alike() -> None:
    _, (_, new) = attempts(inputs(), scope="row", sparsity=0.25)
    assert ((~new.mask).sum(1) == COLUMNS // 4).all()


@pytest.mark.parametrize("size", [1, 6, 128])
def test_block_size_does_not_matter_for_groups(size: int) -> None:
    _, (_, whole) = attempts(inputs(), pattern="2:4", update="obs")
    _, (_, new) = attempts(inputs(), pattern="2:4", update="obs", block_size=size)
    assert new.mask.equal(whole.mask)
    torch.testing.assert_close(new.weight, whole.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("given", [{"refine": "swaps"}, {"update": "obs"}])
def test_an_earlier_mask_stays(given: dict[str, Any]) -> None:
    old = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(9)) < 0.6
    x = inputs()[:, :8] @ torch.randn(8, COLUMNS, generator=torch.Generator().manual_seed(3))  # any weight may stand in
    _, found = attempts(x + 0.01 * inputs(1), old=old, sparsity=0.7, **given)
    assert len(found) == 2 or not found[2].mask.equal(found[1].mask)
    for attempt in found:
        assert not (attempt.mask & ~old).any()
        assert int((~attempt.mask).sum()) == round(0.7 * old.numel())
        assert (attempt.weight[~old] == 0).all()


@pytest.mark.parametrize("given", [{"update": "obs"}, {}, {"refine": "swaps"}])
def test_dead_inputs_lose_their_columns(given: dict[str, Any]) -> None:
    notes: list[str] = []
    _, found = attempts(inputs(dead=4), notes, **given)
    assert notes == []
    assert all(a.weight.isfinite().all() for a in found)
    assert (found[1].weight[:, :4] == 0).all()


def test_nothing_but_dead_inputs_is_fine() -> None:
    _, found = attempts(inputs(dead=COLUMNS))
    assert all(a.weight.isfinite().all() for a in found)


def test_dependent_inputs_survive_by_damping() -> None:
    notes: list[str] = []
    x = inputs()[:, :3].repeat(1, 11)[:, :COLUMNS]
    weight, (plain, new) = attempts(x, notes)
    assert notes == []
    assert missed(x, weight, new) < missed(x, weight, plain)


def test_what_cannot_be_inverted_is_tried_harder_told_and_then_refused() -> None:
    notes: list[str] = []
    x = 10 * inputs()[:, :1].repeat(1, COLUMNS)
    _, found = attempts(x, notes, damping=1e-9)
    assert notes == ["x: H has no Cholesky factor with damping 1e-09 in fp32"]
    assert found[1].weight.isfinite().all()
    with pytest.raises(BadModel, match="x: what they read is too dependent to be inverted; raise damping"):
        attempts(x, notes, damping=0)
    assert notes[-1] == "x: H has no Cholesky factor with damping 0 in fp64"


def test_ten_times_the_damping_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def fails_twice(hessian: Tensor) -> Tensor | None:
        seen.append(hessian)
        return inverse_factor(hessian) if len(seen) == 3 else None

    monkeypatch.setattr("passes._obs.inverse_factor", fails_twice)
    x, notes = inputs(), list[str]()
    attempts(x, notes, damping=0.02)
    assert [h.dtype for h in seen] == [torch.float32, torch.float64, torch.float64]
    square = (x.T @ x / len(x)).diagonal()
    for hessian, share in zip(seen, (0.02, 0.02, 0.2), strict=True):
        torch.testing.assert_close(hessian.diagonal().float(), square + share * square.mean())
    assert notes == [f"x: H has no Cholesky factor with damping 0.02 in fp{bits}" for bits in (32, 64)]


def test_the_dense_reference_makes_up_for_what_the_inputs_lost() -> None:
    dense = inputs()
    x = dense + 0.2 * dense.std() * torch.randn(dense.shape, generator=torch.Generator().manual_seed(2))
    weight, (_, sparse) = attempts(x)
    _, (_, aimed) = attempts(x, dense=dense, reference="dense")
    wanted = dense @ weight.T
    assert (x @ aimed.weight.T - wanted).square().sum() < 0.98 * (x @ sparse.weight.T - wanted).square().sum()
