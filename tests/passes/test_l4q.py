"""L4Q: the rounded weight against an explicit graph, what is kept for the backward, and the pass in every family."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from compress import tree
from compress.artifact import Artifact, digest
from compress.context import Context, QuietReport
from compress.data import DataSettings, Role, Source
from compress.errors import BadModel, BadSettings, BrokenPromise, Diverged
from compress.facts import GridFact
from compress.grid import bounds, spread
from passes import _masks, _pruned, _quant
from passes._adapter import Adapter
from passes.l4q import L4Q, expression
from passes.l4q.expression import Fixed, Trained
from passes.l4q.linear import Rounded
from passes.l4q.settings import Borders
from tests.conftest import CAUSAL, ENCODERS, branched, lively, quantized

OUT, IN, RANK, TOKENS = 9, 21, 3, 13


# -- the expression ----------------------------------------------------------------------------------------------------


class _Straight(torch.autograd.Function):
    """Round, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def explicit(fixed: Fixed, trained: Trained) -> Tensor:
    """The rounded weight, step by step as the paper has it, for autograd to go through."""
    inputs = fixed.weight.shape[1]
    merged = fixed.weight + fixed.alpha * trained.b @ trained.a
    if fixed.mask is not None:
        merged = merged * fixed.mask
    steps = spread(trained.log_steps.exp(), inputs, fixed.group_size)
    offset = 0 if trained.beta is None else spread(trained.beta * trained.log_steps.exp(), inputs, fixed.group_size)
    low, high = (torch.tensor(float(b)).expand(len(fixed.weight), inputs) for b in bounds(fixed.bits))
    if fixed.zero is not None:
        zero = spread(fixed.zero.double(), inputs, fixed.group_size)
        low, high = low - zero, high - zero
    scaled = (merged - offset) / steps
    if fixed.counted is not None:
        beta = 0 if trained.beta is None else spread(trained.beta, inputs, fixed.group_size)
        scaled = merged / spread(fixed.counted, inputs, fixed.group_size) - beta
    clamped = torch.where(scaled < low, low.double(), torch.where(scaled > high, high.double(), scaled))
    rounded: Tensor = _Straight.apply(clamped) if fixed.rounds else scaled  # type: ignore[no-untyped-call]
    return rounded * steps + offset


