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
from passes._adapter import FORMS, Adapter, Form, attach_, initial, linear, merge_, weight_of
from passes._masks import keep_n_of_m, keep_top
from tests.conftest import CAUSAL, ENCODERS

OUT, IN, RANK, SCALE = 6, 8, 3, 1.5
KEPT = ("mask_lora", "scale_lora")
FILLING = ("lora", "branch")
PLACES = (0, 5, 13, 14, 31, 47)  # of S2 in the flat weight; some of them pruned


def parts(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A pruned weight, its mask, and an update that is anywhere but at its start."""
    random = torch.Generator().manual_seed(seed)
    weight, x = (torch.randn(n, IN, generator=random, dtype=dtype) for n in (OUT, 5))
    mask = keep_top(weight.abs(), 0.5)
    a, b = torch.randn(RANK, IN, generator=random, dtype=dtype), torch.randn(OUT, RANK, generator=random, dtype=dtype)
    bias = torch.randn(OUT, generator=random, dtype=dtype)
    values = torch.randn(len(PLACES), generator=random, dtype=dtype)
    return {"weight": weight * mask, "mask": mask, "a": a, "b": b, "bias": bias, "x": x, "values": values}


def naive(form: str, p: dict[str, Tensor], *, spikes: bool = False, merged: bool = False) -> Tensor:
    """The forms as the papers write them."""
    weight, mask, low = p["weight"], p["mask"], p["b"] @ p["a"]
    s2 = torch.zeros(OUT * IN, dtype=weight.dtype)
    if spikes:
        s2[list(PLACES)] = p["values"]
    s2 = s2.view(OUT, IN)
    match form:
        case "mask_lora":
            return weight + SCALE * (mask * (low + s2))
        case "scale_lora":
            return weight * low + SCALE * (mask * s2)
        case "branch":
            return weight + SCALE * (mask * s2) + SCALE * low
        case "lora_prune" if merged:
            return weight + mask * (SCALE * (low + s2))
    return weight + SCALE * (low + s2)


def adapter(form: str, p: dict[str, Tensor], *, spikes: bool = False, low_rank: bool = True) -> Adapter:
    """An adapter over these parts."""
    layer = nn.Linear(IN, OUT, dtype=p["weight"].dtype)
    layer.weight.data, layer.bias.data = p["weight"].clone(), p["bias"].clone()
    support = torch.tensor(PLACES) if spikes else None
    made = Adapter(layer, p["mask"], form=form, rank=RANK * low_rank, scale=SCALE, seed=0, support=support)
    for name, parameter in trained(made).items():
        parameter.data = p[{"lora_a": "a", "lora_b": "b", "lora_s": "values"}[name]].clone()
    return made


def trained(made: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in made.named_parameters() if n.rpartition(".")[2].startswith("lora_")}


def shaken_(model: nn.Module) -> None:
    """Move every adapter away from its start."""
    random = torch.Generator().manual_seed(1)
    for parameter in trained(model).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)


# -- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("terms", ["low rank", "spikes", "both"])
@pytest.mark.parametrize("form", [Form(), Form(multiplicative=True), Form(outside=True)])
def test_gradients_are_those_of_finite_differences(form: Form, terms: str, masked: bool) -> None:
    p = parts()
    support = torch.tensor(PLACES) if terms != "low rank" else None
    names = {"low rank": ("a", "b"), "spikes": ("values",), "both": ("a", "b", "values")}[terms]

    def call(x: Tensor, bias: Tensor, *given: Tensor) -> Tensor:
        found = dict(zip(names, given, strict=True))

        def expression(w: Tensor, m: Tensor | None, *rest: Tensor | None) -> Tensor:
            return weight_of(w, m, *rest, form=form, scale=SCALE)

        mask = p["mask"] if masked else None
        return linear(
            x, bias, expression, p["weight"], mask, found.get("a"), found.get("b"), support, found.get("values")
        )

    assert torch.autograd.gradcheck(call, [p[n].requires_grad_() for n in ("x", "bias", *names)])


@pytest.mark.parametrize("spikes", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_the_closed_forms(form: str, spikes: bool) -> None:
    p, made = parts(), adapter(form, parts(), spikes=spikes)
    grad = torch.randn(5, OUT, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = p["x"].clone().requires_grad_()
    made(x).backward(grad)
    whole = grad.t() @ p["x"]
    inner = {"mask_lora": SCALE * (p["mask"] * whole), "scale_lora": whole * p["weight"]}.get(form, SCALE * whole)
    found = {n: t.grad for n, t in trained(made).items()}
    torch.testing.assert_close(found["lora_b"], inner @ p["a"].t())
    torch.testing.assert_close(found["lora_a"], p["b"].t() @ inner)
    if spikes:
        seen = whole if form in ("lora", "lora_prune") else whole * p["mask"]
        torch.testing.assert_close(found["lora_s"], SCALE * seen.flatten()[list(PLACES)])
    torch.testing.assert_close(made.bias.grad, grad.sum(0))
    torch.testing.assert_close(x.grad, grad @ naive(form, p, spikes=spikes))
    assert made.weight.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_what_is_pruned_pulls_at_nothing_but_lora_prune(form: str) -> None:
    p, made = parts(), adapter(form, parts(), spikes=True)
    row, column = (int(i) for i in (~p["mask"]).nonzero()[0])
    out, x = torch.zeros(1, OUT, dtype=torch.float64), torch.zeros(1, IN, dtype=torch.float64)
    out[0, row] = x[0, column] = 1  # the gradient of the weight is 1 at one pruned entry, 0 elsewhere
    made(x).backward(out)
    moved = {n for n, t in trained(made).items() if t.grad is not None and t.grad.any()}
    assert moved - {"lora_s"} == (set() if form in KEPT else {"lora_a", "lora_b"})
    hit = row * IN + column in PLACES
    assert ("lora_s" in moved) == (hit and form in ("lora", "lora_prune"))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_the_weights_size_waits_for_the_backward(form: str) -> None:
    layer = nn.Linear(96, 80)
    mask = keep_top(layer.weight.detach().abs(), 0.5)
    layer.weight.data *= mask
    made = Adapter(layer, mask, form=form, rank=4, scale=2.0, seed=0, support=torch.arange(0, 80 * 96, 997))
    model = nn.Sequential(nn.LayerNorm(96), made, nn.GELU())
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
    assert all(t.grad is not None for t in trained(model).values())
    assert sum(t.numel() for t in trained(model).values()) == 4 * (80 + 96) + 8


# -- start and merge ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_starts_as_the_very_same_weight(form: str) -> None:
    p = parts(dtype=torch.float32)
    layer = nn.Linear(IN, OUT)
    layer.weight.data = p["weight"].clone()
    for support in (None, torch.tensor(PLACES)):
        made = Adapter(layer, p["mask"], form=form, rank=RANK, scale=SCALE, seed=0, support=support)
        assert torch.equal(made.merged(), p["weight"])
        assert trained(made)["lora_a"].count_nonzero() == RANK * IN  # so that B has a gradient from the first step


@pytest.mark.parametrize("spikes", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_merges_to_the_formula(form: str, spikes: bool) -> None:
    p = parts()
    merged = adapter(form, p, spikes=spikes).merge().weight
    torch.testing.assert_close(merged, naive(form, p, spikes=spikes, merged=True), rtol=0, atol=1e-14)
    assert bool(merged[~p["mask"]].any()) == (form in FILLING)
    assert not merged[~p["mask"]].signbit().any() or form in FILLING  # +0, as pruning left it


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_spikes_alone_are_a_weight_of_their_own(form: str, masked: bool) -> None:
    p = parts()
    if not masked:
        p["mask"] = torch.ones_like(p["mask"])
    made = adapter(form, p, spikes=True, low_rank=False)
    if not masked:
        made.mask = None
    assert list(trained(made)) == ["lora_s"]
    assert trained(made)["lora_s"].shape == (len(PLACES),)
    unmerged = made(p["x"])
    merged = made.merge()
    p["a"].zero_()
    weight = p["weight"] if form == "scale_lora" else 0  # without BA nothing is scaled
    wanted = naive(form, p, spikes=True, merged=True) + weight
    torch.testing.assert_close(merged.weight, wanted, rtol=0, atol=1e-14)
    assert torch.equal(merged(p["x"]), unmerged) or form == "lora_prune"
    assert torch.equal(merged.weight != p["weight"], (wanted - p["weight"]).abs() > 1e-12)


@pytest.mark.parametrize("spikes", [True, False])
def test_splits_into_a_sparse_weight_and_a_low_rank_branch(spikes: bool) -> None:
    p, made = parts(), adapter("branch", parts(), spikes=spikes)
    unmerged = made(p["x"])
    plain, a, b = made.split()
    assert not plain.weight[~p["mask"]].any()
    assert not plain.weight[~p["mask"]].signbit().any()
    assert bool((plain.weight != p["weight"]).any()) == spikes
    torch.testing.assert_close(plain(p["x"]) + p["x"] @ a.t() @ b.t(), unmerged)
    with pytest.raises(CompressError, match="twice"):
        made.split()
    with pytest.raises(CompressError, match="no low-rank part outside"):
        adapter("mask_lora", p).split()
    with pytest.raises(CompressError, match="no low-rank part outside"):
        adapter("branch", p, spikes=True, low_rank=False).split()


@pytest.mark.parametrize("form", FORMS)
def test_an_update_is_what_is_added_without_a_mask(form: str) -> None:
    p = parts()
    update = SCALE * (p["b"] @ p["a"])
    if form == "scale_lora":
        update = p["weight"] * (p["b"] @ p["a"]) - p["weight"]
    update.view(-1)[list(PLACES)] += SCALE * p["values"]
    torch.testing.assert_close(adapter(form, p, spikes=True).update(), update)


@pytest.mark.parametrize("support", [[3, 1], [1, 1], [-1, 2], [0, OUT * IN], [[0, 1]], [0.0, 1.0]])
def test_a_support_out_of_order_or_range_is_refused(support: Any) -> None:
    with pytest.raises(CompressError, match="ascending"):
        Adapter(nn.Linear(IN, OUT), None, form="lora", rank=1, scale=1.0, seed=0, support=torch.tensor(support))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(CompressError, match="nothing to train"):
        Adapter(nn.Linear(IN, OUT), None, form="lora", rank=0, scale=1.0, seed=0)


def test_jump_is_what_the_mask_takes() -> None:
    p = parts()
    made = adapter("lora_prune", p, spikes=True)
    dropped, whole = made.jump()
    update = SCALE * (p["b"] @ p["a"])
    update.view(-1)[list(PLACES)] += SCALE * p["values"]
    assert dropped == pytest.approx(float((update * ~p["mask"]).square().sum()))
    assert whole == pytest.approx(float(update.square().sum()))


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(sorted(set(FORMS) - set(FILLING))),
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
    support = torch.arange(0, 4 * groups * rows, 3) if seed % 2 else None
    made = Adapter(layer, mask, form=form, rank=rank, scale=scale, seed=seed, support=support)
    for tensor in trained(made).values():
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
    optimizer = torch.optim.Adam(trained(made).values(), lr=1e-2)
    wanted = torch.randn(5, OUT, generator=torch.Generator().manual_seed(3))
    for _ in range(20):
        optimizer.zero_grad()
        functional.mse_loss(made(p["x"]), wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    product = trained(made)["lora_b"] @ trained(made)["lora_a"]
    assert torch.linalg.matrix_rank(product.detach(), rtol=1e-4) == RANK


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
    class Other(nn.Linear):
        """A linear with something of its own, which an adapter would drop."""

    for module in (nn.LayerNorm(4), Other(4, 4)):
        with pytest.raises(CompressError, match=f"0: a {type(module).__name__} takes no adapter"):
            attach_(nn.Sequential(module), ["0"], {}, form="lora", rank=1, scale=1.0, seed=0)


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
    supports = {n: torch.arange(0, m.numel(), 211) for n, m in masks.items()}
    attach_(artifact.model, names, masks, form=form, rank=4, scale=2.0, seed=0, supports=supports)
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
    exact = functional.linear(p["x"], naive("mask_lora", p), p["bias"])
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
