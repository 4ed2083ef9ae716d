"""Packed codes: the library opens them, they are the artifact's own, and nobody opens them wrongly in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from compress import artifact as artifacts
from compress import folders, grids, loading, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.errors import BadModel, BadSettings
from compress.facts import BlockConfig, Facts, GridFact
from compress.grid import Grid, bounds
from compress.reading import reading, static
from exporters.safetensors import Safetensors
from exporters.safetensors._packed import words
from tests.conftest import CAUSAL, ENCODERS, branched, quantized, uneven

Tiny = Callable[..., Artifact]
W4 = GridFact(bits=4, group_size=16)
W8 = GridFact(bits=8, group_size=None)
W8A8 = GridFact(bits=8, group_size=None, activation="dynamic")
IDS = torch.arange(2, 20).view(2, 9)


def exported(artifact: Artifact, folder: Path, **given: Any) -> list[str]:
    """Export into a new folder, and return the notes."""
    folder.mkdir()
    report = QuietReport()
    Safetensors(Safetensors.Settings(**given)).export(artifact, folder, Context(folder=folder, report=report), None)
    return report.notes


def opened(folder: Path, maker: Any = tf.AutoModelForCausalLM, **given: Any) -> tf.PreTrainedModel:
    """Open with plain transformers, which must find a place for everything."""
    model, told = maker.from_pretrained(folder, output_loading_info=True, **given)
    assert not any(told.values())
    found: tf.PreTrainedModel = model
    return found


def logits(model: tf.PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def unpacked(state: dict[str, torch.Tensor], name: str, like: Grid) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return codes and zeros as the library unpacks them."""
    shape = torch.Size(state[f"{name}.weight_shape"].tolist())
    zero = state.get(f"{name}.weight_zero_point")
    scales = torch.Size((shape[0], like.scale.shape[1]))
    return (
        unpack_from_int32(state[f"{name}.weight_packed"], like.bits, shape),
        None if zero is None else unpack_from_int32(zero, like.bits, scales, packed_dim=0),
    )


