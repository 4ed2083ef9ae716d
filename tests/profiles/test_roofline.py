"""Estimates against arithmetic done by hand on a model whose figures are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import profiles
from compress.contracts import Target
from compress.errors import BadSettings
from profiles import Attention, Base, Choice, Ffn, ForeignProfile, Linear, Roofline, roofline

# Llama-3.1-8B, whose parameters are 8,030,261,248 in all.
SHAPE: dict[str, Any] = {"family": "llama", "hidden": 4096}
A = Choice(part=Attention(**SHAPE, heads=32, kv_heads=8, head_dim=128), precision="fp16")
F = Choice(part=Ffn(**SHAPE, neurons=14336), precision="fp16")
B = Choice(part=Base(**SHAPE, vocabulary=128256, elements=2 * 128256 * 4096 + 4096))
GPU = Target(device="cuda", precision="fp16")


def test_a_whole_model_has_its_known_size_and_cache() -> None:
    costs = profiles.open("h100-sxm", GPU)
    every = [A, F] * 32 + [B]
    assert sum(costs.costs(c, GPU)["parameters"] for c in every) == 8_030_261_248
    assert sum(costs.costs(c, GPU)["bytes"] for c in every) == 2 * 8_030_261_248
    long = GPU.model_copy(update={"batch": 96, "prompt": 4096, "generate": 4096})
    assert costs.costs(A, long)["kv_mib"] == 3072  # a layer, as published for this request
    assert costs.costs(F, long)["kv_mib"] == 0


def test_decode_of_a_big_model_is_the_bytes_and_prefill_the_operations() -> None:
    costs = profiles.open("h100-sxm", GPU)
    share = roofline.SHARE
    weights = 2 * F.part.parameters
    activations = 2 * (2 * (4096 + 14336) + 14336 + 4096)
    wanted = 1e3 * (weights + activations) / 3350e9 / share["decode"]
    assert costs.time(F, "decode", 1, 128).ms == pytest.approx(wanted)
    wanted = 1e3 * 2 * 3 * 4096 * 14336 * 8 * 512 / 989.5e12 / share["prefill"]
    assert costs.time(F, "prefill", 8, 512).ms == pytest.approx(wanted)
    keys = [costs.time(A, "decode", 64, past).ms for past in (1000, 2000, 3000)]
    assert keys[2] - keys[1] == pytest.approx(keys[1] - keys[0])
    assert keys[1] - keys[0] == pytest.approx(1e3 * 1000 * 64 * 2 * 8 * 128 * 2 / 3350e9 / share["decode"])


def test_codes_and_patterns_save_what_they_should() -> None:
    costs = profiles.open("a100-80gb", GPU)

    def ms(phase: Any, **changes: Any) -> float:
        return costs.time(F.model_copy(update=changes), phase, 1, 2048).ms

    assert 0.25 < ms("decode", precision="int4-g128") / ms("decode") < 0.28  # a quarter, and its scales
    assert ms("prefill", precision="int4-g128") == ms("prefill")  # codes become floats before they multiply
    assert ms("prefill", precision="int8-dynamic") == pytest.approx(ms("prefill") / 2)
    assert ms("prefill", pattern="2:4") == pytest.approx(ms("prefill") / 2)
    assert ms("prefill", pattern="unstructured") == ms("prefill")


def test_every_figure_has_a_source_or_is_said_to_have_none() -> None:
    for name in roofline.names():
        sheet = roofline.sheet(name)
        others = {n for n in ("bandwidth_gb_s", "memory_gib", "cores", "sparse") if getattr(sheet, n) is not None}
        given = {n for source in sheet.sources for n in source.gives}
        assert given | set(sheet.derived) | set(sheet.unsourced) == set(sheet.peak_tflops) | others, name
        for source in sheet.sources:
            assert all(url.startswith("http") for url in (source.url, source.through or source.url))
        told = "\n".join(sheet.lines())
        assert all(source.url in told and source.note in told for source in sheet.sources)
        assert all(how in told for how in (*sheet.derived.values(), *sheet.unsourced.values()))


@pytest.mark.parametrize(
    ("name", "gflops", "bandwidth"),
    [
        ("epyc-7763", 64 * 2.45 * 2 * 8 * 2, 8 * 8 * 3.2),
        ("xeon-8480plus", 56 * 2.0 * 2 * 16 * 2, 8 * 8 * 4.8),
        ("raspberry-pi-5", 4 * 2.4 * 2 * 4 * 2, 4 * 4.267),
    ],
)  # cores, GHz, units, floats, a multiplication and an addition; channels, bytes, GT/s
def test_figures_of_processors_are_reckoned(name: str, gflops: float, bandwidth: float) -> None:
    sheet = roofline.sheet(name)
    assert 1000 * sheet.peak_tflops["fp32"] == pytest.approx(gflops)
    assert sheet.bandwidth_gb_s == pytest.approx(bandwidth, rel=2e-3)


def test_every_table_is_told_as_estimated() -> None:
    assert len(roofline.names()) >= 9
    for name in roofline.names():
        sheet = roofline.sheet(name)
        assert sheet.peak_tflops["fp32"] > 0
        target = Target(device=sheet.device)
        warnings: list[str] = []
        costs = profiles.open(name, target, warnings=warnings)
        assert costs.estimated
        assert "estimated by arithmetic, not measured" in warnings[0]
        found = costs.predict([A.model_copy(update={"precision": "fp32"})], B, target)
        assert all("(estimated)" in str(p) for p in found.values())
        assert all(p.low < p.ms < p.high for p in found.values())


def test_a_thread_has_the_peak_of_one_core() -> None:
    one, many = (profiles.open("epyc-7763", Target(threads=n)) for n in (1, 8))
    c = F.model_copy(update={"precision": "fp32"})
    assert one.time(c, "prefill", 8, 512).ms == pytest.approx(8 * many.time(c, "prefill", 8, 512).ms)


def test_unknown_and_foreign_tables_are_refused() -> None:
    with pytest.raises(BadSettings, match="did you mean 'h100-sxm'"):
        roofline.sheet("h100sxm")
    with pytest.raises(ForeignProfile, match="'cuda', and the target's is 'cpu'"):
        profiles.open("h100-sxm", Target())


def test_measured_points_replace_what_is_assumed(tmp_path: Path, tiny: Callable[..., Any]) -> None:
    from profiles._file import Document, Measured, Taken, Timing

    bare = roofline.estimate("epyc-7763", Target())
    assert isinstance(bare, Roofline)
    floats = F.model_copy(update={"precision": "fp32"})
    truth: dict[Any, float] = {"prefill": 0.25, "decode": 0.4}
    times = tuple(
        Timing(phase=p, batch=1, length=64, ms=bare.time(floats, p, 1, 64).ms * share / truth[p], spread=0, runs=1)
        for p, share in roofline.SHARE.items()
    )  # fmt: skip
    taken = Taken(date="2026-01-01", load=(0, 0))
    document = Document(
        machine=profiles.here(Target()), taken=taken, parts=(Measured(**floats.model_dump(), times=times),)
    )
    calibrated = bare.calibrated(profiles.Profile(document))
    assert calibrated.shares == pytest.approx(truth)
    for t in times:
        assert calibrated.time(floats, t.phase, 1, 64).ms == pytest.approx(t.ms)
    assert calibrated.estimated
    assert "assumed" not in calibrated.lines()[1]


def test_a_linear_that_stands_in_is_one_product_and_keeps_no_keys() -> None:
    linear = Choice(part=Linear(family="llama", hidden=64, place="attention"))
    assert roofline.operations(linear, 2, 3, 5) == 2 * 64**2 * 6
    assert roofline.traffic(linear, 2, 3, 5, 4) == 4 * (64**2 + 64) + 4 * 6 * 128
    costs = profiles.open("epyc-7763", Target()).costs(linear, Target())
    assert costs["kv_mib"] == 0 < costs["decode_ms"]


def test_encoders_neither_decode_nor_keep_keys() -> None:
    target = Target(generate=0, batch=2)
    costs = profiles.open("epyc-7763", target)
    ffn = Choice(part=Ffn(family="bert", hidden=768, neurons=3072))
    attention = Choice(part=Attention(family="bert", hidden=768, heads=12, kv_heads=12, head_dim=64))
    base = Choice(part=Base(family="bert", hidden=768, vocabulary=30522, elements=24_000_000))
    for choice in (ffn, attention, base):
        assert tuple(costs.costs(choice, target)) == (
            "prefill_ms", "request_ms", "weights_mib", "parameters", "bytes",
        )  # fmt: skip
    assert costs.costs(ffn, target)["request_ms"] == costs.costs(ffn, target)["prefill_ms"]
    assert set(costs.predict([ffn, attention] * 12, base, target)) == {"prefill_ms", "request_ms"}
    assert costs.costs(base, target)["prefill_ms"] < costs.costs(ffn, target)["prefill_ms"] / 100  # rows are looked up
