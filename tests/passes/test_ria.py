"""RIA's score by hand; permutations that keep the function, in every family, and are found again from the weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress import blocks, tree
from compress.artifact import Artifact
from compress.blocks import Branch
from compress.errors import BadSettings, BrokenPromise
from compress.facts import MaskFact
from passes._masks import apply_, keep_top
from passes.ria import RIA, score
from passes.ria.permute import Permuted, permute_, recovered, sites
from passes.ria.search import order, retained, zigzag
from tests.conftest import CAUSAL, ENCODERS, standing
from tests.passes.test_oneshot import TEXT, context_of

Tiny = Callable[..., Artifact]
Moves = dict[str, tuple[int, Tensor]]


def test_score_by_hand() -> None:
    weight = torch.tensor([[1.0, -3.0], [2.0, 2.0]])
    square = torch.tensor([16.0, 81.0])
    relative = [[1 / 4 + 1 / 3, 3 / 4 + 3 / 5], [2 / 4 + 2 / 3, 2 / 4 + 2 / 5]]
    expected = [[row[0] * 2, row[1] * 3] for row in relative]
    torch.testing.assert_close(score(weight, square, 0.5), torch.tensor(expected))
    torch.testing.assert_close(score(weight, square, 0.0), torch.tensor(relative))
    torch.testing.assert_close(score(weight, square, 1.0), torch.tensor([[4.0, 9.0]]) * torch.tensor(relative))


def test_rows_and_columns_of_zeros_score_nothing() -> None:
    weight = torch.tensor([[0.0, 0.0], [0.0, 5.0]])
    assert score(weight, torch.ones(2), 0.5).tolist() == [[0, 0], [0, 2]]
    assert score(torch.zeros(2, 2), torch.zeros(2), 0.5).tolist() == [[0, 0], [0, 0]]


# -- the search --------------------------------------------------------------------------------------------------


def best_of_all(scores: Tensor, keep: int, group: int) -> float:
    return max(retained(scores[:, list(o)], keep, group) for o in itertools.permutations(range(scores.shape[1])))


def test_the_search_finds_the_best_order_of_few_columns() -> None:
    reached = 0
    for seed in range(8):
        scores = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed)) ** 3
        found = order(scores, 1, 3, rounds=20, seed=0)
        assert sorted(found.tolist()) == list(range(6))
        best, now = best_of_all(scores, 1, 3), retained(scores[:, found], 1, 3)
        assert now >= 0.97 * best
        reached += int(now > best * (1 - 1e-6))
    assert reached >= 4


@given(st.integers(0, 1000), st.sampled_from([(2, 4), (1, 2), (5, 8)]), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_no_order_retains_less_than_the_given_one(seed: int, pattern: tuple[int, int], rounds: int) -> None:
    keep, group = pattern
    scores = torch.rand(5, group * (1 + seed % 5), generator=torch.Generator().manual_seed(seed))
    found = order(scores, keep, group, rounds=rounds, seed=seed)
    assert sorted(found.tolist()) == list(range(scores.shape[1]))
    assert retained(scores[:, found], keep, group) >= retained(scores, keep, group) * (1 - 1e-6)
    assert found.equal(order(scores, keep, group, rounds=rounds, seed=seed))


def test_rounds_add_up_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) ** 4
    values = [retained(scores[:, order(scores, 2, 4, rounds=r, seed=1)], 2, 4) for r in (0, 1, 5, 40)]
    assert values == sorted(values)
    assert values[-1] > values[0] > retained(scores, 2, 4)
    whole = order(scores, 2, 4, rounds=5, seed=1)
    monkeypatch.setattr("passes.ria.search._CELLS", 1)
    assert order(scores, 2, 4, rounds=5, seed=1).equal(whole)


def test_zigzag_deals_to_and_fro() -> None:
    assert zigzag(torch.tensor([6.0, 5, 4, 3, 2, 1]), 3).view(2, 3).tolist() == [[0, 3, 4], [1, 2, 5]]


# -- the permutation ---------------------------------------------------------------------------------------------


def moves_of(artifact: Artifact, seed: int = 0) -> Moves:
    """Random permutations of everything that can be permuted."""
    random = torch.Generator().manual_seed(seed)
    linears = tree.block_linears(artifact.model)
    rows = {n: linear.out_features for n, linear in linears.items()}
    found: Moves = {}
    for site in sites(artifact, list(linears)):
        orders = torch.stack([torch.randperm(site.width, generator=random) for _ in range(site.units)])
        found |= site.moves(orders, rows)
    return found


def logits(artifact: Artifact) -> Tensor:
    with torch.no_grad():
        found: Tensor = artifact.model(torch.arange(2, 34).view(2, 16)).logits
    return found


def prepared(tiny: Tiny, kind: str) -> Artifact:
    """A tiny model whose biases are not zero, with masks."""
    artifact, random = tiny(kind), torch.Generator().manual_seed(7)
    masks = {}
    with torch.no_grad():
        for bias in tree.biases(artifact.model).values():
            bias.normal_(generator=random)
        for name, linear in tree.block_linears(artifact.model).items():
            masks[name] = keep_top(linear.weight.detach().abs(), 0.3)
            apply_(linear.weight, masks[name])
    return artifact.after(masks=masks)


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_the_function_stays_the_same(tiny: Tiny, kind: str) -> None:
    was, artifact = prepared(tiny, kind), prepared(tiny, kind)
    moves = moves_of(artifact)
    now = permute_(artifact, moves)
    table = tree.family(was.model)
    assert len(moves) == 2 * (2 + len(table.up) + 1), "o, v and the FFN of each block"
    changed = [n for n in was.tensor_names() if not was.tensor(n).equal(now.tensor(n))]
    assert {n.rpartition(".")[0] for n in changed} == set(moves)
    torch.testing.assert_close(logits(now), logits(was), atol=1e-5, rtol=1e-4)
    for name, mask in now.masks.items():
        assert (now.tensor(f"{name}.weight")[~mask] == 0).all()
    wrong = prepared(tiny, kind)
    permute_(wrong, {n: m for n, m in moves.items() if not n.endswith(table.down)})
    assert (logits(wrong) - logits(was)).abs().max() > 1e-4, "half a permutation must be seen"


def test_a_linear_that_stands_in_has_no_order_of_its_own(tiny: Tiny) -> None:
    artifact = standing(tiny("llama"))
    readers = [site.reader for site in sites(artifact, list(tree.block_linears(artifact.model)))]
    assert readers == ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"]


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2", "bert"])
def test_the_order_is_found_again_from_pruned_weights(tiny: Tiny, kind: str) -> None:
    was, artifact = prepared(tiny, kind), prepared(tiny, kind)
    moves = moves_of(artifact, 3)
    now = permute_(artifact, moves)
    masks = dict(now.masks)
    for name, linear in tree.block_linears(now.model).items():
        masks[name] = keep_top(linear.weight.detach().abs(), 0.6)
        apply_(linear.weight, masks[name])
    now = now.after(masks=masks)
    rows = {n: linear.out_features for n, linear in tree.block_linears(was.model).items()}
    found: Moves = {}
    for site in sites(was, list(rows)):
        found |= site.moves(recovered(site, was, now), rows)
    assert {n: (d, i.tolist()) for n, (d, i) in found.items()} == {n: (d, i.tolist()) for n, (d, i) in moves.items()}
    view = Permuted(was, found)
    assert view.tensor_names() == was.tensor_names()
    for name in was.tensor_names():
        mask = masks.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        expected = view.tensor(name) if mask is None else view.tensor(name).masked_fill(~mask, 0)
        assert expected.equal(now.tensor(name))


def test_branches_move_along(tiny: Tiny) -> None:
    was, now = prepared(tiny, "llama"), prepared(tiny, "llama")
    for artifact in (was, now):
        random = torch.Generator().manual_seed(0)
        shapes = {n: linear.weight.shape for n, linear in tree.block_linears(artifact.model).items()}
        blocks.branch_(
            artifact.model,
            {n: Branch(torch.randn(2, i, generator=random), torch.randn(o, 2, generator=random))
             for n, (o, i) in shapes.items() if "down_proj" in n or "v_proj" in n},
        )  # fmt: skip
    now = permute_(now, moves_of(now))
    torch.testing.assert_close(logits(now), logits(was), atol=1e-4, rtol=1e-3)


def test_damage_is_no_permutation(tiny: Tiny) -> None:
    was, artifact = prepared(tiny, "llama"), prepared(tiny, "llama")
    now = permute_(artifact, moves_of(artifact))
    site = next(s for s in sites(was, list(tree.block_linears(was.model))) if "down" in s.reader)
    with torch.no_grad():
        now.model.get_parameter(f"{site.reader}.weight")[:, 3] *= 1.01
    with pytest.raises(BrokenPromise, match=r"layers.0.mlp.down_proj: its inputs are not those of before"):
        recovered(site, was, now)


# -- the pass ----------------------------------------------------------------------------------------------------


def test_permuting_retains_more_and_ensures_sees_damage(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 20)
    plugin = RIA(RIA.Settings(pattern="2:4", permute=True, batch=4))
    context = context_of(tiny("llama"), tmp_path, tmp_path)
    was, after = tiny("llama"), plugin.run(tiny("llama"), context)
    measured: list[Any] = context.report.measured["permuted"]  # type: ignore[attr-defined]
    assert [m[0].rpartition(".")[2] for m in measured] == ["o_proj", "down_proj"] * 2
    assert all(now > before for _, before, now in measured)
    plugin.ensures(was, after)
    for name in ("mlp.gate_proj", "self_attn.v_proj", "mlp.down_proj", "self_attn.o_proj", "self_attn.k_proj"):
        weight = after.tensor(f"model.layers.1.{name}.weight")
        places = weight.nonzero()[:2]
        a, b = (tuple(p.tolist()) for p in places)
        weight[a], weight[b] = weight[b].clone(), weight[a].clone()
        with pytest.raises(BrokenPromise):
            plugin.ensures(was, after)
        weight[a], weight[b] = weight[b].clone(), weight[a].clone()
    plugin.ensures(was, after)


@pytest.mark.parametrize(
    ("given", "masks", "key"),
    [
        ({"permute": True}, "", "permute"),
        ({"permute": True, "pattern": "2:4", "include": ("up_proj",)}, "", "permute"),
        ({"permute": True, "pattern": "1:4"}, "2:4", "permute"),
        ({"permute_rounds": 3}, "", "permute_rounds"),
        ({"pattern": "2:4", "scope": "row"}, "", "scope"),
        ({"reference": "dense"}, "", "reference"),
    ],
)
def test_impossible_settings_are_found_before_any_work(tiny: Tiny, given: dict[str, Any], masks: str, key: str) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    facts = facts.after(masks={n: MaskFact(masks, 0.5) for n in facts.shapes if masks})
    with pytest.raises(BadSettings) as caught:
        RIA(RIA.Settings(**given)).plan(facts)
    assert caught.value.key == key