@settings(deadline=None, max_examples=50)
@given(st.sampled_from((2, 3, 4, 8)), st.integers(1, 5), st.integers(1, 70), st.randoms(use_true_random=False))
def test_words_are_those_of_the_library(bits: int, rows: int, columns: int, random: Any) -> None:
    low, high = bounds(bits)
    codes = torch.tensor([[random.randint(low, high) for _ in range(columns)] for _ in range(rows)], dtype=torch.int8)
    assert torch.equal(words(codes, bits), pack_to_int32(codes, bits))
    assert torch.equal(words(codes.t(), bits).t(), pack_to_int32(codes, bits, packed_dim=0))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("group_size", [16, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_the_artifacts_and_open(
    tiny: Tiny, bits: int, group_size: int | None, zero: bool, tmp_path: Path
) -> None:
    artifact = quantized(tiny("llama"), GridFact(bits=bits, group_size=group_size, zero=zero))
    notes = exported(artifact, tmp_path / "a")
    assert notes == ["14 linears as packed codes: opens with compressed-tensors 0.20.0 or later"]
    state = load_file(tmp_path / "a" / "model.safetensors")
    for name, grid in artifact.grids.items():
        codes, zeros = unpacked(state, name, grid)
        assert torch.equal(codes, grid.codes)
        assert torch.equal(state[f"{name}.weight_scale"], grid.scale)
        assert f"{name}.weight" not in state
        assert (zeros is None) == (grid.zero is None)
        if zeros is not None and grid.zero is not None:
            assert torch.equal(zeros, grid.zero)
    assert torch.equal(logits(opened(tmp_path / "a")), logits(artifact.model))


@pytest.mark.parametrize("alike", [True, False])  # transformers looks at targets only where linears are not alike
@pytest.mark.parametrize("kind", [k for k in (*CAUSAL, *ENCODERS) if k != "gpt2"])
def test_every_family_opens(tiny: Tiny, kind: str, alike: bool, tmp_path: Path) -> None:
    artifact = tiny(kind)
    names = tree.block_linears(artifact.model)
    artifact = quantized(artifact, {n: W4 if alike or i % 3 else W8 for i, n in enumerate(names)})
    exported(artifact, tmp_path / "a")
    encoder = kind in ENCODERS
    model = opened(tmp_path / "a", tf.AutoModelForSequenceClassification if encoder else tf.AutoModelForCausalLM)
    assert torch.equal(logits(model), logits(artifact.model))
    bare = tf.AutoModel.from_pretrained(tmp_path / "a")  # names lose their prefix, and codes must be met all the same
    with torch.no_grad():
        theirs = bare(IDS).last_hidden_state
        ours = tree.backbone(artifact.model)(IDS).last_hidden_state
    assert torch.equal(theirs, ours)


def test_a_bare_encoder_opens_under_a_head(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("bert", task="embedding")
    names = tree.block_linears(artifact.model)
    artifact = quantized(artifact, {n: W4 if i % 3 else W8 for i, n in enumerate(names)})
    exported(artifact, tmp_path / "a")
    with torch.no_grad():
        ours = artifact.model(IDS).last_hidden_state
        assert torch.equal(opened(tmp_path / "a", tf.AutoModel)(IDS).last_hidden_state, ours)
        headed: Any = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
        headed(IDS)  # the codes become floats when the whole model is called
        assert torch.equal(headed.bert(IDS).last_hidden_state, ours)


def test_bits_of_every_linear(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    kinds = {n: GridFact(bits=8 if "down" in n else 3, group_size=32) for n in tree.block_linears(artifact.model)}
    del kinds["model.layers.0.self_attn.o_proj"]
    kinds["model.layers.1.self_attn.v_proj"] = GridFact(bits=2, group_size=None)
    artifact = quantized(artifact, kinds)
    notes = exported(artifact, tmp_path / "a")
    assert any("vLLM does not open it: model.layers.1.self_attn.v_proj has not" in n for n in notes)
    assert any("without dequantize = True" in n for n in notes)
    model = opened(tmp_path / "a")
    assert torch.equal(logits(model), logits(artifact.model))
    assert model.model.layers[0].mlp.down_proj.quantization_scheme.weights.num_bits == 8
    config = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert [g["weights"]["num_bits"] for g in config["config_groups"].values()] == [3, 8, 2]
    assert config["ignore"] == [r"re:(.*\.)?layers\.(0)\.self_attn\.o_proj$", "lm_head"]
    assert config["format"] == "pack-quantized"


def test_linears_alike_are_not_said_to_be_split(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    kinds = {n: GridFact(bits=8 if "down" in n else 4, group_size=32) for n in tree.block_linears(artifact.model)}
    assert not any("vLLM does not" in n for n in exported(quantized(artifact, kinds), tmp_path / "a"))


def test_zeros_and_their_pattern_are_in_the_packed_file(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    masks = {}
    for name, linear in tree.block_linears(artifact.model).items():
        order = torch.rand(linear.weight.numel() // 4, 4).argsort(-1)
        masks[name] = (order < 2).view_as(linear.weight)
    artifact = quantized(artifact.after(masks=masks), GridFact(bits=4, group_size=16, zero=True))
    notes = exported(artifact, tmp_path / "a")
    assert any("no sparse form" in n for n in notes)
    state = load_file(tmp_path / "a" / "model.safetensors")
    for name, grid in artifact.grids.items():
        codes, zeros = unpacked(state, name, grid)
        assert zeros is not None
        stands_for_0 = codes == zeros.repeat_interleave(16, 1)
        assert bool(stands_for_0[~masks[name]].all())
        assert int(stands_for_0.view(-1, 4).sum(-1).min()) >= 2
    weights = {n: m.weight for n, m in opened(tmp_path / "a").named_modules() if n in masks}
    assert all(not w[~masks[n]].any() for n, w in weights.items())


def test_static_inputs(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    fact = GridFact(bits=8, group_size=None, activation="static")
    artifact = quantized(artifact, {n: W4 if "down" in n else fact for n in tree.block_linears(artifact.model)})
    exported(artifact, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "strategy": "tensor"}
    assert inputs in [group["input_activations"] for group in config["config_groups"].values()]
    state = load_file(tmp_path / "a" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    assert torch.equal(state[f"{name}.weight"], artifact.grids[name].codes)
    assert state[f"{name}.input_scale"].tolist() == [1 / 32]
    assert not any("down_proj.input_scale" in key for key in state)
    found, plain = logits(opened(tmp_path / "a")), logits(artifact.model)
    with reading(artifact.model, static(artifact.grids)):
        expected = logits(artifact.model)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - plain).abs().max() > 1e-4


def rounded(_: object, given: tuple[torch.Tensor]) -> torch.Tensor:
    """Return inputs rounded to 8 bits token by token, as the library does: 0.5 of the range of 255 to a side."""
    scale = given[0].abs().amax(-1, keepdim=True) / 127.5
    return (given[0] / scale).clamp(-128, 127).round() * scale


def test_integer_inputs(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    kinds = {n: W4 if "down" in n else W8A8 for n in tree.block_linears(artifact.model)}
    artifact = quantized(artifact, kinds)
    exported(artifact, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert not config["dequantize"]
    state = load_file(tmp_path / "a" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    assert torch.equal(state[f"{name}.weight"], artifact.grids[name].codes)
    found, plain = logits(opened(tmp_path / "a")), logits(artifact.model)
    linears = tree.block_linears(artifact.model)
    for each in (n for n, kind in kinds.items() if kind == W8A8):
        linears[each].register_forward_pre_hook(rounded)
    torch.testing.assert_close(found, logits(artifact.model), atol=1e-5, rtol=0)
    assert (found - plain).abs().max() > 1e-4


def test_low_precision_keeps_the_weights(tiny: Tiny, tmp_path: Path) -> None:
    artifact = tiny("llama")
    artifact.model.bfloat16()
    artifact = quantized(artifact, GridFact(bits=4, group_size=16, zero=True))
    assert any("rounds them" in n for n in exported(artifact, tmp_path / "a"))
    model = opened(tmp_path / "a")
    for name, grid in artifact.grids.items():
        assert torch.equal(model.get_parameter(f"{name}.weight"), grid.dequantized().bfloat16())


def test_floats_are_what_the_codes_stand_for(tiny: Tiny, tmp_path: Path) -> None:
    artifact = quantized(tiny("gpt2"), GridFact(bits=4, group_size=7, offset=True))
    assert exported(artifact, tmp_path / "a", format="float") == []
    torch.testing.assert_close(logits(opened(tmp_path / "a")), logits(artifact.model), atol=1e-6, rtol=0)
    assert Artifact.load(tmp_path / "a").grids.keys() == artifact.grids.keys()


def test_an_artifact_without_codes_is_a_plain_folder(tiny: Tiny, tmp_path: Path) -> None:
    exported(tiny("llama"), tmp_path / "a")
    assert Artifact.load(tmp_path / "a").grids == {}
    with pytest.raises(BadSettings, match="no codes to pack") as caught:
        exported(tiny("llama"), tmp_path / "b", format="compressed-tensors")
    assert caught.value.key == "format"


def test_stored_and_sharded_the_same(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = quantized(tiny("qwen2"), GridFact(bits=3, group_size=16, zero=True))
    (tmp_path / "given").mkdir()
    given.save(tmp_path / "given")
    exported(given, tmp_path / "whole")
    monkeypatch.setattr(artifacts, "SHARD", "60KB")
    exported(given, tmp_path / "sharded")
    exported(Artifact.load(tmp_path / "given", stored=True), tmp_path / "stored")

    def state(name: str) -> dict[str, torch.Tensor]:
        return {k: t for p in (tmp_path / name).glob("*.safetensors") for k, t in load_file(p).items()}

    whole = state("whole")
    config = (tmp_path / "whole" / "config.json").read_text()
    for name in ("sharded", "stored"):
        again = state(name)
        assert again.keys() == whole.keys()
        assert all(torch.equal(t, whole[k]) for k, t in again.items())
        assert (tmp_path / name / "config.json").read_text() == config
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
        index = json.loads((tmp_path / name / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.numel() * t.itemsize for t in whole.values())
        assert torch.equal(logits(opened(tmp_path / name)), logits(given.model))
    assert Artifact.load(tmp_path / "given").grids.keys() == given.grids.keys()  # links to its files are not written


def test_the_same_bytes_and_a_whole_card(tiny: Tiny, tmp_path: Path) -> None:
    artifact = quantized(tiny("llama"), W4)
    for name in "ab":
        exported(artifact, tmp_path / name)
    artifacts.check(tmp_path / "a")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert not {"grids.safetensors", "masks.safetensors"} & set(names)
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    told = folders.lines(folders.show(tmp_path / "a"))
    assert any("14 linears in codes of 4 bits, groups of 16" in line for line in told)


def test_compress_does_not_take_it_for_a_model(tiny: Tiny, tmp_path: Path) -> None:
    exported(quantized(tiny("llama"), W4), tmp_path / "a")
    for open_ in (
        lambda: Artifact.load(tmp_path / "a"),
        lambda: Artifact.load(tmp_path / "a", stored=True),
        lambda: loading.facts_of(str(tmp_path / "a"), "causal-lm"),
    ):
        with pytest.raises(BadModel, match=r"quantized, by compressed-tensors, .*the artifact that it was"):
            open_()


_HIDDEN = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
hidden = lambda name, *rest: None if name.startswith("compressed_tensors") else find(name, *rest)
PathFinder.find_spec = staticmethod(hidden)
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""


def test_without_the_library_transformers_raises(tiny: Tiny, tmp_path: Path) -> None:
    exported(quantized(tiny("llama"), W4), tmp_path / "a")
    ran = subprocess.run([sys.executable, "-c", _HIDDEN, tmp_path / "a"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("ImportError")
    assert "compressed-tensors" in ran.stderr


_ALL = (GridFact(bits=4, group_size=16, zero=True), GridFact(bits=8, group_size=16))
_REFUSED = [
    pytest.param("llama", GridFact(bits=4, group_size=12), "groups of 12 do not divide its 32 inputs", id="ragged"),
    pytest.param("llama", GridFact(bits=4, group_size=16, offset=True), "real offset", id="offset"),
    pytest.param("llama", GridFact(bits=4, group_size=16, activation="dynamic"), "integer inputs", id="W4A8"),
    pytest.param("llama", GridFact(bits=4, group_size=None, activation="static"), "integer inputs", id="W4A8s"),
    pytest.param("llama", GridFact(bits=4, group_size=16, others=_ALL), "here are 3 kinds", id="zeros"),
    pytest.param("llama", GridFact(bits=8, group_size=None, format="fp8"), r"codes of 8 bits \(fp8\)", id="fp8"),
    pytest.param("gpt2", W4, "linears of gpt2 are stored", id="gpt2"),
]


@pytest.mark.parametrize(("kind", "fact", "message"), _REFUSED)
@pytest.mark.parametrize("form", ["auto", "compressed-tensors"])
def test_what_the_form_cannot_say_is_refused(tiny: Tiny, kind: str, fact: GridFact, message: str, form: str) -> None:
    known = tree.facts(tiny(kind).model, "causal-lm")
    known = known.after(grids=dict.fromkeys(known.shapes, fact))
    with pytest.raises(BadSettings, match=message) as caught:
        Safetensors(Safetensors.Settings(format=form)).plan(known, None)
    assert "format = 'float'" in str(caught.value)
    assert caught.value.key == "format"
    Safetensors(Safetensors.Settings(format="float")).plan(known, None)


@pytest.mark.parametrize("change", [uneven, branched])
def test_blocks_that_differ_are_refused(tiny: Tiny, change: Callable[[Artifact], Artifact], tmp_path: Path) -> None:
    artifact = change(tiny("llama"))
    artifact = quantized(artifact, {n: GridFact(bits=4, group_size=None) for n in tree.block_linears(artifact.model)})
    with pytest.raises(BadSettings, match="blocks differ or have branches"):
        exported(artifact, tmp_path / "a")
    exported(artifact, tmp_path / "b", format="float")
    assert (tmp_path / "b" / "README.md").exists()
    assert grids.facts(Artifact.load(tmp_path / "b").grids) == grids.facts(artifact.grids)


def test_blocks_that_the_configuration_cannot_tell_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    from compress import blocks

    artifact = tiny("opt")
    for index in range(2):
        blocks.slice_(artifact.model, index, kv_groups=torch.arange(3), neurons=torch.arange(64))
    artifact = quantized(artifact, GridFact(bits=4, group_size=None))
    known: Facts = tree.facts(artifact.model, "causal-lm")
    assert set(known.layout) == {BlockConfig(heads=3, kv_heads=3, head_dim=8, ffn=64)}
    with pytest.raises(BadModel, match="no class for such blocks"):
        exported(artifact, tmp_path / "a")
