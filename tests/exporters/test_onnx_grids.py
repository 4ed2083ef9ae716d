"""Codes in ONNX files: the very ones of the artifact, in every form, and engines that are the model."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from compress import blocks, files, settings, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Target
from compress.data import DataSettings, Source
from compress.engines import Engines, choice
from compress.errors import BadModel, BadPipeline, BadSettings
from compress.facts import GridFact
from compress.folders import export
from compress.generate import generate_path
from compress.grid import Grid, groups
from compress.grids import facts as facts_of
from compress.reading import reading, static
from exporters import _graph
from exporters._graph import Graph, Kernel, packing
from exporters.onnx import Onnx, OnnxSettings, _kernels
from passes import _quant
from tests.conftest import branched, lively, uneven

Tiny = Callable[..., Artifact]
TARGET = Target(prompt=16, generate=4)
EXACT = 1e-5  # of the largest logit: what exact kernels stay within
FOUR = GridFact(bits=4, group_size=16)


def coded(artifact: Artifact, fact: GridFact, masks: Mapping[str, Tensor] | None = None) -> Artifact:
    """Return the artifact with codes in every linear of its blocks, masks first, groups no larger than a row."""
    grids, static = {}, fact.activation == "static"
    widest = _widest(artifact) if static else {}
    activation = "none" if static else fact.activation
    for name, linear in tree.block_linears(artifact.model).items():
        size = fact.group_size if fact.group_size and fact.group_size <= linear.in_features else None
        own = GridFact(bits=fact.bits, group_size=size, zero=fact.zero, activation=activation)
        if masks:
            linear.weight.data *= masks[name]
        made = _quant.grid(linear.weight.data, _quant.span(linear.weight.data, own), own)
        if fact.offset:
            real = torch.rand(made.scale.shape, generator=torch.Generator().manual_seed(1)) / 16 - 1 / 32
            made = Grid(bits=own.bits, group_size=size, codes=made.codes, scale=made.scale, offset=real)
        if static:
            made = dataclasses.replace(made, activation="static", input_scale=widest[name] / 127)
        grids[name] = made
        linear.weight.data = made.dequantized()
    return artifact.after(grids=grids, masks=dict(masks or {}))


def _widest(artifact: Artifact) -> dict[str, Tensor]:
    """Return by linear the largest |x| that it reads of some tokens."""
    found: dict[str, Tensor] = {}

    def see(name: str) -> Any:
        return lambda _, args: found.update({name: args[0].abs().max()})

    hooks = [m.register_forward_pre_hook(see(n)) for n, m in tree.block_linears(artifact.model).items()]
    with torch.no_grad():
        artifact.model(torch.arange(2, 26).view(2, 12))
    for hook in hooks:
        hook.remove()
    return found


def build(artifact: Artifact, folder: Path, data: Any = None, target: Target = TARGET, **settings: Any) -> Any:
    made = folder / "engine"
    made.mkdir()
    context = Context(folder=folder / "own", data={"calibration": data} if data else {}, report=QuietReport())
    manifest = Engines().build(artifact, Onnx(OnnxSettings(**settings)), target, made, context)
    return manifest, made, context.report


def off(folder: Path) -> float:
    """Return how far logits are from the model's, as a share of the largest."""
    logits = files.read_json(folder / "measured.json")["parity"]["logits"]
    return float(logits["difference"] / logits["magnitude"])


# -- what is in the file, read by nothing of ours ----------------------------------------------------------------------


@dataclass
class Read:
    """The codes of one linear as a file has them, signed `[out, in]`, and the weight that they stand for."""

    codes: np.ndarray
    weight: np.ndarray


def read(path: Path) -> dict[str, Read]:
    """Return the codes of every linear in an ONNX file."""
    graph = onnx.load(path).graph
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    found = {}
    for node in graph.node:
        about = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "MatMulNBits":
            found[node.input[1].removesuffix(".codes")] = _blocks(about, *(arrays[n] for n in node.input[1:]))
        elif node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            found[node.input[0].removesuffix(".codes")] = _columns(about, *(arrays[n] for n in node.input))
        elif node.op_type == "MatMulInteger":
            name = node.input[1].removesuffix(".codes")
            found[name] = _columns({"axis": 1}, arrays[node.input[1]], arrays[f"{name}.scale"])
    return found


