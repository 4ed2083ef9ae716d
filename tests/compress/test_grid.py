"""Grids: codes mean one thing, are packed one way, and come back from disk as they went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from compress import grids, tree
from compress.artifact import Artifact
from compress.errors import BrokenPromise, Tampered
from compress.facts import GridFact
from compress.grid import BITS, Grid, bounds, groups, pack, spread, unpack
from compress.grids import KeptGrids, StoredGrids
from compress.tensors import same_bits
from tests.conftest import CAUSAL, ENCODERS, a_grid, quantized

Tiny = Callable[..., Artifact]
FP8 = torch.float8_e4m3fn
FACTS = [
    GridFact(bits=2, group_size=None),
    GridFact(bits=3, group_size=7, zero=True),
    GridFact(bits=4, group_size=16, offset=True),
    GridFact(bits=8, group_size=None, activation="dynamic"),
    GridFact(bits=8, group_size=7, format="fp8"),
    GridFact(bits=8, group_size=None, activation="static"),
    GridFact(bits=8, group_size=None, activation="static", format="fp8"),
]
STATIC = {"bits": 8, "group_size": None, "scale": torch.ones(3, 1), "activation": "static"}


def same(a: Grid, b: Grid) -> bool:
    return a.fact == b.fact and all(same_bits(t, b.tensors[n]) for n, t in a.tensors.items())


@st.composite
def coded(draw: Any) -> tuple[int, Tensor]:
    """Return bits, and codes of that many bits."""
    bits = draw(st.sampled_from(BITS))
    low, high = bounds(bits)
    shape = draw(st.tuples(st.integers(0, 5), st.integers(1, 70)))
    return bits, torch.from_numpy(draw(arrays.arrays(np.int8, shape, elements=st.integers(low, high))))


def stream(row: list[int], bits: int) -> bytes:
    """Return the bytes of a row, bit by bit: code k begins at bit k * bits, lowest bits first."""
    number = 0
    for k, code in enumerate(row):
        number |= (code + 2 ** (bits - 1)) << (k * bits)
    return number.to_bytes((len(row) * bits + 7) // 8, "little")


@settings(deadline=None)
@given(coded())
def test_packed_bit_by_bit_and_back(given_: tuple[int, Tensor]) -> None:
    bits, codes = given_
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(codes), -(-codes.shape[1] * bits // 8))
    assert [bytes(row) for row in packed.tolist()] == [stream(row, bits) for row in codes.tolist()]
    back = unpack(packed, bits, codes.shape[1])
    assert back.dtype == torch.int8
    assert torch.equal(back, codes)


@pytest.mark.parametrize("columns", [8, 9])
def test_codes_that_lie_transposed_are_packed_by_their_rows(columns: int) -> None:
    codes = torch.randint(-4, 4, (columns, 5), dtype=torch.int8)
    assert torch.equal(pack(codes.t(), 3), pack(codes.t().contiguous(), 3))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(BITS), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20) | st.none(),
    st.sampled_from(("plain", "zero", "offset")), st.integers(0, 2**31),
)  # fmt: skip
def test_a_weight_is_what_the_loop_says(
    bits: int, rows: int, inputs: int, group_size: int | None, kind: str, seed: int
) -> None:
    assume(group_size is None or group_size <= inputs)
    torch.manual_seed(seed)
    grid = a_grid(
        (rows, inputs), GridFact(bits=bits, group_size=group_size, zero=kind == "zero", offset=kind == "offset")
    )
    found = grid.dequantized()
    assert found.dtype == torch.float32
    for row in range(rows):
        for column in range(inputs):
            group = column // group_size if group_size else 0
            scale, code = np.float32(grid.scale[row, group]), np.float32(grid.codes[row, column])
            zero = np.float32(0 if grid.zero is None else grid.zero[row, group])
            offset = np.float32(0 if grid.offset is None else grid.offset[row, group])
            wanted = scale * (code - zero) + offset
            assert np.float32(found[row, column]) == pytest.approx(wanted, abs=0 if kind != "offset" else 1e-7)


def test_groups_and_what_they_spread() -> None:
    assert [groups(12, size) for size in (None, 1, 5, 6, 12)] == [1, 12, 3, 2, 1]
    assert spread(torch.tensor([[1.0, 2, 3]]), 12, 5).tolist() == [[1] * 5 + [2] * 5 + [3] * 2]
    assert spread(torch.tensor([[1.0], [2]]), 3, None).tolist() == [[1] * 3, [2] * 3]


@pytest.mark.parametrize("fact", FACTS, ids=lambda f: f.told)
def test_its_fact(fact: GridFact) -> None:
    assert a_grid((3, 20), fact).fact == fact


def _with(value: float) -> Tensor:
    scale = torch.ones(3, 4)
    scale[1, 2] = value
    return scale


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": _with(float("nan"))}, "every scale must be finite and above 0"),
        ({"scale": _with(0)}, "every scale must be finite and above 0"),
        ({"scale": _with(-1)}, "every scale must be finite and above 0"),
        ({"scale": _with(float("inf"))}, "every scale must be finite and above 0"),
        ({"scale": torch.ones(3, 5)}, r"scale must be torch.float32 \[3, 4\], got torch.float32 \[3, 5\]"),
        ({"scale": torch.ones(3, 4).half()}, r"scale must be torch.float32 \[3, 4\], got torch.float16"),
        ({"codes": torch.full((3, 20), 8, dtype=torch.int8)}, "every code of 4 bits must be from -8 to 7"),
        ({"codes": torch.full((3, 20), -9, dtype=torch.int8)}, "every code of 4 bits must be from -8 to 7"),
        ({"codes": torch.zeros(3, 20)}, r"codes must be int8 \[out, in\]"),
        ({"codes": torch.zeros(20, dtype=torch.int8)}, r"codes must be int8 \[out, in\]"),
        ({"zero": torch.full((3, 4), 8, dtype=torch.int8)}, "every zero of 4 bits must be from -8 to 7"),
        ({"zero": torch.zeros(3, 1, dtype=torch.int8)}, r"zero must be torch.int8 \[3, 4\]"),
        ({"offset": _with(float("nan"))}, "every offset must be finite"),
        ({"offset": _with(0), "zero": torch.zeros(3, 4, dtype=torch.int8)}, "a zero or an offset, not both"),
        ({"group_size": 21}, "group_size 21 does not fit 20 inputs"),
        ({"group_size": 0}, "group_size 0 does not fit 20 inputs"),
        ({"group_size": -1}, "group_size -1 does not fit 20 inputs"),
        ({"codes": torch.zeros(3, 20).to(FP8)}, "codes that are floats have 8 bits, no zero, no offset"),
        ({"codes": torch.zeros(3, 20).to(FP8), "bits": 8, "activation": "dynamic"}, "beside them inputs are floats"),
        ({"codes": torch.full((3, 20), float("nan")).to(FP8), "bits": 8}, "every code must be a number"),
        ({"bits": 5}, "codes of 5 bits; there are grids of 2, 3, 4, 8"),
        ({"input_scale": torch.tensor(1.0)}, "static inputs have an input_scale and no others do, got 'none'"),
        (STATIC, "static inputs have an input_scale and no others do, got 'static'"),
        (STATIC | {"input_scale": torch.ones(1)}, r"must be a torch.float32 scalar, got torch.float32 \[1\]"),
        (STATIC | {"input_scale": torch.tensor(1)}, "must be a torch.float32 scalar, got torch.int64"),
        (STATIC | {"input_scale": torch.tensor(0.0)}, "input_scale must be finite and above 0"),
        (STATIC | {"input_scale": torch.tensor(float("nan"))}, "input_scale must be finite and above 0"),
        ({"activation": "static", "input_scale": torch.tensor(1.0)}, "symmetric codes of 8 bits in whole rows"),
    ],
)
def test_what_is_no_grid(changes: dict[str, Any], message: str) -> None:
    parts = {"bits": 4, "group_size": 5, "codes": torch.zeros(3, 20, dtype=torch.int8), "scale": torch.ones(3, 4)}
    Grid(**parts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Grid(**parts | changes)  # type: ignore[arg-type]


def test_the_check_sees_one_changed_weight() -> None:
    grid = a_grid((8, 20), GridFact(bits=3, group_size=7))
    grid.check("up", grid.dequantized(), None)
    grid.check("up", grid.dequantized().bfloat16(), None)
    weight = grid.dequantized()
    weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    with pytest.raises(BrokenPromise, match="up: 1 of 160 weights differ from what their codes stand for"):
        grid.check("up", weight, None)
    with pytest.raises(BrokenPromise, match=r"up: has codes \[8, 20\] for a weight \[20, 8\]"):
        grid.check("up", grid.dequantized().t(), None)
    weight[3, 4] = float("nan")
    with pytest.raises(BrokenPromise, match="up: 1 of 160"):
        grid.check("up", weight, None)


@pytest.mark.parametrize("zero", [False, True])
def test_the_check_sees_a_pruned_code_that_is_not_zero(zero: bool) -> None:
    mask = torch.rand(8, 20) < 0.5
    grid = a_grid((8, 20), GridFact(bits=3, group_size=7, zero=zero), mask)
    grid.check("up", grid.dequantized(), mask)
    kept = mask & (grid.dequantized() != 0)
    mask[tuple(kept.nonzero()[0])] = False
    with pytest.raises(BrokenPromise, match="up: codes that the mask prunes do not stand for 0"):
        grid.check("up", grid.dequantized(), mask)


def masked(artifact: Artifact) -> Artifact:
    shapes = {n: m.weight.shape for n, m in tree.block_linears(artifact.model).items()}
    return artifact.after(masks={n: torch.rand(shape) < 0.6 for n, shape in shapes.items()})


def mixed(artifact: Artifact) -> Artifact:
    """Quantize all linears but one, each in one of many ways; masks only go with those that have a code for 0."""
    names = list(tree.block_linears(artifact.model))[1:]
    kinds = {n: FACTS[i % len(FACTS)] for i, n in enumerate(names)}
    masks = {n: m for n, m in artifact.masks.items() if n in kinds and not kinds[n].offset}
    return quantized(artifact.after(masks=masks), kinds)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_an_artifact_comes_back(tiny: Tiny, kind: str, stored: bool, tmp_path: Path) -> None:
    given_ = mixed(masked(tiny(kind)))
    given_.save(tmp_path)
    again = Artifact.load(tmp_path, stored=stored)
    assert sorted(again.grids) == sorted(given_.grids)
    assert all(same(grid, again.grids[n]) for n, grid in given_.grids.items())
    assert all(torch.equal(mask, again.masks[n]) for n, mask in given_.masks.items())
    for name, grid in again.grids.items():
        grid.check(name, again.tensor(f"{name}.weight"), again.masks.get(name))
    assert grids.facts(again.grids) == grids.facts(given_.grids)
    copy = tmp_path / "copy"
    copy.mkdir()
    again.save(copy)
    assert (copy / "grids.safetensors").read_bytes() == (tmp_path / "grids.safetensors").read_bytes()


def test_weights_of_low_precision(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    artifact.model.bfloat16()
    artifact = mixed(artifact)
    artifact.save(tmp_path)
    again = Artifact.load(tmp_path)
    assert again.model.dtype == torch.bfloat16
    for name, grid in again.grids.items():
        assert grid.scale.dtype == torch.float32
        assert torch.equal(again.tensor(f"{name}.weight"), grid.dequantized().bfloat16())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_plain_transformers_meets_the_weights_that_codes_stand_for(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    artifact = mixed(masked(tiny(kind)))
    artifact.save(tmp_path)
    maker: Any = tf.AutoModelForCausalLM
    plain, told = maker.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    for name, grid in artifact.grids.items():
        weight = plain.get_parameter(f"{name}.weight")
        assert torch.equal(weight.t() if kind == "gpt2" else weight, grid.dequantized())


def test_a_weight_that_left_its_codes_is_not_saved(tiny: Tiny, tmp_path: Path) -> None:
    artifact = mixed(tiny("llama"))
    name = next(iter(artifact.grids))
    artifact.model.get_parameter(f"{name}.weight").data[0, 0] += 1
    with pytest.raises(BrokenPromise, match=f"{name}: 1 of"):
        artifact.save(tmp_path)
    artifact = artifact.after(grids={"lm_head": next(iter(artifact.grids.values()))})
    with pytest.raises(BrokenPromise, match="lm_head: has codes, and is no linear of the model"):
        artifact.save(tmp_path)


def test_codes_touched_by_hand_are_found_out(tiny: Tiny, tmp_path: Path) -> None:
    mixed(tiny("llama")).save(tmp_path)
    path = tmp_path / "grids.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Tampered, match=r"grids\.safetensors: was changed"):
        Artifact.load(tmp_path)
    path.unlink()
    with pytest.raises(Tampered, match=r"grids\.safetensors: is missing"):
        Artifact.load(tmp_path)


def test_codes_take_the_room_of_their_bits(tmp_path: Path) -> None:
    for bits in BITS:
        grids.write(tmp_path / "file", {"up": a_grid((64, 64), GridFact(bits=bits, group_size=None))})
        assert abs((tmp_path / "file").stat().st_size - 64 * 64 * bits / 8 - 64 * 4) < 400


def test_grids_in_a_file_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    given_ = {f"linear.{i}": a_grid((5, 20), fact) for i, fact in enumerate(FACTS)}
    grids.write(tmp_path / "file", given_)
    found = StoredGrids(tmp_path / "file", {n: grids.card(g) for n, g in given_.items()})
    assert list(found) == list(given_)
    assert len(found) == len(FACTS)
    assert all(same(found[n], grid) for n, grid in given_.items())
    assert found["linear.1"] is not found["linear.1"]
    with pytest.raises(KeyError):
        found["linear.9"]


def test_grids_that_are_set_go_to_disk(tmp_path: Path) -> None:
    kept = KeptGrids(tmp_path / "grids")
    first, second = (a_grid((5, 20), fact) for fact in FACTS[1:3])
    kept["up"] = first
    kept["down"] = second
    assert kept["up"] is not first
    assert same(kept["up"], first)
    kept["up"] = second
    assert same(kept["up"], second)
    del kept["down"]
    assert list(kept) == ["up"]
    assert "down" not in kept
    with pytest.raises(KeyError):
        kept["down"]


@pytest.mark.parametrize("stored", [False, True])
def test_new_grids_add_to_the_old(tiny: Tiny, stored: bool, tmp_path: Path) -> None:
    given_ = mixed(tiny("llama"))
    given_.save(tmp_path)
    artifact = Artifact.load(tmp_path, stored=stored)
    new = artifact.new_grids()
    name = next(iter(given_.grids))
    new[name] = a_grid(given_.grids[name].codes.shape, FACTS[1])  # type: ignore[arg-type]
    assert len(new) == len(given_.grids)
    assert new[name].fact == FACTS[1]
    assert same(artifact.grids[name], given_.grids[name])


def test_grids_move(tmp_path: Path) -> None:
    grid = a_grid((5, 20), FACTS[1])
    moved = grid.to(torch.device("cpu"))
    assert same(moved, grid)