@dataclass
class Case:
    """One linear in float64, with weights that are clipped."""

    fixed: Fixed
    trained: Trained
    x: Tensor

    @staticmethod
    def of(seed: int = 0, **given: Any) -> Case:
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64)

        options = {"bits": 3, "group_size": 8, "tile": 50}
        options |= dict.fromkeys(("masked", "zeros", "offset", "stay"), False) | {"rounds": True} | given
        size = options["group_size"]
        count = -(-IN // size) if size else 1
        mask = torch.rand(OUT, IN, generator=random) < 0.5 if options["masked"] else None
        low, high = bounds(options["bits"])
        zero = torch.randint(low, high + 1, (OUT, count), generator=random, dtype=torch.int8)
        fixed = Fixed(
            weight=normal(OUT, IN),
            mask=mask,
            zero=zero if options["zeros"] else None,
            bits=options["bits"],
            group_size=size,
            alpha=0.7,
            counted=(0.25 * normal(OUT, count) - 1.2).exp() if options["stay"] else None,
            rounds=bool(options["rounds"]),
            tile=options["tile"],
        )
        steps = (0.25 * normal(OUT, count) - 1.2).requires_grad_()
        beta = normal(OUT, count).requires_grad_() if options["offset"] else None
        a, b = (normal(*shape).mul(0.3).requires_grad_() for shape in ((RANK, IN), (OUT, RANK)))
        return Case(fixed, Trained(a, b, steps, beta), normal(TOKENS, IN).requires_grad_())

    def leaves(self) -> list[Tensor]:
        given = (self.x, self.trained.a, self.trained.b, self.trained.log_steps, self.trained.beta)
        return [t for t in given if t is not None]

    def gradients(self, made: Tensor) -> list[Tensor]:
        weights = torch.randn(made.shape, generator=torch.Generator().manual_seed(9), dtype=made.dtype)
        return list(torch.autograd.grad((made * weights).sum(), self.leaves()))

    def ours(self, **changes: Any) -> Tensor:
        return expression.linear(self.x, replace(self.fixed, **changes), self.trained)


KINDS: list[dict[str, Any]] = [
    {}, {"masked": True}, {"zeros": True}, {"masked": True, "zeros": True}, {"offset": True}, {"group_size": None},
    {"group_size": 7, "bits": 2}, {"group_size": IN, "bits": 4}, {"bits": 8, "zeros": True, "group_size": 5},
    {"stay": True, "masked": True}, {"stay": True, "offset": True}, {"stay": True, "zeros": True, "group_size": 7},
    {"stay": True, "masked": True, "group_size": None, "bits": 4, "rounds": False},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_values_and_gradients_are_those_of_the_explicit_graph(kind: dict[str, Any]) -> None:
    case = Case.of(**kind)
    weight = explicit(case.fixed, case.trained)
    torch.testing.assert_close(case.ours(), case.x @ weight.t(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(case.gradients(case.ours()), case.gradients(case.x @ weight.t()), rtol=1e-10, atol=1e-10)
    if kind.get("bits", 3) < 4:
        scaled = expression._scaled(case.fixed, case.trained, slice(0, OUT))
        low, high = case.fixed.range_of(slice(0, OUT))
        assert 0.05 < float(((scaled < low) | (scaled > high)).double().mean()) < 0.7, "nothing was clipped"


def test_gradients_are_those_of_the_surrogate_by_finite_differences() -> None:
    """The surrogate adds what rounding took as a constant, and clips."""
    case = Case.of(offset=True)
    fixed, given = case.fixed, case.trained
    scaled = expression._scaled(fixed, given, slice(0, OUT)).detach()
    left = expression.counts(fixed, given, slice(0, OUT)).detach() - scaled.clamp(*fixed.range_of(slice(0, OUT)))
    rest = expression.flat(fixed, left)

    def surrogate(a: Tensor, b: Tensor, log_steps: Tensor, beta: Tensor) -> Tensor:
        assert fixed.group_size
        steps = spread(log_steps.exp(), IN, fixed.group_size)
        offset = spread(beta * log_steps.exp(), IN, fixed.group_size)
        merged = fixed.weight + fixed.alpha * b @ a
        return (((merged - offset) / steps).clamp(*bounds(fixed.bits)) + rest) * steps + offset

    leaves = [t for t in case.leaves() if t is not case.x]
    assert torch.autograd.gradcheck(surrogate, leaves)
    ours = case.gradients(case.ours())
    theirs = case.gradients(case.x @ surrogate(*leaves).t())
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stay", [False, True])
@pytest.mark.parametrize("tile", [1, IN, 2 * IN + 1, 10**6])
def test_tiles_change_nothing(tile: int, stay: bool) -> None:
    case = Case.of(masked=True, zeros=True, stay=stay)
    whole = case.ours(tile=OUT * IN)
    torch.testing.assert_close(case.ours(tile=tile), whole, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(case.gradients(case.ours(tile=tile)), case.gradients(whole), rtol=1e-12, atol=1e-12)


def test_checkpointed_is_plain() -> None:
    case = Case.of(offset=True)
    again = checkpoint(case.ours, use_reentrant=False)
    assert torch.equal(again, case.ours())
    for ours, theirs in zip(case.gradients(again), case.gradients(case.ours()), strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), bits=st.sampled_from([2, 3, 4, 8]), size=st.sampled_from([None, 1, 4, 8, 20, IN]))
def test_span_clips_nothing_and_rounds_within_half_a_step(seed: int, bits: int, size: int | None) -> None:
    layer = plain(seed)
    fact = GridFact(bits=bits, group_size=size)
    steps = _quant.span(layer.weight.detach(), fact)
    made = Rounded(layer, None, fact, steps, rank=RANK, alpha=2.0, seed=0)
    fixed, trained = made._fixed(), made._trained()
    scaled = expression._scaled(fixed, trained, slice(0, OUT))
    assert (scaled >= bounds(bits)[0]).all()
    assert (scaled <= bounds(bits)[1]).all()
    grid = made.grid()
    torch.testing.assert_close(grid.scale, steps.scale, rtol=3e-6, atol=0)  # of a logarithm of up to 14
    assert (grid.scale >= steps.scale).all()
    wide = spread(grid.scale, IN, size)
    assert ((grid.dequantized() - layer.weight).abs() <= wide * 0.5000005).all()
    rounded = _quant.grid(layer.weight.detach(), _quant.Steps(grid.scale), fact)
    assert torch.equal(grid.codes, rounded.codes)


@pytest.mark.parametrize(
    "kind", [{}, {"zeros": True}, {"masked": True}, {"offset": True}, {"borders": "stay"}], ids=str
)
@pytest.mark.parametrize("size", [None, 8, 7])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_stand_for_the_weight_that_trained_to_the_last_bit(bits: int, size: int | None, kind: Any) -> None:
    made = trained_linear(bits, size, **kind)
    used, whole = weight_used(made), merged(made)
    x = torch.randn(TOKENS, IN)
    before = made(x)
    layer, grid = made.merge()
    assert grid is not None
    assert torch.equal(grid.dequantized(), used)
    assert torch.equal(layer.weight, used)
    assert type(layer) is nn.Linear
    torch.testing.assert_close(layer(x), before)
    grid.check("it", layer.weight, made.mask)
    if not kind.get("offset"):  # the one rounding rule of the house
        counted = grid.scale if made.counted is None else made.counted
        assert torch.equal(_quant.codes(whole, _quant.Steps(counted, grid.zero), made.fact), grid.codes)


def test_the_first_step_moves_b_and_neither_a_nor_an_offset() -> None:
    made = trained_linear(4, 8, offset=True)
    with torch.no_grad():
        made.lora_b.zero_()
        assert made.lora_offset is not None
        made.lora_offset.zero_()
        made.lora_steps.copy_(_quant.span(made.weight, made.fact).scale.log() + 1e-5)
    made(torch.randn(TOKENS, IN)).square().sum().backward()
    assert not made.lora_a.grad.any()  # type: ignore[union-attr]
    assert not made.lora_offset.grad.any()  # type: ignore[union-attr]
    assert made.lora_b.grad.any()  # type: ignore[union-attr]
    assert made.lora_steps.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_of_the_weights_size_is_kept_or_made(autocast: bool) -> None:
    layer = nn.Linear(256, 2048, bias=False, dtype=torch.bfloat16)
    fact = GridFact(bits=4, group_size=64)
    steps = _quant.span(layer.weight.detach(), fact)
    mask = torch.ones(2048, 256, dtype=torch.bool)
    made = Rounded(layer, mask, fact, steps, rank=4, alpha=2.0, seed=0)
    x = torch.randn(3, 256, dtype=torch.float32 if autocast else torch.bfloat16, requires_grad=True)
    kept: list[Tensor] = []
    fixed = replace(made._fixed(), tile=2**14)
    watch = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)  # type: ignore[func-returns-value]
    with _Sizes() as sizes, watch, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = expression.linear(x, fixed, made._trained()).float().square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
    own = {p.data_ptr() for p in made.parameters()}
    assert max(t.numel() for t in kept if t.data_ptr() not in own) <= x.numel() + 3 * 2048
    assert max(sizes.made) <= 2**14 + 3 * 2048 + made.lora_steps.numel()


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many elements each new tensor has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[int] = [0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        if isinstance(found, Tensor) and found.untyped_storage().data_ptr() not in known:
            self.made.append(found.numel())
        return found


def test_many_bits_in_small_groups_train_as_plain_lora() -> None:
    def curve(made: nn.Module) -> Tensor:
        parameters = [p for n, p in made.named_parameters() if n in ("lora_a", "lora_b")]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0)
        random = torch.Generator().manual_seed(1)
        x, wanted = torch.randn(64, IN, generator=random), torch.randn(64, OUT, generator=random)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = (made(x) - wanted).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    fact = GridFact(bits=8, group_size=4)
    ours = Rounded(plain(0), None, fact, _quant.span(plain(0).weight.detach(), fact), rank=RANK, alpha=2.0, seed=0)
    lora = curve(Adapter(plain(0), None, form="lora", rank=RANK, scale=2.0, seed=0))
    assert lora[-1] < 0.8 * lora[0]
    torch.testing.assert_close(curve(ours), lora, rtol=5e-2, atol=0)


@pytest.mark.parametrize("log_step", [-1e4, -200.0, 0.0, 200.0, 1e4])
def test_steps_stay_positive_whatever_is_trained(log_step: float) -> None:
    made = trained_linear(4, 8)
    with torch.no_grad():
        made.lora_steps.fill_(log_step)
    made(torch.randn(TOKENS, IN)).square().sum().backward()
    assert made.lora_steps.grad is not None
    assert made.lora_steps.grad.isfinite().all()
    assert (made.grid().scale > 0).all()  # a grid itself refuses others


@pytest.mark.parametrize("kind", KINDS[:6], ids=str)
def test_weights_that_take_gradients_get_those_of_the_explicit_graph(kind: dict[str, Any]) -> None:
    case = Case.of(**kind)
    case.fixed.weight.requires_grad_()
    ours, theirs = case.ours(), case.x @ explicit(case.fixed, case.trained).t()
    (found,) = torch.autograd.grad(ours.sin().sum(), case.fixed.weight)
    (wanted,) = torch.autograd.grad(theirs.sin().sum(), case.fixed.weight)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_a_step_from_codes_has_a_gradient_where_borders_stay_alone() -> None:
    both: tuple[Borders, ...] = ("move", "stay")
    made = trained_linear(3, 8).grid()
    layer = plain(0)
    layer.weight.data = made.dequantized()
    steps = _quant.Steps(made.scale, made.zero)
    found: dict[str, Tensor] = {}
    for borders in both:
        again = Rounded(copy.deepcopy(layer), None, made.fact, steps, rank=RANK, alpha=2.0, seed=0, borders=borders)
        again(torch.ones(TOKENS, IN)).sum().backward()
        assert torch.equal(again.grid().codes, made.codes)
        assert again.lora_steps.grad is not None
        found[borders] = again.lora_steps.grad
        again.lora_steps.data += 0.3
        assert torch.equal(again.grid().codes, made.codes) == (borders == "stay")
    levels = torch.stack([g.sum(1) for g in torch.split(made.codes.float(), 8, dim=1)], 1)
    torch.testing.assert_close(found["stay"], TOKENS * levels * made.scale, rtol=1e-4, atol=1e-4)
    assert found["move"].abs().max() < 1e-3 * found["stay"].abs().max()


def test_gain_scales_the_gradients_of_steps_alone() -> None:
    case = Case.of()
    one, other = case.gradients(case.ours()), case.gradients(case.ours(gain=0.25))
    assert torch.equal(other[3], one[3] * 0.25)
    assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def plain(seed: int) -> nn.Linear:
    layer = nn.Linear(IN, OUT)
    layer.weight.data = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(seed))
    layer.weight.data[0, :8] = 0
    return layer


def trained_linear(
    bits: int,
    size: int | None,
    *,
    zeros: bool = False,
    masked: bool = False,
    offset: bool = False,
    borders: Borders = "move",
) -> Rounded:
    """A rounded linear whose numbers all moved, so that some weights are clipped."""
    torch.manual_seed(bits)
    layer = plain(3)
    mask = _masks.keep_top(torch.rand(OUT, IN), 0.5) if masked else None
    if mask is not None:
        _masks.apply_(layer.weight, mask)
    fact = GridFact(bits=bits, group_size=size, zero=zeros, offset=offset)
    steps = _quant.span(layer.weight.detach(), fact)
    made = Rounded(layer, mask, fact, steps, rank=RANK, alpha=0.5, seed=0, borders=borders)
    for name, parameter in made.named_parameters():
        if name.startswith("lora_"):
            parameter.data += 0.2 * torch.randn_like(parameter)
    return made


def weight_used(made: Rounded) -> Tensor:
    """What `forward` multiplies with."""
    fixed, trained = made._fixed(), made._trained()
    with torch.no_grad():
        tiles = [
            expression.stretched_(fixed, trained, rows, expression.counts(fixed, trained, rows))
            for rows in fixed.rows()
        ]
    return torch.cat(tiles)


def merged(made: Rounded) -> Tensor:
    with torch.no_grad():
        whole = torch.addmm(made.weight, made.lora_b, made.lora_a, alpha=made.alpha)
        return whole if made.mask is None else whole * made.mask


# -- the pass ----------------------------------------------------------------------------------------------------------


class Bench:
    """A model, its dense parent, data, and what L4Q makes of them."""

    def __init__(
        self, make: Callable[..., Artifact], folder: Path, kind: str = "llama", pattern: str | None = None, **rest: Any
    ) -> None:
        def dense() -> Artifact:
            made = make(kind, **rest)
            lively(made.model)
            return made

        folder.mkdir(exist_ok=True)
        artifact = dense()
        self.report = QuietReport()
        rows = [(" ".join(WORDS[i % 7 : i % 7 + 3 + i % 4]), i % 2) for i in range(24)]
        (folder / "text.txt").write_text(" ".join(WORDS[(i * i + 3 * i // 5) % len(WORDS)] for i in range(1500)))
        (folder / "rows.csv").write_text("text,label\n" + "".join(f'"{t}",{c}\n' for t, c in rows))
        name = "text.txt" if artifact.task == "causal-lm" else "rows.csv"
        table = DataSettings(source=str(folder / name), windows=16, length=12)
        roles: tuple[Role, Role] = ("training", "calibration")
        self.context = Context(
            folder=folder,
            report=self.report,
            data={r: Source(table, r, artifact.task) for r in roles},
            parent=dense,
        )
        masks = {}
        for linear_name, layer in tree.block_linears(artifact.model).items() if pattern else ():
            score = layer.weight.detach().abs()
            mask = _masks.keep_n_of_m(score, 2, 4) if pattern == "2:4" else _masks.keep_top(score, 0.5)
            _masks.apply_(layer.weight, mask)
            masks[linear_name] = mask
        self.before = artifact.after(masks=masks)

    def run(self, **given: Any) -> Artifact:
        """Run in a folder of its own for each settings, as pipelines do."""
        plugin = l4q(**given)
        folder = self.context.folder / f"{zlib.crc32(repr(given).encode())}"
        folder.mkdir(exist_ok=True)
        start = self.before.after(model=copy.deepcopy(self.before.model))
        facts = _pruned.facts_of(start)
        planned = plugin.plan(facts)
        after = plugin.run(start, replace(self.context, folder=folder))
        plugin.ensures(self.before, after)
        assert _pruned.facts_of(after).after(trained=True) == planned
        return after


WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "a", "model", "is", "pruned")


@pytest.fixture
def bench(tiny: Callable[..., Artifact], tmp_path: Path) -> Callable[..., Bench]:
    return lambda kind="llama", folder="run", **rest: Bench(tiny, tmp_path / folder, kind, **rest)


def l4q(**given: Any) -> L4Q:
    small = {"steps": 4, "batch": 4, "group_size": 16, "lr_steps": 1e-2, "lr": 1e-2}
    return L4Q(L4Q.Settings(**small | given))


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_every_family_becomes_codes_and_nothing_else_changes(kind: str, bench: Callable[..., Bench]) -> None:
    b = bench(kind)
    after = b.run()
    linears = tree.block_linears(after.model)
    assert after.grids.keys() == linears.keys()
    assert all(type(m) is nn.Linear for m in linears.values())
    rounded = {}
    for name, linear in tree.block_linears(b.before.model).items():
        fact, weight = after.grids[name].fact, linear.weight.detach()
        rounded[name] = _quant.grid(weight, _quant.span(weight, fact), fact)
    assert any((after.grids[n].codes != rounded[n].codes).any() for n in linears), "training moved no code"
    assert any((after.grids[n].scale / rounded[n].scale - 1).abs().max() > 1e-3 for n in linears)
    state = b.before.model.state_dict()
    same = {n for n, t in after.model.state_dict().items() if _masks.same_bits(t, state[n])}
    assert state.keys() - same <= {f"{n}.weight" for n in linears}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("pattern", ["2:4", "half"])
def test_zeros_stay_zeros_in_the_codes(pattern: str, symmetric: bool, bench: Callable[..., Bench]) -> None:
    b = bench(pattern=pattern)
    after = b.run(bits=3, symmetric=symmetric, lr=0.1)
    for name, grid in after.grids.items():
        mask = b.before.masks[name]
        assert torch.equal(after.masks[name], mask)
        nothing = torch.zeros_like(grid.scale, dtype=torch.int8) if grid.zero is None else grid.zero
        zeros = grid.codes == spread(nothing, grid.codes.shape[1], 16)
        assert zeros[~mask].all()
        if pattern == "2:4":
            assert (zeros.view(-1, 4).sum(1) >= 2).all()
        assert (grid.zero is None) == symmetric


@pytest.mark.parametrize(
    "given",
    [
        {"loss": "lm"}, {"loss": "both", "init": "span"}, {"bits": 2, "scale_gradients": True},
        {"symmetric": False}, {"offset": True},
    ],
    ids=str,
)  # fmt: skip
def test_training_lowers_each_loss(given: dict[str, Any], bench: Callable[..., Bench]) -> None:
    b = bench()
    b.run(steps=30, lr_steps=1e-3, **given)
    curve = [value for _, value, _ in b.report.measured["loss"]]
    assert sum(curve[-4:]) < sum(curve[:4])


@pytest.mark.parametrize("task", ["classification", "regression", "embedding"])
def test_encoders_learn_from_the_parent(task: str, bench: Callable[..., Bench]) -> None:
    b = bench("bert", task=task)
    b.run(steps=20, loss="kl", bits=2, lr_steps=1e-3)
    held_out = [value for _, value in b.report.measured["held_out_loss"]]
    assert min(held_out) < held_out[0]


def test_half_precision_comes_back(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.before.model.to(torch.bfloat16)  # type: ignore[arg-type]
    after = b.run()
    assert {p.dtype for p in after.model.parameters()} == {torch.bfloat16}
    assert {g.scale.dtype for g in after.grids.values()} == {torch.float32}


def test_layers_and_bits_are_chosen(bench: Callable[..., Bench]) -> None:
    after = bench().run(layers={"down_proj": 8, "layers.1": "float"}, exclude=["o_proj"])
    bits = {n.removeprefix("model.layers."): g.bits for n, g in after.grids.items()}
    assert bits["0.mlp.down_proj"] == 8
    assert bits["0.mlp.up_proj"] == 4
    assert not any(n.startswith("1.") or "o_proj" in n for n in bits)


def test_codes_from_before_are_where_it_starts(bench: Callable[..., Bench]) -> None:
    b = bench()
    first = b.run(init="search")
    b.before = first
    with pytest.raises(BadSettings, match="again"):
        b.run()
    moved = b.run(again=True, lr=1e-12, lr_steps=1e-12)
    for name, grid in moved.grids.items():
        assert torch.equal(grid.codes, first.grids[name].codes)
        torch.testing.assert_close(grid.scale, first.grids[name].scale, rtol=3e-6, atol=0)
    other = l4q(again=True, bits=3)
    narrower = other.run(
        first.after(model=copy.deepcopy(first.model)), replace(b.context, folder=_new(b.context.folder))
    )
    other.ensures(first, narrower)


def test_steps_of_codes_that_are_floats_are_none_for_integers(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.before = quantized(b.before, GridFact(bits=8, group_size=16, format="fp8"))
    after = b.run(bits=8, again=True, init="span", lr=1e-12, lr_steps=1e-12)
    for name, grid in after.grids.items():
        span = _quant.span(b.before.tensor(f"{name}.weight"), grid.fact)
        torch.testing.assert_close(grid.scale, span.scale, rtol=3e-6, atol=0)


def test_without_borders_floats_are_trained_and_left(bench: Callable[..., Bench]) -> None:
    b = bench(pattern="2:4")
    same = b.run(borders="none", lr=1e-12, lr_steps=1e-12)
    after = b.run(borders="none", loss="lm", steps=30)
    curve = [value for _, value, _ in b.report.measured["loss"]][-30:]
    assert sum(curve[-4:]) < sum(curve[:4])
    assert not after.grids
    for name, linear in tree.block_linears(after.model).items():
        old = b.before.model.get_parameter(f"{name}.weight")
        torch.testing.assert_close(same.model.get_parameter(f"{name}.weight"), old, rtol=1e-5, atol=1e-7)
        assert not linear.weight[~b.before.masks[name]].any()
        assert not torch.equal(linear.weight, old)


def test_chained_floats_codes_and_codes_again(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.before = b.run(borders="none")
    b.before = b.run(borders="stay")
    after = b.run(borders="stay", again=True, lr=1e-9)
    assert all(torch.equal(after.grids[n].codes, g.codes) for n, g in b.before.grids.items())
    with pytest.raises(BadSettings, match="which floats would replace"):
        b.run(borders="none", again=True)


def _new(folder: Path) -> Path:
    made = folder / f"again-{len(list(folder.iterdir()))}"
    made.mkdir()
    return made


@pytest.mark.parametrize(
    ("kind", "pattern", "given", "key", "words"),
    [
        ("llama", None, {"offset": True, "symmetric": False}, "offset", "not both"),
        ("llama", "2:4", {"offset": True}, "offset", "fill its zeros"),
        ("llama", None, {"rank": 17}, "rank", "<= 16"),
        ("llama", None, {"group_size": 33}, "group_size", "fewer than a group"),
        ("llama", None, {"activation": "dynamic"}, "activation", "8 bits"),
        ("llama", None, {"borders": "none", "warm_steps": 2}, "warm_steps", "only where codes are made"),
        ("embedding", None, {"loss": "lm"}, "loss", "'kl' would do"),
        ("branched", None, {}, "exclude", "low-rank branch"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(
    kind: str, pattern: str | None, given: dict[str, Any], key: str, words: str, bench: Callable[..., Bench]
) -> None:
    b = bench("bert", task="embedding") if kind == "embedding" else bench(pattern=pattern)
    start = branched(b.before) if kind == "branched" else b.before
    with pytest.raises(BadSettings, match=words) as caught:
        l4q(**given).plan(_pruned.facts_of(start))
    assert caught.value.key == key


@pytest.mark.parametrize("given", [{"bits": 5}, {"lr_steps": 0}, {"loss": "mse"}, {"rank": 0}, {"init": "zeros"}])
def test_bad_settings(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        l4q(**given)


def test_a_weight_that_is_not_finite_and_a_missing_parent_are_named(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.context = replace(b.context, parent=None)
    with pytest.raises(BadSettings, match="needs the dense parent"):
        b.run(loss="kl")
    name, layer = next(iter(tree.block_linears(b.before.model).items()))
    layer.weight.data[0, 0] = torch.nan
    with pytest.raises(BadModel, match=name):
        b.run(loss="lm")


def test_divergence_says_where(bench: Callable[..., Bench]) -> None:
    with pytest.raises(Diverged, match="a lower lr"):
        bench().run(steps=60, lr=1e3, lr_steps=50.0, clip=0)


def test_a_broken_promise_is_noticed(bench: Callable[..., Bench]) -> None:
    b = bench(pattern="2:4")
    after = b.run()
    name = next(iter(after.grids))
    plugin = l4q()

    def damaged(**changes: Any) -> Artifact:
        return after.after(grids={**after.grids, name: replace(after.grids[name], **changes)})

    with pytest.raises(BrokenPromise, match="differ from what their codes"):
        plugin.ensures(b.before, damaged(scale=after.grids[name].scale * 1.5))
    with pytest.raises(BrokenPromise, match="codes that nobody planned, or none"):
        plugin.ensures(b.before, after.after(grids={n: g for n, g in after.grids.items() if n != name}))
    with pytest.raises(BrokenPromise, match="was to become"):
        plugin.ensures(b.before, damaged(activation="dynamic"))
    next(iter(tree.norms(after.model).values())).data += 1
    with pytest.raises(BrokenPromise, match="leaves it alone"):
        plugin.ensures(b.before, after)


def test_estimate_counts_what_is_trained(bench: Callable[..., Bench]) -> None:
    b = bench()
    facts = _pruned.facts_of(b.before)
    b.run(offset=True, rank=2)
    told = l4q(offset=True, rank=2).estimate(facts)
    expected = sum(2 * (o + i) + 2 * o * i // 16 for o, i in facts.shapes.values())
    assert told.trainable == expected == b.report.measured["trainable"][0]
    taught, alone = l4q(loss="kl").estimate(facts), l4q(loss="lm").estimate(facts)
    assert taught.peak_mib > alone.peak_mib
    assert taught.seconds > alone.seconds


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_warm_start_brings_blocks_nearer_to_the_parents(kind: str, bench: Callable[..., Bench]) -> None:
    b = bench(kind)
    given = {"bits": 2, "lr": 1e-9, "lr_steps": 1e-9, "loss": "kl", "steps": 1}
    b.run(**given)
    cold = b.report.measured["loss"][0][1]
    b.run(**given | {"warm_steps": 20, "warm_lr": 0.05})
    records = b.report.measured["reconstruction"]
    assert [window for window, *_ in records] == list(tree.blocks(b.before.model))
    assert all(after < before for _, before, after, _ in records)
    assert b.report.measured["loss"][1][1] < cold
    with pytest.raises(BadSettings, match="no counterpart"):
        l4q(warm_steps=1).plan(_pruned.facts_of(b.before).after(dropped=1))
    assert l4q(warm_steps=1).data_uses() == {"calibration", "training"}
    assert l4q().data_uses() == {"training"}


class Killed(RuntimeError):
    """What stands for a kill."""


class KillingReport(QuietReport):
    """Ends the run when a bar has advanced so often."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def advance(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left < 0:
            raise Killed

    def show(self, text: str) -> None:
        """Show nothing."""

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Any]:
        yield self


@pytest.mark.parametrize("after", [4, 12])
def test_killed_and_resumed_gives_the_same_bytes(after: int, bench: Callable[..., Bench], tmp_path: Path) -> None:
    given = {"steps": 8, "warm_steps": 3, "checkpoint_every": 2, "loss": "kl", "bits": 3}
    whole, killed = bench(folder="whole"), bench(folder="killed")
    wanted = whole.run(**given)
    quiet, killed.context = killed.context, replace(killed.context, report=KillingReport(after))
    with pytest.raises(Killed):
        killed.run(**given)
    killed.context = quiet
    found = killed.run(**given)
    for folder, artifact in ((tmp_path / "a", wanted), (tmp_path / "b", found)):
        folder.mkdir()
        artifact.save(folder)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