def _bits(packed: np.ndarray, bits: int) -> np.ndarray:
    parts = [(packed >> k) & (2**bits - 1) for k in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*packed.shape[:-1], -1).astype(np.int32)


def _blocks(about: Any, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> Read:
    rows, inputs, bits, size = about["N"], about["K"], about["bits"], about["block_size"]
    whole = _bits(codes, bits)
    assert whole.shape == (rows, -(-inputs // size), size)
    middle = 2 ** (bits - 1)
    zeros = middle if zero is None else _bits(zero, bits)[:, : whole.shape[1], None]
    weight = (whole - zeros).astype(np.float32) * scale[..., None]
    return Read(whole.reshape(rows, -1)[:, :inputs] - middle, weight.reshape(rows, -1)[:, :inputs])


def _columns(about: Any, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> Read:
    codes = codes.astype(np.int32)

    def spread(values: np.ndarray) -> np.ndarray:
        return values if about["axis"] == 1 else np.repeat(values, about["block_size"], 0)[: len(codes)]

    steps = codes if zero is None else codes - spread(zero.astype(np.int32))
    return Read(codes.T, (steps.astype(np.float32) * spread(scale)).T)


# -- every grid, on one graph ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traced(tiny: Tiny) -> tuple[Artifact, Graph]:
    """An artifact whose FFN has 50 neurons in one block, which no group divides, and its graph before any codes."""
    artifact = tiny("llama")
    lively(artifact.model)
    blocks.slice_(artifact.model, 0, neurons=torch.arange(50))
    return artifact, _graph.decoder(artifact.model, "fp32", 21)


@pytest.mark.parametrize("form", ["nbits", "qdq"])
@pytest.mark.parametrize(
    "fact",
    [
        *(GridFact(bits=b, group_size=g) for b, g in ((2, 16), (3, 32), (4, 16), (4, 48), (4, None), (8, 32))),
        *(GridFact(bits=b, group_size=g, zero=True) for b, g in ((2, None), (3, 16), (4, 32), (8, None), (4, 12))),
        *(GridFact(bits=b, group_size=g, offset=True) for b, g in ((4, 16), (3, None), (2, 24))),
        GridFact(bits=8, group_size=None, activation="dynamic"),
        GridFact(bits=8, group_size=None, activation="static"),
    ],
    ids=lambda f: f if isinstance(f, str) else f"{f.bits}-{f.group_size}{'z' * f.zero}{'o' * f.offset}{f.activation}",
)
def test_the_file_holds_the_codes_and_computes_the_model(
    fact: GridFact, form: Any, traced: tuple[Artifact, Graph], tmp_path: Path
) -> None:
    given, graph = traced
    artifact = coded(given.after(model=copy.deepcopy(given.model)), fact)
    known = tree.facts(artifact.model, artifact.task).after(grids=facts_of(artifact.grids))
    way, *others = _kernels.ways(known, form, "fp32", "cpu")
    expected = _model(artifact)
    for made in (way, *others):
        path = tmp_path / f"{made.name}.onnx"
        written, sizes = _graph.with_codes(graph, artifact.grids, made.kernels)
        _graph.write(written, path)
        onnx.checker.check_model(path, full_check=True)
        found, names = read(path), {i.name for i in onnx.load(path).graph.initializer}
        for name, grid in artifact.grids.items():
            assert np.array_equal(found[name].codes, grid.codes.numpy())
            bare = Grid(bits=grid.bits, group_size=grid.group_size, codes=grid.codes, scale=grid.scale, zero=grid.zero)
            assert np.array_equal(found[name].weight, bare.dequantized().numpy())
            assert f"{name}.weight" not in names
            assert sizes[name].before == grid.codes.numel() * 4
        difference = np.abs(_run(path, made.session) - expected).max() / np.abs(expected).max()
        assert difference < (EXACT if made.name == "exact" else 0.2)  # of a model of noise, which takes roundings ill
        assert difference > (0 if made.name == "exact" or fact.bits == 2 else 1e-4)  # of 2 bits, not all are rounded


def _model(artifact: Artifact) -> Any:
    with torch.no_grad():
        return artifact.model(torch.arange(2, 26).view(2, 12)).logits.numpy()


def _run(path: Path, session: Mapping[str, str]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    for entry in session.items():
        options.add_session_config_entry(*entry)
    opened = ort.InferenceSession(str(path), options)
    given: dict[str, Any] = {
        i.name: np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32) for i in opened.get_inputs() if "past" in i.name
    }
    given |= {"input_ids": np.arange(2, 26).reshape(2, 12), "attention_mask": np.ones((2, 12), np.int64)}
    return opened.run(None, {**given, "position_ids": np.arange(12)[None].repeat(2, 0)})[0]


def test_a_graph_without_the_linear_is_no_place_for_its_codes(traced: tuple[Artifact, Graph]) -> None:
    artifact, graph = traced
    linear = next(iter(tree.block_linears(artifact.model).values()))
    made = _quant.grid(linear.weight.data, _quant.span(linear.weight.data, FOUR), FOUR)
    with pytest.raises(BadModel, match="no_such: has codes, and the traced graph has no one product with its weight"):
        _graph.with_codes(graph, {"no_such": made}, {"no_such": Kernel("MatMulNBits")})


@pytest.mark.parametrize(
    ("bits", "group_size", "inputs", "block"),
    [
        (4, 128, 1024, 128), (4, 512, 1024, 256), (4, 48, 96, 16), (4, 96, 96, 32), (4, 12, 96, None),
        (4, None, 1024, 256), (4, None, 300, 64), (4, None, 3, 16), (3, 24, 24, 32), (8, 200, 200, 16),
    ],
)  # fmt: skip
def test_blocks_say_what_groups_say(bits: int, group_size: int | None, inputs: int, block: int | None) -> None:
    fact = GridFact(bits=bits, group_size=group_size)
    found = packing.block_size(fact, inputs)
    assert found == block or (found and groups(inputs, group_size) == 1)
    if found:
        made = Grid(
            bits=bits, group_size=group_size, codes=torch.zeros(2, inputs, dtype=torch.int8),
            scale=torch.rand(2, groups(inputs, group_size)) + 1,
        )  # fmt: skip
        codes, scale, _ = packing.blocks(made, found)
        assert codes.shape == (2, -(-inputs // found), found * packing.stored_bits(bits) // 8)
        spread = scale.repeat_interleave(found, 1)[:, :inputs]
        assert torch.equal(spread, made.dequantized() + spread)  # where every code is 0
        expected = made.scale.repeat_interleave(group_size or inputs, 1)[:, :inputs]
        assert torch.equal(spread, expected)


_GRAPHS: dict[Any, Graph] = {}


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace the tiny Llama once: but for the weights that codes replace, every graph of it is the same."""
    trace = _graph.decoder

    def found(model: Any, *how: Any) -> Graph:
        return _GRAPHS.get(how) or _GRAPHS.setdefault(how, trace(model, *how))

    monkeypatch.setattr(_graph, "decoder", found)


# -- engines -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("once")
def test_an_engine_of_a_pruned_decoder(tiny: Tiny, engine_of: Callable[..., Path], tmp_path: Path) -> None:
    artifact, dense = tiny("llama"), engine_of("llama")
    draw = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(m.weight.shape, generator=draw) < 0.5 for n, m in tree.block_linears(artifact.model).items()}
    artifact = coded(artifact, GridFact(bits=4, group_size=16, zero=True), masks)
    before = {n: t.clone() for n, t in artifact.model.state_dict().items()}
    manifest, folder, report = build(artifact, tmp_path)
    assert off(folder) < EXACT
    found = read(folder / "model.onnx")
    for name, mask in masks.items():
        assert (found[name].weight[~mask.numpy()] == 0).all()
        assert np.array_equal(found[name].weight, before[f"{name}.weight"].numpy())
    assert all(torch.equal(t, before[n]) for n, t in artifact.model.state_dict().items())
    saved = sum(layer["bytes_before"] - layer["bytes"] for layer in manifest["codes"]["layers"].values())
    sizes = [(f / "model.onnx").stat().st_size for f in (dense, folder)]
    assert 0.9 * saved < sizes[0] - sizes[1] < 1.1 * saved
    assert manifest["codes"]["layers"]["model.layers.1.mlp.down_proj"] == {
        "bits": 4, "stored_bits": 4, "group_size": 16, "zero": True, "offset": False, "activation": "none",
        "kernel": "MatMulNBits, level 0", "bytes": 32 * (32 + 4 * 4 + 2), "bytes_before": 32 * 64 * 4,
    }  # fmt: skip
    assert (manifest["opset"], manifest["session"], manifest["codes"]["simulated"]) == (20, {}, [])
    assert manifest["choice"] == {"chosen": "exact", "why": "no data to measure on what faster ones lose"}
    assert "exact kernels: no data to measure on" in report.notes[0]
    engine = Engines().open(folder)
    assert set(engine.kernels().values()) == {"MatMulNBits, level 0"}
    assert set(engine.kernels()) == set(masks)
    engine.close()
    assert not {"codes", "session", "choice"} & files.read_json(dense / "engine.json").keys()


def _folder(where: Path, name: str) -> Path:
    (where / name).mkdir()
    return where / name


@pytest.mark.parametrize(
    ("kind", "fact", "settings"),
    [
        ("gpt2", GridFact(bits=3, group_size=16, offset=True), {}),
        pytest.param("opt", GridFact(bits=4, group_size=32, zero=True), {"form": "qdq"}, marks=pytest.mark.slow),
        *(
            pytest.param(kind, GridFact(bits=2, group_size=16, zero=True), {}, marks=pytest.mark.slow)
            for kind in ("llama", "mistral", "qwen2", "qwen3", "llama-tied", "roberta", "bert")
        ),
    ],
)
def test_uneven_and_branched_models_of_every_family(
    kind: str, fact: GridFact, settings: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    artifact = coded(branched(uneven(tiny(kind))), fact)
    manifest, folder, _ = build(artifact, tmp_path, kernels="exact", **settings)
    assert off(folder) < EXACT
    assert set(manifest["codes"]["layers"]) == set(artifact.grids) == set(read(folder / "model.onnx"))
    names = {i.name for i in onnx.load(folder / "model.onnx").graph.initializer}
    assert {f"{n}.{part}" for n in artifact.branches for part in ("a", "b")} <= names
    assert "choice" not in manifest
    if kind == "opt":
        assert (manifest["opset"], manifest["session"]) == (21, {"session.qdq_matmulnbits_accuracy_level": "0"})
    if kind == "gpt2":
        assert all("hold them in 4" in told for told in manifest["codes"]["simulated"])


@pytest.mark.slow
@pytest.mark.usefixtures("once")
def test_codes_of_a_model_of_bfloat16_stay_whole(tiny: Tiny, tmp_path: Path) -> None:
    given = tiny("llama")
    for parameter in given.model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    _GRAPHS.clear()  # the other weights are others
    artifact = coded(given, GridFact(bits=4, group_size=16, offset=True))
    artifact.model.to(torch.bfloat16)  # type: ignore[arg-type]
    _, folder, _ = build(artifact, tmp_path, kernels="exact")
    assert off(folder) < EXACT
    _GRAPHS.clear()


@pytest.mark.slow
def test_half_precision(tiny: Tiny, tmp_path: Path) -> None:
    artifact = coded(tiny("llama"), GridFact(bits=4, group_size=16, offset=True))
    half = Target(prompt=16, generate=4, precision="fp16")
    _, folder, _ = build(artifact, tmp_path, target=half, kernels="exact")
    arrays = {i.name: numpy_helper.to_array(i) for i in onnx.load(folder / "model.onnx").graph.initializer}
    assert {a.dtype for n, a in arrays.items() if n.endswith((".scale", ".offset"))} == {np.dtype(np.float16)}
    assert off(folder) < 1e-2


# -- faster kernels ----------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Source:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog; a model is pruned " * 60)
    settings = DataSettings(source=str(tmp_path / "text.txt"), windows=6, length=24)
    return Source(settings, "calibration", "causal-lm")


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Times of a request that the clock then tells, by variant."""
    times = {"level 4": 0.6, "integer": 0.5}

    def told(folders: Mapping[str, Path], *_: Any) -> Any:
        return {n: {"prefill": 1.0, "request": times[n]} for n in folders if n != "exact"}

    monkeypatch.setattr(choice, "_times", told)
    return times


@pytest.mark.usefixtures("once")
def test_the_fastest_kernels_within_the_tolerance_are_kept(
    tiny: Tiny, tmp_path: Path, corpus: Source, clocked: dict[str, float]
) -> None:
    artifact = coded(tiny("llama"), GridFact(bits=8, group_size=None, activation="dynamic"))
    manifest, folder, report = build(artifact, _folder(tmp_path, "wide"), corpus, tolerance=1.0)
    assert manifest == files.read_json(folder / "engine.json")
    assert {x["kernel"] for x in manifest["codes"]["layers"].values()} == {"MatMulInteger"}
    assert manifest["codes"]["simulated"] == []
    found = manifest["choice"]
    assert (found["chosen"], found["tolerance"], found["windows"]) == ("integer", 1.0, 6)
    lost = {n: t["lost"] for n, t in found["tried"].items()}
    assert all(0 < t["kl"] <= t["lost"] == max(t["kl"], t["loss_rise"]) for t in found["tried"].values())
    assert lost["integer"] > lost["level 4"]
    measured = files.read_json(folder / "measured.json")
    assert measured["kernels"]["integer"] == {"prefill": 1.0, "request": 0.5}
    assert report.measured["kernels"] == [measured["kernels"]]
    assert "'integer': 2.00 times as fast" in report.notes[1]
    Engines().check(folder)
    assert "".join(generate_path(folder, "the quick", 4))

    between = (lost["integer"] + lost["level 4"]) / 2
    manifest, folder, _ = build(artifact, _folder(tmp_path, "between"), corpus, tolerance=between)
    assert manifest["choice"]["chosen"] == "level 4"
    assert set(Engines().open(folder).kernels().values()) == {"MatMulNBits, level 4"}
    manifest, folder, _ = build(artifact, _folder(tmp_path, "narrow"), corpus, tolerance=0.0)
    assert manifest["choice"]["chosen"] == "exact"
    assert {x["kernel"] for x in manifest["codes"]["layers"].values()} == {"float, dequantized when loaded"}
    assert "inputs of 8 bits: model.layers.0.self_attn.q_proj and 13 more linears" in manifest["codes"]["simulated"][0]
    assert (folder / "engine.json").read_text().count("MatMulNBits") == 0


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize("form", ["nbits", "qdq"])
def test_static_inputs_are_multiplied_as_integers(
    form: Any, tiny: Tiny, tmp_path: Path, corpus: Source, clocked: dict[str, float]
) -> None:
    artifact = coded(tiny("llama"), GridFact(bits=8, group_size=None, activation="static"))
    manifest, folder, _ = build(artifact, tmp_path, corpus, tolerance=1.0, form=form)
    assert manifest["choice"]["chosen"] == "integer"
    assert {x["kernel"] for x in manifest["codes"]["layers"].values()} == {"QDQ, integer"}
    assert (manifest["codes"]["simulated"], manifest["session"]) == ([], {})
    nodes = onnx.load(folder / "model.onnx").graph.node
    count = sum(n.op_type == "QuantizeLinear" for n in nodes)
    assert count == 2 * 4  # of what queries, keys and values read, their output, gate and up, their product
    products = [n.op_type for n in _optimized(folder / "model.onnx", tmp_path, manifest["session"]).graph.node]
    assert products.count("MatMulIntegerToFloat") == len(artifact.grids)
    with reading(artifact.model, static(artifact.grids)):
        expected = _model(artifact)
    apart = np.abs(_run(folder / "model.onnx", manifest["session"]) - expected).max() / np.abs(expected).max()
    assert apart < 1e-3  # but for what is almost between two codes, what torch computes
    assert np.abs(_model(artifact) - expected).max() / np.abs(expected).max() > 1e-3


def _optimized(path: Path, folder: Path, session: Mapping[str, str]) -> Any:
    """Return what onnxruntime makes of a graph."""
    options = ort.SessionOptions()
    for entry in session.items():
        options.add_session_config_entry(*entry)
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 3
    ort.InferenceSession(str(path), options)
    return onnx.load(options.optimized_model_filepath)


def test_what_is_dequantized_when_loaded_rules_integer_kernels_out(tiny: Tiny) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")

    def names(grids: Mapping[str, GridFact]) -> list[str]:
        return [w.name for w in _kernels.ways(facts.after(grids=grids), "nbits", "fp32", "cpu")]

    grids = dict.fromkeys(facts.shapes, GridFact(bits=8, group_size=None, activation="static"))
    assert names(grids) == ["exact", "level 4", "integer"]
    grids["model.layers.0.mlp.down_proj"] = GridFact(bits=4, group_size=12)  # which no blocks hold
    assert names(grids) == ["exact", "level 4"]


@pytest.mark.usefixtures("once")
def test_fast_kernels_without_data(tiny: Tiny, tmp_path: Path, clocked: dict[str, float]) -> None:
    artifact = coded(tiny("llama"), FOUR)
    manifest, folder, _ = build(artifact, _folder(tmp_path, "fast"), kernels="fast")
    assert manifest["choice"] == {"chosen": "level 4", "tolerance": None, "windows": 0, "tried": {"level 4": {}}}
    engine = Engines().open(folder)
    logits = engine.step(*_tokens(), engine.empty_past(1))[0]
    engine.close()
    with torch.no_grad():
        expected = artifact.model(torch.arange(2, 22)[None]).logits.numpy()
    assert 1e-4 < np.abs(logits - expected).max() / np.abs(expected).max() < 0.05
    run = [sys.executable, str(folder / "run.py"), "the quick brown", "--tokens", "4"]
    text = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert text.rstrip("\n") == "".join(generate_path(folder, "the quick brown", 4))
    clocked["level 4"] = 0.99  # which is nothing that a clock can tell
    assert build(artifact, _folder(tmp_path, "slow"), kernels="fast")[0]["choice"]["chosen"] == "exact"


def _tokens() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.arange(2, 22)[None], np.ones((1, 20), np.int64), np.arange(20)[None]


def test_what_a_classifier_loses_is_measured_and_timed(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "the quick brown fox", "label": 1}\n{"text": "lazy", "label": 0}\n')
    source = Source(DataSettings(source=str(tmp_path / "rows.jsonl"), windows=2), "calibration", "classification")
    artifact = coded(tiny("bert"), GridFact(bits=8, group_size=None, activation="dynamic"))
    manifest, folder, _ = build(artifact, tmp_path, source, target=Target(prompt=16, generate=0), tolerance=1.0)
    tried = manifest["choice"]["tried"]
    assert {n: set(t) for n, t in tried.items()} == {"level 4": {"kl", "lost"}, "integer": {"kl", "lost"}}
    assert set(files.read_json(folder / "measured.json")["kernels"]["integer"]) == {"prefill", "request"}
    assert off(folder) < EXACT  # of the exact engine, which was proved before


def test_what_the_exact_forms_ask_of_the_runtime(tiny: Tiny) -> None:
    artifact = tiny("bert")
    facts = tree.facts(artifact.model, artifact.task)
    folded, level = {"session.disable_quant_qdq": "1"}, {"session.qdq_matmulnbits_accuracy_level": "0"}
    rows = GridFact(bits=8, group_size=None, activation="dynamic")
    form: Any
    for grid, form, expected in (
        (FOUR, "nbits", {}),
        (FOUR, "qdq", level),
        (rows, "nbits", folded),
        (rows, "qdq", folded),
    ):
        known = facts.after(grids=dict.fromkeys(facts.shapes, grid))
        exact, *others = _kernels.ways(known, form, "fp32", "cpu")
        assert exact.session == expected
        assert [w.name for w in others] == (["level 4", "integer"] if grid is rows else ["level 4"])
        assert [w.name for w in _kernels.ways(known, form, "fp16", "cpu")] == ["exact", "level 4"]
        assert [w.name for w in _kernels.ways(known, form, "fp32", "cuda")] == ["exact"]


def test_best() -> None:
    losses = {"a": {"lost": 0.1}, "b": {"lost": 0.3}}
    assert choice.best(losses, {"a": 0.8, "b": 0.5}, 0.2) == "a"
    assert choice.best(losses, {"a": 0.8, "b": 0.5}, 0.3) == "b"
    assert choice.best(losses, {"a": 0.98, "b": 0.5}, 0.2) == "exact"
    assert choice.best({}, {"a": 0.8, "b": 0.5}, None) == "b"


@pytest.mark.usefixtures("once")
def test_an_export_outside_a_pipeline_tells_why_it_is_exact(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    coded(tiny("llama"), FOUR).save(tmp_path / "artifact")
    report = QuietReport()
    folder = export(tmp_path / "artifact", tmp_path / "engine", target=TARGET, report=report)
    assert off(folder) < EXACT
    assert len(report.notes) == 1


# -- before anything runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "settings", "words"),
    [
        (FOUR, {"form": "qdq"}, r"4 bits in groups of 16; opset 20 holds whole rows of 8 bits, got 20; use 21"),
        (GridFact(bits=4, group_size=12), {}, r"of 12; .* also groups of 16, 32, 64, 128, 256 and their multiples"),
        (GridFact(bits=8, group_size=16), {}, r"8 bits in groups of 16"),
        (GridFact(bits=4, group_size=16, others=(GridFact(bits=8, group_size=16),)), {}, "8 bits in groups of 16"),
    ],
)
def test_what_an_opset_cannot_hold(grid: GridFact, settings: dict[str, Any], words: str, tiny: Tiny) -> None:
    artifact = tiny("llama")
    facts = tree.facts(artifact.model, artifact.task)
    facts = facts.after(grids={next(iter(facts.shapes)): grid})
    with pytest.raises(BadSettings, match=words) as caught:
        Onnx(OnnxSettings(opset=20, **settings)).plan(facts, TARGET)
    assert caught.value.key == "opset"
    for able in (None, 21):
        Onnx(OnnxSettings(opset=able, **settings)).plan(facts, TARGET)


def test_codes_that_are_floats_are_for_tensorrt(tiny: Tiny) -> None:
    artifact = tiny("llama")
    facts = tree.facts(artifact.model, artifact.task)
    facts = facts.after(grids={next(iter(facts.shapes)): GridFact(bits=8, group_size=None, format="fp8")})
    for form in ("nbits", "qdq"):
        with pytest.raises(BadSettings, match=r"q_proj: .* got codes of 8 bits \(fp8\); .* 'tensorrt' takes these"):
            Onnx(OnnxSettings(form=form)).plan(facts, TARGET)


def test_only_models_with_codes_read_data(tiny: Tiny) -> None:
    artifact = tiny("llama")
    facts = tree.facts(artifact.model, artifact.task)
    assert Onnx(OnnxSettings()).data_uses(facts) == frozenset()
    facts = facts.after(grids={next(iter(facts.shapes)): FOUR})
    assert Onnx(OnnxSettings()).data_uses(facts) == {"calibration"}
    assert Onnx(OnnxSettings(kernels="exact")).data_uses(facts) == frozenset()


def test_data_that_only_the_export_reads_are_judged(tmp_path: Path) -> None:
    text = '[model]\nsource = "demo"\n[data.calibration]\nlength = 100000\n[[target]]\n[[export]]\nuse = "onnx"\n'
    path = tmp_path / "pipeline.toml"
    path.write_text(text)
    settings.check(settings.read(path))  # nobody reads them
    path.write_text(text + '[[pass]]\nuse = "rtn"\ngroup_size = 32\n')
    with pytest.raises(BadPipeline, match=r"calibration.*length: the model takes at most \d+ tokens, got 100000"):
        settings.check(settings.read(path))
