"""GPTQ: the sweep against the surgeon's update column by column, refinement against all codes, inputs that are odd."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import QuietReport
from compress.errors import BadSettings
from compress.facts import GridFact
from compress.grid import Grid, bounds, spread
from passes import _quant
from passes._layerwise import Inputs, Layer
from passes._masks import same_bits
from passes._obs import damped, error, inverse_factor
from passes._pruned import facts_of
from passes.gptq import Gptq
from passes.gptq.levels import Ladder
from passes.gptq.refine import refine
from passes.gptq.sweep import sweep
from tests.passes.test_quant import context_of, weights

Tiny = Callable[..., Artifact]
ROWS, COLUMNS, TOKENS = 12, 40, 300
FACT = GridFact(bits=3, group_size=16)


def inputs(columns: int = COLUMNS, seed: int = 0, dead: int = 0) -> Tensor:
    x: Tensor = weights(TOKENS, columns, seed) @ (weights(columns, columns, seed + 1) / columns**0.5)
    x[:, :dead] = 0
    return x


def curved(x: Tensor, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return H, damped, and C of its columns in an order."""
    hessian = damped(x.T @ x / len(x), 0.01)
    ordered = hessian if order is None else hessian[order][:, order]
    upper = inverse_factor(ordered)
    assert upper is not None
    return hessian, upper


def asked(x: Tensor, weight: Tensor, mask: Tensor | None = None, fact: GridFact = FACT, **given: Any) -> list[Any]:
    """Return what the pass makes of a weight whose linear reads x: what it tries, and the notes, at the end."""
    dense = given.pop("dense", None)
    plugin, notes = Gptq(Gptq.Settings(**given)), list[str]()
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.data = weight.clone()
    gram = x.T @ x / len(x)
    cross = None if dense is None else dense.T @ x / len(x)
    read = Inputs(gram=gram, square=gram.diagonal().clone(), held_out=x, cross=cross, held_out_dense=dense)
    curvature = plugin.curvature(read, notes.append)
    found = plugin.attempts(Layer("x", linear, read), fact, curvature, mask)
    return [*found, notes]


def missed(x: Tensor, weight: Tensor, made: Grid) -> float:
    return float((x @ (made.dequantized() - weight).T).square().sum())


def surgeon(
    weight: Tensor, hessian: Tensor, order: Tensor, steps: _quant.Steps, fact: GridFact, mask: Tensor
) -> Tensor:
    """Return levels, the remaining weights set anew after each column by the inverse of what H has left, in float64."""
    work, left, (low, high) = weight.double(), order.tolist(), bounds(fact.bits)
    scale = spread(steps.scale.double(), weight.shape[1], fact.group_size)
    zero = torch.zeros_like(scale) if steps.zero is None else spread(steps.zero.double(), len(left), fact.group_size)
    levels = torch.zeros_like(work)
    while left:
        column = left[0]
        inverse = hessian.double()[left][:, left].inverse()
        level = (work[:, column] / scale[:, column]).clamp(low - zero[:, column], high - zero[:, column]).round()
        levels[:, column] = level * mask[:, column]
        off = work[:, column] - levels[:, column] * scale[:, column]
        work[:, left] -= torch.outer(off / inverse[0, 0], inverse[0])
        left = left[1:]
    return levels


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("activation", [False, True])
def test_a_sweep_is_the_surgeons_update_column_by_column(zero: bool, masked: bool, activation: bool) -> None:
    columns = 150  # more than one block
    x, weight = inputs(columns), weights(6, columns)
    fact = dataclasses.replace(FACT, zero=zero)
    order = x.square().sum(0).argsort(descending=True) if activation else torch.arange(columns)
    mask = weights(6, columns, 4) > 0 if masked else torch.ones(6, columns, dtype=torch.bool)
    hessian, upper = curved(x, order)
    steps = _quant.span(weight, fact)
    found = sweep(weight, upper, order, Ladder.of(steps, fact), mask if masked else None)
    expected = surgeon(weight, hessian, order, steps, fact, mask)
    assert (found != expected).double().mean() < 0.01  # rounding may tip over in float32
    assert (found[~mask] == 0).all()


def test_without_curvature_a_sweep_is_rounding_to_nearest() -> None:
    weight, order = weights(ROWS, COLUMNS), torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(0))
    for fact in (FACT, dataclasses.replace(FACT, zero=True)):
        steps = _quant.span(weight, fact)
        ladder = Ladder.of(steps, fact)
        found = ladder.grid(sweep(weight, torch.eye(COLUMNS), order, ladder, None))
        assert torch.equal(found.codes, _quant.codes(weight, steps, fact))
        same, _ = refine(sweep(weight, torch.eye(COLUMNS), order, ladder, None), ladder, weight, torch.eye(COLUMNS),
                         None, steps=False, cycles=5)  # fmt: skip
        assert torch.equal(ladder.grid(same).codes, found.codes)


