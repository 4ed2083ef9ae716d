"""Profiles as files: read strictly, trusted only where they were taken, and turned into the solver's costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import profiles
from compress import blocks, tree
from compress.contracts import Target
from compress.errors import BadSettings
from compress.facts import GridFact
from profiles import Attention, BadProfile, Base, Choice, Ffn, ForeignProfile, Linear, NotMeasured, Profile
from profiles import _file as file
from profiles import _precision as precision
from profiles._geometry import parse
from profiles._machine import Machine
from tests.conftest import standing

A = Choice(part=Attention(family="llama", hidden=64, heads=4, kv_heads=2, head_dim=16))
F = Choice(part=Ffn(family="llama", hidden=64, neurons=128))
Q = F.model_copy(update={"precision": "int4-g32"})
B = Choice(part=Base(family="llama", hidden=64, vocabulary=100, elements=12864))
MS = {A: (2.0, 0.3), F: (4.0, 0.5), Q: (3.0, 0.2), B: (5.0, 0.9)}  # prefill and decode after 32 tokens
TARGET = Target(batch=2, prompt=32, generate=10)


def _time(phase: str, length: int, ms: float, **more: Any) -> dict[str, Any]:
    return {"phase": phase, "batch": 2, "length": length, "ms": ms, "spread": 0.1, "runs": 100, **more}


def a_profile(line: tuple[float, float] | None = None, noise: float = 0.0) -> dict[str, Any]:
    """A profile whose prefill grows with length and whose decode does, by known lines; wholes by another."""
    parts = [
        {**c.model_dump(), "times": [
            _time("prefill", 32, p), _time("decode", 32, d), _time("prefill", 64, 2 * p), _time("decode", 64, d + 0.1),
        ]} for c, (p, d) in MS.items()
    ]  # fmt: skip
    wholes = []
    if line:
        for k in range(6):
            picks = [3, *[0] * (k + 1), *[1, 2] * (k % 3)]
            sums = [sum(list(MS.values())[i][phase] for i in picks) for phase in (0, 1)]
            off = 1 + noise * (-1) ** k
            times = [
                _time(p, 32, (line[0] + line[1] * s) * off) for p, s in zip(("prefill", "decode"), sums, strict=True)
            ]
            wholes.append({"parts": picks, "times": times})
    machine = profiles.here(Target()).model_dump(mode="json")
    taken = {"date": "2026-01-01", "load": [0.1, 0.2], "copies": [4, 8]}
    return {"kind": file.KIND, "format": 1, "machine": machine, "taken": taken, "parts": parts, "wholes": wholes}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(content: dict[str, Any]) -> Path:
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_a_profile_survives_writing(written: Any, tmp_path: Path) -> None:
    profile = profiles.read(written(a_profile((0.5, 1.1))))
    file.write(profile.document, tmp_path / "again.json")
    assert profiles.read(tmp_path / "again.json").document == profile.document


def test_costs_are_the_solvers_costs(written: Any) -> None:
    from solvers import COSTS

    profile = profiles.open(written(a_profile()), TARGET)
    found = profile.costs(A, TARGET)
    assert tuple(found) == COSTS
    assert (found["prefill_ms"], found["decode_ms"]) == (2.0, 0.3)
    assert found["request_ms"] == pytest.approx(2.0 + 10 * 0.3)
    assert found["parameters"] == 64 * 16 * (4 + 2) * 2 + 64
    assert found["bytes"] == 4 * found["parameters"]
    assert found["weights_mib"] == found["bytes"] / 2**20
    assert found["kv_mib"] == 2 * (32 + 10) * 2 * 2 * 16 * 4 / 2**20
    coded = profile.costs(Q, TARGET)
    assert coded["parameters"] == 3 * 64 * 128 + 64
    assert coded["bytes"] == 3 * 64 * 128 // 2 + 4 * (2 * 128 * 2 + 64 * 4 + 64)
    assert coded["kv_mib"] == 0
    assert tuple(profile.costs(B, TARGET)) == COSTS


def test_between_measured_lengths_times_lie_on_the_line_and_nowhere_else(written: Any) -> None:
    profile = profiles.read(written(a_profile()))
    assert profile.time(A, "prefill", 2, 48).ms == pytest.approx(3.0)
    assert profile.time(A, "decode", 2, 40).ms == pytest.approx(0.325)
    for batch, length in ((2, 31), (2, 65), (1, 32)):
        with pytest.raises(NotMeasured, match=r"attention 64.*was not measured"):
            profile.time(A, "prefill", batch, length)
    with pytest.raises(NotMeasured, match="holds no ffn 64: 99 neurons"):
        profile.costs(Choice(part=Ffn(family="llama", hidden=64, neurons=99)), TARGET)


def test_corrected_costs_add_up_to_the_prediction(written: Any) -> None:
    profile = profiles.read(written(a_profile((0.7, 1.2))))
    picks = [A, F, A, Q]
    predicted = profile.predict(picks, B, TARGET)
    for name, phase in (("prefill_ms", 0), ("decode_ms", 1)):
        summed = sum(profile.costs(c, TARGET)[name] for c in [*picks, B])
        assert summed == pytest.approx(0.7 + 1.2 * sum(MS[c][phase] for c in [*picks, B]), rel=1e-6)
        assert predicted[name].ms == pytest.approx(summed)
        assert predicted[name].fitted
        assert predicted[name].high - predicted[name].low < 1e-6
    total = sum(profile.costs(c, TARGET)["request_ms"] for c in [*picks, B])
    assert predicted["request_ms"].ms == pytest.approx(total)


def test_intervals_grow_with_what_wholes_miss(written: Any) -> None:
    widths = []
    for noise in (0.01, 0.05):
        found = profiles.read(written(a_profile((0.7, 1.2), noise))).predict([A, F], B, TARGET)["prefill_ms"]
        widths.append(found.high - found.low)
        assert found.low < 0.7 + 1.2 * 11 < found.high
    assert widths[1] == pytest.approx(5 * widths[0], rel=0.1)
    bare = profiles.read(written(a_profile())).predict([A, F], B, TARGET)["prefill_ms"]
    assert not bare.fitted
    assert "no whole model measured" in str(bare)
    assert bare.high - bare.ms == pytest.approx(0.1 * math.sqrt(4 + 16 + 25))


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "kind": (lambda c: c.pop("kind"), "is no latency profile"),
    "format": (lambda c: c.update(format=7), "has format 7, this version reads 1"),
    "unknown": (lambda c: c.update(more=1), "more: Extra inputs are not permitted"),
    "missing": (lambda c: c.pop("machine"), "machine: Field required"),
    "negative": (lambda c: c["parts"][1]["times"][0].update(ms=-1), r"parts\[2\].*times\[1\]\.ms: .*greater than 0"),
    "nan": (lambda c: c["parts"][0]["times"][0].update(ms=math.nan), r"ms: .*finite"),
    "precision": (lambda c: c["parts"][0].update(precision="int9"), "precision: .*must be one of fp32.*got 'int9'"),
    "pattern": (lambda c: c["parts"][0].update(pattern="4:2"), "pattern: .*N < M, got '4:2'"),
    "family": (lambda c: c["parts"][0]["part"].update(family="lama"), "family 'lama' is not known"),
    "twice": (lambda c: c["parts"].append(c["parts"][0]), "stands there twice"),
    "two times": (lambda c: c["parts"][0]["times"].append(c["parts"][0]["times"][0]), "two times of one phase"),
    "whole": (lambda c: c["wholes"].append({"parts": [9], "times": []}), r"wholes\[1\]: names a part that is not"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_one_clear_line(name: str, written: Any) -> None:
    content = a_profile()
    FAULTS[name][0](content)
    with pytest.raises(BadProfile, match=FAULTS[name][1]) as caught:
        profiles.read(written(content))
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_file_or_no_json_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadProfile, match="no such file; `compress profile FILE -o"):
        profiles.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadProfile, match="is no JSON"):
        profiles.read(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("device", "cuda", "device cuda, wanted cpu"),
        ("model", "Other CPU", "model Other CPU, wanted "),
        ("version", "0.0.1", "version 0.0.1, wanted "),
        ("threads", 7, "threads 7, wanted 1"),
        ("options", {"spin": "1"}, "options inter_op_threads=None"),
        ("features", ["avx9"], "features avx9, wanted "),
        ("precision", "fp16", "precision fp16, wanted fp32"),
    ],
)
def test_a_foreign_profile_is_refused_unless_allowed(key: str, value: Any, told: str, written: Any) -> None:
    content = a_profile()
    content["machine"][key] = value
    path = written(content)
    with pytest.raises(ForeignProfile, match=told) as caught:
        profiles.open(path, TARGET)
    assert len(str(caught.value).splitlines()) == 1
    assert "--allow-foreign" in str(caught.value)
    warnings: list[str] = []
    assert isinstance(profiles.open(path, TARGET, allow_foreign=True, warnings=warnings), Profile)
    assert told in warnings[0]
    assert "used all the same" in warnings[0]


def test_load_memory_and_date_make_no_profile_foreign(written: Any) -> None:
    content = a_profile()
    content["machine"]["memory_mib"] = 1.0
    content["taken"]["date"] = "2020-01-01"
    warnings: list[str] = []
    profiles.open(written(content), TARGET, warnings=warnings)
    assert warnings == []
    assert Machine(**content["machine"]) != profiles.here(TARGET)


def test_lines_name_machine_parts_and_trust(written: Any) -> None:
    from profiles.measure import Measure

    content = a_profile((0.7, 1.2), 0.02)
    content["parts"][0]["times"][0]["flags"] = ["wide: give or take 30%"]
    told = "\n".join(Measure().lines(written(content)))
    for text in (
        "onnxruntime", "1 threads", "attention 64: 4 heads on 2 of 16, fp32", "2.00 +- 10% !", "prefill 2 x 32",
        "ffn 64: 128 neurons, int4-g32", "times the sum of their parts", "caution: attention 64",
    ):  # fmt: skip
        assert text in told


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "llama-tied", "opt", "gpt2", "bert", "roberta"])
@pytest.mark.parametrize("change", [lambda a: a, standing])
def test_parts_and_base_have_all_parameters_of_a_model(kind: str, change: Any, tiny: Any) -> None:
    encoder = kind in ("bert", "roberta")
    artifact = change(tiny(kind, "embedding" if encoder else "causal-lm"))
    facts, family = tree.facts(artifact.model, artifact.task), artifact.model.config.model_type
    hidden = profiles.hidden_of(facts)
    for block, config in zip(tree.blocks(artifact.model).values(), blocks.of(artifact.model), strict=True):
        parts = profiles.parts_of(config, family, hidden)
        assert sum(p.parameters for p in parts) == sum(p.numel() for p in block.parameters())
        linears = [m for m in tree.block_linears(artifact.model).values() if m in list(block.modules())]
        assert sum(p.weights for p in parts) == sum(m.weight.numel() for m in linears)
    base = profiles.base_of(facts, family).part
    picks = profiles.layout_choices(facts.layout, family, hidden)
    assert base.parameters + sum(c.part.parameters for c in picks) == facts.parameters


def test_names_of_precisions_and_shapes() -> None:
    for name in ("fp32", "int4-g128", "int8-dynamic", "int3", "int2-g16-exact"):
        grid = precision.parse(name).grid
        assert precision.of(grid, exact=name.endswith("-exact")) == name
    for name in ("int1", "int4-g0", "int4-dynamic", "fp8", "int8-g32-dynamic", "int8-static"):
        with pytest.raises(BadSettings, match=f"got '{name}'"):
            precision.parse(name)
    with pytest.raises(BadSettings, match=r"got codes of 8 bits \(fp8\); measure the engine"):
        precision.of(GridFact(bits=8, group_size=None, format="fp8"))
    with pytest.raises(BadSettings, match="inputs with static steps; measure the engine"):
        precision.of(GridFact(bits=8, group_size=None, activation="static"))
    assert parse("attention:64,4,2,16", "llama") == A.part
    assert parse("ffn:64,128", "llama") == F.part
    assert parse("linear:ffn,64", "llama") == Linear(family="llama", hidden=64, place="ffn")
    for text in (A.part.text, F.part.text, "linear:attention,64"):
        assert parse(text, "gpt2").text == text
    for text in ("ffn:64", "ffn:64,x", "conv:1,2", "attention:64,4,2,0", "linear:64", "linear:norm,64", "linear:ffn,"):
        with pytest.raises(BadSettings, match="must be attention:HIDDEN"):
            parse(text, "llama")
