"""The weight expression: its gradients against closed forms, what it keeps in memory, what it merges to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from compress import tree
from compress.artifact import Artifact
from compress.errors import BrokenPromise, CompressError
from passes import _adapter
from passes._adapter import FORMS, Adapter, attach_, initial, linear, merge_, weight_of
from passes._masks import keep_n_of_m, keep_top
from tests.conftest import CAUSAL, ENCODERS

OUT, IN, RANK, SCALE = 6, 8, 3, 1.5
KEPT = ("mask_lora", "scale_lora")


def parts(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A pruned weight, its mask, and an update that is anywhere but at its start."""
    random = torch.Generator().manual_seed(seed)
    weight, x = (torch.randn(n, IN, generator=random, dtype=dtype) for n in (OUT, 5))
    mask = keep_top(weight.abs(), 0.5)
    a, b = torch.randn(RANK, IN, generator=random, dtype=dtype), torch.randn(OUT, RANK, generator=random, dtype=dtype)
    bias = torch.randn(OUT, generator=random, dtype=dtype)
    return {"weight": weight * mask, "mask": mask, "a": a, "b": b, "bias": bias, "x": x}


def naive(form: str, weight: Tensor, mask: Tensor, a: Tensor, b: Tensor, *, merged: bool = False) -> Tensor:
    """The forms as the paper writes them."""
    match form:
        case "mask_lora":
            return weight + SCALE * (mask * (b @ a))
        case "scale_lora":
            return weight * (b @ a)
        case "lora_prune" if merged:
            return weight + mask * (SCALE * (b @ a))
    return weight + SCALE * (b @ a)


def adapter(form: str, p: dict[str, Tensor]) -> Adapter:
    """An adapter over these parts."""
    layer = nn.Linear(IN, OUT, dtype=p["weight"].dtype)
    layer.weight.data, layer.bias.data = p["weight"].clone(), p["bias"].clone()
    made = Adapter(layer, p["mask"], form=form, rank=RANK, scale=SCALE, seed=0)
    made.lora_a.data, made.lora_b.data = p["a"].clone(), p["b"].clone()
    return made


def shaken_(model: nn.Module) -> None:
    """Move every adapter away from its start."""
    random = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, Adapter):
            for tensor in (module.lora_a, module.lora_b):
                tensor.data += 0.05 * torch.randn(tensor.shape, generator=random)


