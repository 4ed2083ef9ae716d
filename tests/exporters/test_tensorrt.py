"""Plans of TensorRT-RTX, built ahead of time without a GPU: what they hold, what is refused, and how they are run."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from compress import bench_tensorrt, blocks, files, loading, registry, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Exporter, Target
from compress.engines import Engines, parity
from compress.errors import BadModel, BadSettings, ParityError, Unavailable
from compress.facts import Facts, GridFact
from exporters import _graph
from exporters.tensorrt import _cases, _engine, _job, _judge, _nodes
from tests.conftest import a_grid, quantized, uneven

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
TARGET = Target(runtime="tensorrt-rtx", device="cuda", prompt=8, generate=2)
HALF, BRAIN = (TARGET.model_copy(update={"precision": p}) for p in ("fp16", "bf16"))
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
Build = Callable[..., Path]


def exporter(**settings: Any) -> Exporter:
    found = registry.load("exporters", "tensorrt", Exporter)
    return found(found.Settings(**settings))


def written(artifact: Artifact, folder: Path, target: Target = TARGET, **settings: Any) -> dict[str, Any]:
    """Export as `Engines.build` does, and return what the manifest would say."""
    folder.mkdir()
    made = exporter(**settings).export(artifact, folder, Context(folder=folder), target)
    assert {*made.files} <= {p.name for p in folder.iterdir()}
    return dict(made.facts)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# -- what is built ----------------------------------------------------------------------------------------------


def test_a_folder_says_what_it_is(folder: Path) -> None:
    manifest = files.read_json(folder / "engine.json")
    told = manifest["tensorrt"]
    assert told["sha256"] == manifest["files"]["model.plan"] == files.sha256(folder / "model.plan")
    assert told["flavour"] == "tensorrt-rtx"
    assert told["version"].startswith("1.")
    assert "or later" in told["driver"]
    assert told["compute_capabilities"] == []
    assert manifest["precision"] == "fp32"
    assert "tensorrt-rtx-cu13" in manifest["versions"]
    assert told["profiles"]["decode"]["past_key_values.0.key"] == [[1, 2, 1, 8], [1, 2, 9, 8], [4, 2, 127, 8]]
    assert told["profiles"]["prefill"]["attention_mask"] == [[1, 1], [1, 8], [4, 128]]  # the model takes 128
    Engines().check(folder)


@no_gpu
def test_without_a_gpu_it_is_not_run(folder: Path) -> None:
    assert list(files.read_json(folder / "measured.json")) == ["not_run"]
    assert "no CUDA device" in str(Engines().absent(folder))
    with pytest.raises(Unavailable, match="no CUDA device, or no driver"):
        Engines().open(folder)


def test_two_builds_are_of_one_size_and_differ_in_few_bytes(folder: Path, copied: Path) -> None:
    """TensorRT writes memory that it never set into its plans."""
    again = _job.plan(copied, "tensorrt-rtx", QuietReport())
    assert again["sha256"] == files.sha256(copied / "model.plan")
    first, second = (np.fromfile(f / "model.plan", np.uint8) for f in (folder, copied))
    assert first.size == second.size
    assert (first != second).mean() < 2e-3


def test_all_but_the_plan_is_the_same_each_time(folder: Path, tiny: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "cases.npz", allow_pickle=False, **_cases.cases(tiny("llama"), 4, 128))
    assert files.sha256(tmp_path / "cases.npz") == files.sha256(folder / "cases.npz")
    graph = _graph.decoder(tiny("llama").model, "fp32", 20)
    assert _graph.write(graph, tmp_path / "model.onnx") == ("model.onnx",)
    assert files.sha256(tmp_path / "model.onnx") == files.sha256(folder / "model.onnx")


def test_half_precision_codes_of_4_bits_and_unlike_blocks(tiny: Any, tmp_path: Path) -> None:
    artifact = quantized(uneven(tiny("llama")), {})
    down = next(n for n in tree.block_linears(artifact.model) if n.endswith("o_proj"))
    artifact = quantized(artifact, {down: GridFact(bits=4, group_size=4, activation="dynamic")})
    told = written(artifact, tmp_path / "e", HALF)
    assert [k["layer"] for k in told["past"]] == [1]  # the first block has no attention
    assert told["codes"]["layers"][down]["bits"] == 4
    mend = "activation = 'static' has them"
    assert told["codes"]["simulated"] == [f"inputs of 8 bits: 1 linears read floats; {mend}"]
    assert {i["dtype"] for i in told["inputs"] if i["name"].startswith("past")} == {"float16"}


def test_brain_floats(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph itself is what the model is: onnx's own evaluator runs it, where onnxruntime cannot."""
    artifact = quantized(tiny("llama"), GridFact(bits=8, group_size=None))
    told = written(artifact, tmp_path / "e", BRAIN)
    assert told["precision"] == "bf16"
    assert told["tensorrt"]["plan"] == "model.plan"
    assert {i["dtype"] for i in told["inputs"] if i["name"].startswith("past")} == {"bfloat16"}
    run = ReferenceEvaluator(str(tmp_path / "e" / "model.onnx"))
    cases = np.load(tmp_path / "e" / "cases.npz")
    kinds = {i["name"]: np.dtype(i["dtype"]) for i in told["inputs"]}
    given = {n: cases[f"0/{n}"].astype(kind) for n, kind in kinds.items()}
    logits = np.asarray(next(iter(run.run(["logits"], given))))
    expected, real = cases["0/expected logits"], cases["0/real logits"]
    assert logits.dtype == np.float32
    off = np.abs(logits - expected)[real].max() / np.abs(expected).max()
    assert 1e-4 < off < parity.TOLERANCES["bf16"].share
    files.write_json(tmp_path / "e" / "engine.json", told)
    monkeypatch.setattr(_engine, "Session", Graph.nothing)
    past = exporter().open(tmp_path / "e", BRAIN).empty_past(1)
    assert {a.dtype for pair in past for a in pair} == {np.dtype(np.float32)}  # numpy has no bfloat16