def test_the_order_of_columns_is_undone() -> None:
    x, weight = inputs(), weights(ROWS, COLUMNS)
    fact = GridFact(bits=3, group_size=None)
    order = x.square().sum(0).argsort(descending=True)
    _, upper = curved(x, order)
    ladder = Ladder.of(_quant.span(weight, fact), fact)
    moved = sweep(weight[:, order], upper, torch.arange(COLUMNS), ladder, None)
    assert torch.equal(sweep(weight, upper, order, ladder, None)[:, order], moved)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_each_step_lowers_the_error_on_what_was_read(bits: int, symmetric: bool) -> None:
    x, weight = inputs(), weights(ROWS, COLUMNS)
    fact = dataclasses.replace(FACT, bits=bits, zero=not symmetric)
    plain, swept, codes, _ = asked(x, weight, fact=fact, refine="codes")
    refined = asked(x, weight, fact=fact)[2]
    assert [what for what, _ in (plain, swept, refined)] == ["rounding to nearest", "the sweep", "refinement"]
    errors = [missed(x, weight, grid) for _, grid in (plain, swept, codes, refined)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.9 * errors[0]
    assert errors[3] < 0.97 * errors[1]


def test_static_steps_found_under_the_inputs_beat_the_span() -> None:
    x, weight = inputs(), weights(ROWS, COLUMNS)
    span, search = (asked(x, weight, fact=dataclasses.replace(FACT, bits=2), steps=s)[1][1] for s in ("span", "search"))
    assert missed(x, weight, search) < 0.7 * missed(x, weight, span)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("masked", [False, True])
def test_refined_codes_against_all_codes(seed: int, masked: bool) -> None:
    fact = GridFact(bits=2, group_size=3)
    x, weight = inputs(5, seed), weights(4, 5, seed)
    mask = weights(4, 5, seed + 9) > -0.5 if masked else torch.ones(4, 5, dtype=torch.bool)
    hessian, upper = curved(x)
    ladder = Ladder.of(_quant.search(weight, fact), fact)
    start = sweep(weight, upper, torch.arange(5), ladder, mask)
    found, same = refine(start, ladder, weight, hessian, mask, steps=False, cycles=50)
    assert torch.equal(same.scale, ladder.scale)

    def errors(levels: Tensor) -> Tensor:
        return error(ladder.weight(levels), weight, hessian)

    assert (errors(found) <= errors(start)).all()
    every = torch.tensor(list(itertools.product(range(-2, 2), repeat=5)), dtype=torch.float32)
    for row in range(4):
        at_row = Ladder(fact, ladder.scale[row : row + 1], ladder.zero[row : row + 1])
        allowed = every[(every[:, ~mask[row]] == 0).all(1)]
        all_errors = error(at_row.weight(allowed), weight[row : row + 1], hessian)
        one_away = (allowed != found[row]).sum(1) <= 1
        assert errors(found)[row] <= all_errors[one_away].min() * (1 + 1e-5)  # no single code can do better
        assert errors(found)[row] >= all_errors.min() * (1 - 1e-5)
    assert (found[~mask] == 0).all()


def test_refined_scales_are_the_least_squares_of_their_codes() -> None:
    x, weight = inputs(), weights(ROWS, COLUMNS)
    hessian, upper = curved(x)
    ladder = Ladder.of(_quant.span(weight, FACT), FACT)
    start = sweep(weight, upper, torch.arange(COLUMNS), ladder, None)
    levels, found = refine(start, ladder, weight, hessian, None, steps=True, cycles=200)
    for row in range(ROWS):
        parts = [levels[row] * (torch.arange(COLUMNS) // 16 == g) for g in range(3)]
        basis = torch.stack(parts).double()
        h = hessian.double()
        best = torch.linalg.solve(basis @ h @ basis.T, basis @ h @ weight[row].double())
        torch.testing.assert_close(found.scale[row].double(), best, rtol=2e-2, atol=1e-4)


def test_no_row_ends_with_more_than_it_began_with() -> None:
    x, weight = inputs(), weights(ROWS, COLUMNS)
    hessian, _ = curved(x)
    ladder = Ladder.of(_quant.span(weight, FACT), FACT)
    best = ladder.weight(torch.ones(ROWS, COLUMNS))  # on the ladder: nothing is better
    levels, same = refine(torch.ones(ROWS, COLUMNS), ladder, best, hessian, None, steps=True, cycles=3)
    assert torch.equal(levels, torch.ones(ROWS, COLUMNS))
    assert torch.equal(same.scale, ladder.scale)


@pytest.mark.parametrize("refine_", ["none", "steps"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_a_mask_prunes_stays_zero_and_the_rest_makes_up_for_it(refine_: str, symmetric: bool) -> None:
    mask = torch.arange(COLUMNS).expand(ROWS, -1) % 4 < 2
    x, weight = inputs(), weights(ROWS, COLUMNS) * mask
    fact = dataclasses.replace(FACT, zero=not symmetric)
    dense = x + 0.1 * x.std() * weights(TOKENS, COLUMNS, 3)
    plain, *rest, _ = asked(x, weight, mask, fact, refine=refine_, dense=dense)
    for _, grid in (plain, *rest):
        grid.check("x", grid.dequantized(), mask)
    wanted = dense @ weight.T
    errors = [float((x @ g.dequantized().T - wanted).square().sum()) for _, g in (plain, *rest)]
    assert errors == sorted(errors, reverse=True)


def test_the_dense_reference_makes_up_for_what_the_inputs_lost() -> None:
    dense, weight = inputs(), weights(ROWS, COLUMNS)
    x = dense + 0.3 * dense.std() * weights(TOKENS, COLUMNS, 2)
    alone, aimed = asked(x, weight)[2][1], asked(x, weight, dense=dense)[2][1]
    wanted = dense @ weight.T
    left = [float((x @ g.dequantized().T - wanted).square().sum()) for g in (alone, aimed)]
    assert left[1] < 0.95 * left[0]


def test_dead_inputs_are_rounded_to_nearest() -> None:
    x, weight = inputs(dead=4), weights(ROWS, COLUMNS)
    *found, notes = asked(x, weight, refine="codes")
    assert notes == []
    for _, grid in found:
        assert torch.equal(grid.codes[:, :4], found[0][1].codes[:, :4])
    assert asked(torch.zeros(TOKENS, COLUMNS), weight)[-1] == []


def test_what_cannot_be_inverted_is_tried_harder_told_and_then_rounded() -> None:
    x, weight = 10 * inputs()[:, :1].repeat(1, COLUMNS), weights(ROWS, COLUMNS)
    *found, notes = asked(x, weight, damping=1e-9)
    assert notes == ["H has no Cholesky factor with damping 1e-09 in fp32"]
    assert len(found) == 3
    *found, notes = asked(x, weight, damping=0)
    assert notes[-2:] == [
        "H has no Cholesky factor with damping 0 in fp64",
        "what is read is too dependent to be inverted; rounded to nearest instead",
    ]
    assert [what for what, _ in found] == ["rounding to nearest"]


@pytest.mark.parametrize("given", [{}, {"sequential": "block", "reference": "quantized", "symmetric": False}])
def test_a_killed_run_resumes_to_the_same_bytes_and_words(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    class Killed(Exception):
        """As if the process had been killed."""

    found, original = [], Gptq.attempts
    for name, kill in (("whole", 0), ("killed", 9)):
        calls = itertools.count(1)

        def attempts(*args: Any, kill: int = kill, calls: Any = calls) -> Any:
            if next(calls) == kill:
                raise Killed
            return original(*args)

        (tmp_path / name).mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(Gptq, "attempts", attempts)
            for attempt in range(2 if kill else 1):
                report = QuietReport()
                try:
                    plugin = Gptq(Gptq.Settings(batch=4, group_size=8, bits=2, **given))
                    after = plugin.run(tiny("qwen2"), context_of(tmp_path / name, report))
                except Killed:
                    assert attempt == 0
        found.append((after, report.notes, report.measured["layers"]))
    (whole, *words), (killed, *others) = found
    assert all(same_bits(whole.tensor(n), killed.tensor(n)) for n in whole.tensor_names())
    for name in whole.grids:
        assert all(same_bits(t, killed.grids[name].tensors[n]) for n, t in whole.grids[name].tensors.items())
    assert words == others


def test_what_is_found_is_told(tiny: Tiny, tmp_path: Path) -> None:
    report = QuietReport()
    plugin = Gptq(Gptq.Settings(batch=4, group_size=8, include=("self_attn",)))
    after = plugin.run(tiny("llama"), context_of(tmp_path, report))
    names = [n for n in tree.block_linears(after.model) if "self_attn" in n]
    assert [layer[0] for layer in report.measured["layers"]] == names
    assert report.notes[0].startswith("quantized 8 linears to 4 bits in groups of 8: ")
    assert "by rounding to nearest; most, " in report.notes[-1]
    (tmp_path / "none").mkdir()
    alone = QuietReport()
    artifact = tiny("llama")
    tree.block_linears(artifact.model)["model.layers.0.mlp.up_proj"].weight.data.zero_()  # so that down reads nothing
    Gptq(Gptq.Settings(batch=4, group_size=8, include=("down_proj",))).run(
        artifact, context_of(tmp_path / "none", alone)
    )
    assert (
        "model.layers.0.mlp.down_proj: nothing but zeros is read, so that weights are rounded to nearest" in alone.notes
    )


def test_contradictions_are_found_before_any_work(tiny: Tiny) -> None:
    with pytest.raises(BadSettings) as caught:
        Gptq(Gptq.Settings(group_size=8, refine="none", refine_cycles=3)).plan(facts_of(tiny("llama")))
    assert caught.value.key == "refine_cycles"