# -- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("multiplicative", [True, False])
def test_gradients_are_those_of_finite_differences(multiplicative: bool, masked: bool) -> None:
    p = parts()

    def call(x: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        def expression(w: Tensor, m: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
            return weight_of(w, m, a, b, scale=SCALE, multiplicative=multiplicative)

        return linear(x, bias, expression, p["weight"], p["mask"] if masked else None, a, b)

    inputs = [p[n].requires_grad_() for n in ("x", "bias", "a", "b")]
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_the_closed_forms(form: str) -> None:
    p, made = parts(), adapter(form, parts())
    grad = torch.randn(5, OUT, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = p["x"].clone().requires_grad_()
    made(x).backward(grad)
    inner = grad.t() @ p["x"]
    inner = {"mask_lora": SCALE * (p["mask"] * inner), "scale_lora": inner * p["weight"]}.get(form, SCALE * inner)
    torch.testing.assert_close(made.lora_b.grad, inner @ p["a"].t())
    torch.testing.assert_close(made.lora_a.grad, p["b"].t() @ inner)
    torch.testing.assert_close(made.bias.grad, grad.sum(0))
    torch.testing.assert_close(x.grad, grad @ naive(form, p["weight"], p["mask"], p["a"], p["b"]))
    assert made.weight.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_what_is_pruned_pulls_at_nothing_but_lora_prune(form: str) -> None:
    p, made = parts(), adapter(form, parts())
    row, column = (int(i) for i in (~p["mask"]).nonzero()[0])
    out, x = torch.zeros(1, OUT, dtype=torch.float64), torch.zeros(1, IN, dtype=torch.float64)
    out[0, row] = x[0, column] = 1  # the gradient of the weight is 1 at one pruned entry, 0 elsewhere
    made(x).backward(out)
    assert made.lora_a.grad is not None
    assert made.lora_b.grad is not None
    moved = bool(made.lora_a.grad.any()) and bool(made.lora_b.grad.any())
    still = not made.lora_a.grad.any() and not made.lora_b.grad.any()
    assert still if form in KEPT else moved


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_the_weights_size_waits_for_the_backward(form: str) -> None:
    layer = nn.Linear(96, 80)
    mask = keep_top(layer.weight.detach().abs(), 0.5)
    layer.weight.data *= mask
    model = nn.Sequential(nn.LayerNorm(96), Adapter(layer, mask, form=form, rank=4, scale=2.0, seed=0), nn.GELU())
    given = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = model(torch.randn(2, 3, 96)).square().sum()
    new = [t for t in kept if t.untyped_storage().data_ptr() not in given]
    assert new
    assert max(t.numel() for t in new) < 80 * 96 / 4
    loss.backward()
    assert model[1].lora_b.grad is not None


# -- start and merge ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_starts_as_the_very_same_weight(form: str) -> None:
    p = parts(dtype=torch.float32)
    layer = nn.Linear(IN, OUT)
    layer.weight.data = p["weight"].clone()
    made = Adapter(layer, p["mask"], form=form, rank=RANK, scale=SCALE, seed=0)
    assert torch.equal(made.merged(), p["weight"])
    assert made.lora_a.count_nonzero() == RANK * IN  # so that B has a gradient from the first step


@pytest.mark.parametrize("form", FORMS)
def test_merges_to_the_formula(form: str) -> None:
    p = parts()
    merged = adapter(form, p).merge().weight
    torch.testing.assert_close(
        merged, naive(form, p["weight"], p["mask"], p["a"], p["b"], merged=True), rtol=0, atol=1e-14
    )
    assert bool(merged[~p["mask"]].any()) == (form == "lora")
    assert not merged[~p["mask"]].signbit().any() or form == "lora"  # +0, as pruning left it


def test_jump_is_what_the_mask_takes() -> None:
    p = parts()
    made = adapter("lora_prune", p)
    dropped, whole = made.jump()
    update = SCALE * (p["b"] @ p["a"])
    assert dropped == pytest.approx(float((update * ~p["mask"]).square().sum()))
    assert whole == pytest.approx(float(update.square().sum()))


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(sorted(set(FORMS) - {"lora"})),
    rows=st.integers(1, 9),
    groups=st.integers(1, 4),
    rank=st.integers(1, 5),
    scale=st.floats(0.1, 4),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_zeros_outlive_any_update(
    form: str, rows: int, groups: int, rank: int, scale: float, seed: int, dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(seed)
    layer = nn.Linear(4 * groups, rows, bias=False)
    layer.weight.data = torch.randn(rows, 4 * groups, generator=random)
    mask = keep_n_of_m(layer.weight.detach().abs(), 2, 4)
    layer.weight.data = (layer.weight.data * mask).to(dtype)
    made = Adapter(layer, mask, form=form, rank=rank, scale=scale, seed=seed)
    for tensor in (made.lora_a, made.lora_b):
        tensor.data = torch.randn(tensor.shape, generator=random)
    x = torch.randn(3, 4 * groups, generator=random)
    unmerged = made(x.to(dtype))
    merged = made.merge()
    assert merged.weight.dtype == dtype
    assert not merged.weight[~mask].any()
    assert (merged.weight.view(rows, -1, 4) != 0).sum(-1).le(2).all()
    if form in KEPT:
        assert torch.equal(unmerged, merged(x.to(dtype)))  # one function, one rounding


def test_scale_lora_starts_with_components_that_differ() -> None:
    a, b = initial(OUT, IN, RANK, 0, multiplicative=True)
    assert torch.equal(b @ a, torch.ones(OUT, IN))
    assert torch.linalg.matrix_rank(a) == RANK


def test_scale_lora_uses_its_whole_rank() -> None:
    p = parts(dtype=torch.float32)
    layer = nn.Linear(IN, OUT)
    layer.weight.data = p["weight"]
    made = Adapter(layer, p["mask"], form="scale_lora", rank=RANK, scale=1.0, seed=0)
    optimizer = torch.optim.Adam([made.lora_a, made.lora_b], lr=1e-2)
    wanted = torch.randn(5, OUT, generator=torch.Generator().manual_seed(3))
    for _ in range(20):
        optimizer.zero_grad()
        functional.mse_loss(made(p["x"]), wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert torch.linalg.matrix_rank((made.lora_b @ made.lora_a).detach(), rtol=1e-4) == RANK


def test_a_second_merge_is_refused() -> None:
    made = adapter("mask_lora", parts())
    model = nn.Sequential(made)
    assert merge_(model) == ["0"]
    assert type(model[0]) is nn.Linear
    with pytest.raises(CompressError, match="no adapter"):
        merge_(model)
    with pytest.raises(CompressError, match="twice"):
        made.merge()


def test_a_weight_outside_its_mask_is_refused() -> None:
    layer = nn.Linear(IN, OUT)
    with pytest.raises(BrokenPromise, match="not zero"):
        Adapter(layer, torch.zeros(OUT, IN, dtype=torch.bool), form="mask_lora", rank=1, scale=1.0, seed=0)


def test_only_a_linear_takes_an_adapter() -> None:
    model = nn.Sequential(nn.LayerNorm(4))
    with pytest.raises(CompressError, match="0: a LayerNorm"):
        attach_(model, ["0"], {}, form="lora", rank=1, scale=1.0, seed=0)


def test_a_kept_weight_of_zero_stays_trainable() -> None:
    p = parts()
    row, column = (int(i) for i in p["mask"].nonzero()[0])
    p["weight"][row, column] = 0
    merged = adapter("mask_lora", p).merged()
    assert float(merged[row, column]) == pytest.approx(float(SCALE * (p["b"] @ p["a"])[row, column]))


# -- whole models -----------------------------------------------------------------------------------------------------


def pruned(artifact: Artifact) -> dict[str, Tensor]:
    masks = {}
    for name, layer in tree.block_linears(artifact.model).items():
        masks[name] = keep_n_of_m(layer.weight.detach().abs(), 2, 4)
        layer.weight.data *= 8 * masks[name]  # or else BERT's logits hardly feel them
    return masks


@torch.no_grad()
def logits(artifact: Artifact) -> Tensor:
    ids = torch.randint(2, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    found: Tensor = artifact.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
@pytest.mark.parametrize("form", FORMS)
def test_attached_trained_and_merged_in_every_family(kind: str, form: str, tiny: Callable[..., Artifact]) -> None:
    artifact = tiny(kind)
    masks = pruned(artifact)
    names = list(tree.block_linears(artifact.model))
    before, state = logits(artifact), list(artifact.model.state_dict())
    attach_(artifact.model, names, masks, form=form, rank=4, scale=2.0, seed=0)
    assert torch.equal(logits(artifact), before)
    shaken_(artifact.model)
    unmerged = logits(artifact)
    assert (unmerged - before).abs().max() > 1e-4
    assert sorted(merge_(artifact.model)) == sorted(names)
    assert list(artifact.model.state_dict()) == state
    difference = (logits(artifact) - unmerged).abs().max()
    assert difference > 1e-6 if form == "lora_prune" else difference <= 1e-5


def test_autocast_multiplies_in_its_precision_and_keeps_fp32_gradients() -> None:
    p = parts(dtype=torch.float32)
    made = adapter("mask_lora", p)
    with torch.autocast("cpu", torch.bfloat16):
        y = made(p["x"])
    assert y.dtype == torch.bfloat16
    exact = functional.linear(p["x"], naive("mask_lora", p["weight"], p["mask"], p["a"], p["b"]), p["bias"])
    torch.testing.assert_close(y.float(), exact, rtol=2e-2, atol=5e-2)  # bf16 has 8 bits
    y.sum().backward()
    twin = adapter("mask_lora", p)
    twin(p["x"]).sum().backward()
    for name, parameter in made.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32
            wanted: Any = dict(twin.named_parameters())[name].grad
            torch.testing.assert_close(parameter.grad, wanted, rtol=2e-2, atol=1e-1)


def test_seeds_go_by_name_not_by_order() -> None:
    made: list[Any] = []
    for order in (["0", "1"], ["1", "0"]):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        attach_(model, order, {}, form="lora", rank=2, scale=1.0, seed=0)
        made.append(model)
    assert torch.equal(made[0][1].lora_a, made[1][1].lora_a)
    assert not torch.equal(made[0][0].lora_a, made[0][1].lora_a)


def test_every_form_is_described() -> None:
    assert all(form in (_adapter.__doc__ or "") for form in FORMS)