@pytest.mark.parametrize(("name", "runtime"), [("onnx", "onnxruntime"), ("torch", "torch")])
def test_brain_floats_are_for_tensorrt_alone(name: str, runtime: str, tiny: Any) -> None:
    kind = registry.load("exporters", name, Exporter)
    target = Target(runtime=runtime, precision="bf16")
    with pytest.raises(BadSettings, match=r"'bf16'.*; 'fp16' or 'fp32' would do") as fault:
        kind(kind.Settings()).plan(tree.facts(tiny("llama").model, "causal-lm"), target)
    assert fault.value.key == "precision"


def test_codes_of_8_bits_in_rows_zeros_in_2_4_and_every_flag(tiny: Any, tmp_path: Path) -> None:
    artifact: Artifact = tiny("llama")
    mask = torch.tensor([True, True, False, False])
    linears = tree.block_linears(artifact.model)
    masks = {n: mask.repeat(m.out_features, m.in_features // 4) for n, m in list(linears.items())[:3]}
    artifact = quantized(artifact.after(masks=masks), GridFact(bits=8, group_size=None))
    target = TARGET.model_copy(update={"max_batch": 2, "max_length": 32})
    told = written(artifact, tmp_path / "e", target, compute_capabilities=["8.6", "8.9"], weight_streaming=True)
    about = told["tensorrt"]
    assert about["sparse"]
    assert about["weight_streaming"]
    assert about["compute_capabilities"] == ["8.6", "8.9"]
    assert about["profiles"]["prefill"]["input_ids"] == [[1, 1], [1, 8], [2, 32]]
    job = files.read_json(tmp_path / "e" / "build.json")
    nodes = {n: [f"{n}.MatMul.1", f"{n}.DequantizeLinear.0"] for n in linears}
    assert job["eligible"] == {"sparse": {n: nodes[n] for n in masks}, "low-bit": nodes}
    made = {n.name for n in onnx.load(tmp_path / "e" / "model.onnx").graph.node}
    assert {n for every in nodes.values() for n in every} <= made


def test_the_product_of_a_linear_is_found_in_the_graph(folder: Path, tiny: Any) -> None:
    graph = _graph.Graph(model=onnx_ir.load(folder / "model.onnx"))
    made = {n.name: n for n in graph.model.graph}
    for name in tree.block_linears(tiny("llama").model):
        (product,) = _nodes(graph, name)
        assert made[product].op_type in ("MatMul", "Gemm")
        assert made[product].inputs[1] is graph.model.graph.initializers[f"{name}.weight"]
    assert _nodes(graph, "nowhere") == ["nowhere"]


def test_codes_that_are_floats(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of one byte each, the very ones of the artifact; what they give is what the model gives."""
    artifact = tiny("llama")
    rows, blocked = (GridFact(bits=8, group_size=size, format="fp8") for size in (None, 16))
    artifact = quantized(artifact, {n: rows if "mlp" in n else blocked for n in tree.block_linears(artifact.model)})
    told = written(artifact, tmp_path / "e", compute_capabilities=["8.9"])
    assert told["tensorrt"]["plan"] == "model.plan"
    held = {i.name: i for i in onnx.load(tmp_path / "e" / "model.onnx").graph.initializer}
    for name, grid in artifact.grids.items():
        codes = held[f"{name}.codes"]
        assert codes.data_type == onnx.TensorProto.FLOAT8E4M3FN
        assert codes.raw_data == grid.codes.view(torch.uint8).t().contiguous().numpy().tobytes()
        scale = onnx.numpy_helper.to_array(held[f"{name}.scale"])
        assert np.array_equal(scale, grid.scale[:, 0] if grid.fact == rows else grid.scale.t())
        assert f"{name}.weight" not in held
        assert told["codes"]["layers"][name]["format"] == "fp8"
    files.write_json(tmp_path / "e" / "engine.json", told)
    monkeypatch.setattr(_engine, "Session", Graph)
    assert parity.verify(exporter().open(tmp_path / "e", TARGET), artifact)["shapes"] == 7


def test_an_encoder_has_one_profile(tiny: Any, tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"generate": 0})
    told = written(tiny("bert"), tmp_path / "e", target)
    assert list(told["tensorrt"]["profiles"]) == ["prefill"]
    assert told["tensorrt"]["plan"] == "model.plan"


def test_profiles_hold_the_request_and_the_limits() -> None:
    inputs = [
        {"name": "input_ids", "shape": ["batch", "sequence"]},
        {"name": "attention_mask", "shape": ["batch", "total"]},
    ]
    target = TARGET.model_copy(update={"batch": 6, "prompt": 900, "generate": 300})
    found = _job.profiles(inputs, target, None, decoder=True)
    assert found["prefill"]["input_ids"] == [[1, 1], [6, 900], [6, 1200]]
    assert found["decode"] == {"input_ids": [[1, 1], [6, 1], [6, 1]], "attention_mask": [[1, 2], [6, 1051], [6, 1200]]}
    assert list(_job.profiles(inputs, target, None, decoder=False)) == ["prefill"]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_what_is_not_installed_builds_on_the_target(copied: Path) -> None:
    """Plain TensorRT builds only where the GPU is."""
    report = QuietReport()
    told = _job.plan(copied, "tensorrt", report)
    assert told["plan"] is None
    assert report.notes == ["no plan: tensorrt is not installed; `python kit.py` builds it on the target"]
    assert told.keys() == files.read_json(copied / "engine.json")["tensorrt"].keys()


def test_what_is_missing_is_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_judge, "installed", list)
    assert "pip install 'compress-engine[trt-rtx]'" in str(exporter().available())
    assert exporter(flavour="tensorrt").available() is None  # its kit builds on the target
    with pytest.raises(BadSettings, match="tensorrt-rtx is not installed"):
        exporter().plan(tree.facts(tiny("llama").model, "causal-lm"), TARGET)


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"runtime": "onnxruntime"}, {}, "'tensorrt' or 'tensorrt-rtx', got 'onnxruntime'"),
        ({"device": "cpu"}, {}, "must be 'cuda', got 'cpu'"),
        ({"batch": 3, "max_batch": 2}, {}, "at least batch, 3, got 2"),
        ({"max_length": 9}, {}, "at least prompt \\+ generate, 10, got 9"),
        ({"max_length": 129}, {}, "at most 128 tokens, got 129"),
        ({}, {"flavour": "tensorrt"}, "must be the target's runtime, 'tensorrt-rtx'"),
        ({"runtime": "tensorrt"}, {"flavour": "tensorrt", "compute_capabilities": ["8.6"]}, "GPU that builds it"),
    ],
)
def test_targets_that_no_plan_serves(changes: Any, settings: Any, said: str, tiny: Any) -> None:
    known = tree.facts(tiny("llama").model, "causal-lm")
    with pytest.raises(BadSettings, match=said):
        exporter(**settings).plan(known, TARGET.model_copy(update=changes))
    with pytest.raises(BadSettings, match="needs a"):
        exporter().plan(known, None)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (GridFact(bits=3, group_size=32), "4 and 8 bits, got 3; bits = 4"),
        (GridFact(bits=4, group_size=32, others=(GridFact(bits=2, group_size=32),)), "got 2"),
        (GridFact(bits=4, group_size=32, zero=True), "symmetric codes alone"),
        (GridFact(bits=8, group_size=None, offset=True), "symmetric codes alone, got groups with offsets"),
        (GridFact(bits=4, group_size=24), "no multiple of the group size, got 24; group_size = 32"),
    ],
)
def test_codes_that_no_plan_holds(grid: GridFact, said: str, tiny: Any) -> None:
    known: Facts = tree.facts(tiny("llama").model, "causal-lm")
    name = next(iter(known.shapes))
    with pytest.raises(BadSettings, match=said) as fault:
        exporter().plan(known.after(grids={name: grid}), TARGET)
    assert name in str(fault.value)
    exporter().plan(known.after(grids={name: GridFact(bits=4, group_size=None)}), TARGET)


@pytest.mark.parametrize("capability", ["8.0", "8.6"])
def test_floats_of_8_bits_are_for_gpus_that_have_them(capability: str, tiny: Any) -> None:
    known: Facts = tree.facts(tiny("llama").model, "causal-lm")
    known = known.after(grids=dict.fromkeys(known.shapes, GridFact(bits=8, group_size=None, format="fp8")))
    with pytest.raises(BadSettings, match=rf"8 bits \(fp8\), .* 8\.9 or later, got {capability}") as fault:
        exporter(compute_capabilities=["12.0", capability]).plan(known, TARGET)
    assert fault.value.key == "compute_capabilities"
    for able in ([], ["8.9"], ["12.0", "12.1"]):
        exporter(compute_capabilities=able).plan(known, TARGET)


def test_the_parsers_words_become_ours_with_node_and_mend(tiny: Any, copied: Path) -> None:
    name, linear = next(iter(tree.block_linears(tiny("llama").model).items()))
    grid = a_grid((linear.out_features, linear.in_features), GridFact(bits=8, group_size=None, zero=True))
    graph = _graph.Graph(model=onnx_ir.load(copied / "model.onnx"))
    changed, _ = _graph.with_codes(graph, {name: grid}, {name: _graph.Kernel("DequantizeLinear")})
    _graph.write(changed, copied / "model.onnx")
    with pytest.raises(BadModel, match=r"DequantizeLinear.*Non-zero zero point.*; symmetric codes would do") as fault:
        _job.plan(copied, "tensorrt-rtx", QuietReport())
    assert name in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_capability_that_the_builder_does_not_know(copied: Path) -> None:
    job = files.read_json(copied / "build.json")
    files.write_json(copied / "build.json", {**job, "compute_capabilities": ["9.0"]})
    with pytest.raises(BadModel, match=r"does not know compute capability 9\.0; leave compute_capabilities out"):
        _job.plan(copied, "tensorrt-rtx", QuietReport())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plan": None}, "holds no plan"),
        ({"flavour": "tensorrt"}, "made for tensorrt, which is not here"),
        ({"version": "0.9"}, "built by tensorrt-rtx 0.9, here is 1."),
        ({"compute_capabilities": ["8.6", "8.9"]}, "built for compute capability 8.6, 8.9, this GPU has 9.0"),
    ],
)
def test_a_machine_that_does_not_match(changes: Any, said: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    manifest = files.read_json(copied / "engine.json")
    assert bench_tensorrt.refusal(copied, manifest) is None
    changed = {**manifest, "tensorrt": {**manifest["tensorrt"], **changes}}
    why = str(bench_tensorrt.refusal(copied, changed))
    assert said in why
    assert f"python {copied / 'kit.py'} --rebuild" in why
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "built for compute capability 8.0 and later, this GPU has 7.5" in str(
        bench_tensorrt.refusal(copied, manifest)
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    files.write_json(copied / "local.json", manifest["tensorrt"])  # as the kit leaves it, once it has rebuilt
    assert bench_tensorrt.refusal(copied, changed) is None


def test_the_runtimes_own_word_counts_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = files.read_json(folder / "engine.json")
    kinds = SimpleNamespace(INVALID=0, VALID=2)
    for verdict, said in ((0, "takes the plan to be invalid on A GPU (no kernels)"), (2, "None")):
        runtime = SimpleNamespace(get_engine_validity=lambda plan, v=verdict: (v, "no kernels"))
        fake = SimpleNamespace(
            Runtime=lambda _, r=runtime: r,
            Logger=_Logger,
            EngineValidity=kinds,
            __version__=manifest["tensorrt"]["version"],
        )
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
        assert said in str(bench_tensorrt.invalid(folder, manifest))
    fake.Runtime = lambda _: SimpleNamespace()  # plain TensorRT does not tell
    assert bench_tensorrt.invalid(folder, manifest) is None


class _Logger:
    ERROR = 1

    def __init__(self, level: int) -> None:
        assert level == self.ERROR


# -- how it is run, with onnxruntime in the place of the GPU ----------------------------------------------------


class Graph:
    """A session that runs the graph beside the plan, within the plan's profiles."""

    def __init__(self, folder: Path, manifest: Any) -> None:
        self.versions = {"gpu": "none"}
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self._profiles = manifest["tensorrt"]["profiles"]

    def __call__(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        held = {i.name: given[i.name] for i in self._session.get_inputs()}
        kinds = [self._within(profile, held) for profile in self._profiles.values()]
        assert sum(kinds) == 1, "no step is outside all profiles, or inside two"
        names = [o.name for o in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, held), strict=True))

    @staticmethod
    def nothing(folder: Path, manifest: Any) -> Any:
        """Stand in for a session that is never called."""
        return SimpleNamespace(versions={})

    @staticmethod
    def _within(profile: Any, held: dict[str, np.ndarray]) -> bool:
        ranges = ((profile[n][0], a.shape, profile[n][2]) for n, a in held.items())
        return all(low <= size <= high for r in ranges for low, size, high in zip(*r, strict=True))

    def kernels(self) -> dict[str, str]:
        return {}


def test_steps_stay_within_the_profiles(folder: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the parity gate's shapes, chunks behind a past among them, as prompts and single tokens."""
    monkeypatch.setattr(_engine, "Session", Graph)
    engine = exporter().open(folder, TARGET)
    figures = parity.verify(engine, tiny("llama"))
    assert figures["shapes"] == 7
    assert engine.kernels() == {"every layer": "unknown"}
    assert engine.takes(128)
    assert not engine.takes(129)
    texts = np.random.default_rng(0).integers(0, 300, (5, 9))  # the plan takes 4 at once
    ones = np.ones_like(texts)
    once, past = engine.step(texts, ones, ones.cumsum(1) - 1, engine.empty_past(5))
    assert once.shape == (5, 9, 384)
    assert past[0][0].shape == (5, 2, 9, 8)
    with pytest.raises(BadSettings, match=r"takes 128 tokens, got 129; \[\[target\]\] max_length = 129 would do"):
        engine.step(texts[:, :1], np.ones((5, 129)), ones[:, :1], past)
    other = tiny("llama", seed=1)
    with pytest.raises(ParityError):
        parity.verify(engine, other)


# -- the demo model ---------------------------------------------------------------------------------------------


def _cut(artifact: Artifact) -> Artifact:
    none = torch.tensor([], dtype=torch.int64)
    blocks.slice_(artifact.model, 0, kv_groups=none, neurons=none)  # the first block does nothing
    return artifact


def _two_of_four(artifact: Artifact) -> Artifact:
    mask = torch.tensor([True, False, False, True])
    linears = tree.block_linears(artifact.model)
    masks = {n: mask.repeat(m.out_features, m.in_features // 4) for n, m in linears.items()}
    for name, linear in linears.items():
        linear.weight.data *= masks[name]
    return artifact.after(masks=masks)


_DEMO: dict[str, Callable[[Artifact], Artifact]] = {
    "dense": lambda a: a,
    "int8 rows": lambda a: quantized(a, GridFact(bits=8, group_size=None)),
    "int4 groups of 32": lambda a: quantized(a, GridFact(bits=4, group_size=32)),
    "2:4": _two_of_four,
    "a first block that does nothing": _cut,
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("made", _DEMO)
def test_the_demo_model_builds(made: str, precision: str, tmp_path: Path) -> None:
    artifact = _DEMO[made](Artifact.of(loading.locate("demo"), "causal-lm"))
    target = TARGET.model_copy(update={"precision": precision, "prompt": 128, "generate": 64})
    told = written(artifact, tmp_path / "e", target)
    assert told["tensorrt"]["sparse"] == (made == "2:4")
    first = (tmp_path / "e" / "model.plan").read_bytes()
    _job.plan(tmp_path / "e", "tensorrt-rtx", QuietReport())
    second = (tmp_path / "e" / "model.plan").read_bytes()
    assert len(first) == len(second)
    assert (np.frombuffer(first, np.uint8) != np.frombuffer(second, np.uint8)).mean() < 1e-3
