"""The clock: run as a stand-alone program on real graphs, and its arithmetic on numbers that fit in the head."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress import bench

Maker = Callable[..., Path]
QUICK = ("--processes=2", "--seconds=0.1", "--prompt=32", "--generate=8")


def run(*arguments: object, program: Path = Path(bench.__file__)) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_times_decoders_against_the_first_alone_on_a_board(small_engine: Maker, tmp_path: Path) -> None:
    board = tmp_path / "board"
    board.mkdir()
    for file in ("bench.py", "bench_onnxruntime.py"):
        shutil.copy(Path(bench.__file__).with_name(file), board)
    one, same, more = small_engine("one", layers=6), small_engine("same", layers=6), small_engine("more", layers=24)
    done = run(one, same, more, *QUICK, f"--json={tmp_path / 'out.json'}", program=board / "bench.py")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["request"] == {"batch": 1, "prompt": 32, "generate": 8, "threads": 1, "device": "cpu"}
    assert result["processes"] == 2
    assert "few runs: in 2 of the 3 processes that intervals need" in result["flags"]
    assert result["clock"] == "thread CPU time"
    assert result["machine"]["cores"] >= 1
    first, equal, slower = result["engines"]
    assert [e["folder"] for e in result["engines"]] == [str(one), str(same), str(more)]
    for phase in ("prefill", "decode", "request"):
        assert first[phase]["ratio"] == first[phase]["ratio_low"] == first[phase]["ratio_high"] == 1
        assert 0.8 < equal[phase]["ratio"] < 1.25  # the same graph
        assert equal[phase]["ratio_low"] < 1.1
        assert equal[phase]["ratio_high"] > 0.9
        assert slower[phase]["ratio"] > 1.5  # four times the layers, beside what both share
        assert slower[phase]["ratio_low"] <= slower[phase]["ratio"] <= slower[phase]["ratio_high"]
    assert slower["request"]["ms"] == pytest.approx(slower["prefill"]["ms"] + 8 * slower["decode"]["ms"])
    assert slower["tokens_per_second"] == pytest.approx(8e3 / slower["request"]["ms"])
    assert first["prefill"]["runs"] >= 100
    assert slower["file_mib"] > 2 * first["file_mib"]
    assert first["memory_mib"] > 1
    assert first["load_seconds"] > 0


def test_huge_pages_are_asked_for_as_workers_start(
    small_engine: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine, given = small_engine("one"), ["--processes=1", "--seconds=0.02", "--prompt=8", "--generate=2"]
    clock = (engine / "engine.json").read_text()
    (engine / "engine.json").write_text(json.dumps({**json.loads(clock), "clock": "watched"}))
    board = tmp_path / "board"
    board.mkdir()
    shutil.copy(bench.__file__, board)
    source = Path(bench.__file__).with_name("bench_onnxruntime.py").read_text()
    watched = "print('sees', __import__('os').environ.get('GLIBC_TUNABLES'), file=__import__('sys').stderr)\n"
    (board / "bench_watched.py").write_text(source + watched)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    plain = run(engine, *given, program=board / "bench.py")
    huge = run(engine, *given, "--huge_pages=1", program=board / "bench.py")
    assert "sees glibc.malloc.check=0\n" in plain.stderr
    assert "huge_pages" not in json.loads(plain.stdout)["request"]
    assert f"sees glibc.malloc.check=0:{bench.HUGE_PAGES}\n" in huge.stderr
    assert json.loads(huge.stdout)["request"]["huge_pages"] == 1


def test_an_encoder_has_no_decode(small_engine: Maker) -> None:
    done = run(small_engine("encoder", decoder=False), "--batch=2", "--processes=1", *QUICK[1:])
    engine = json.loads(done.stdout)["engines"][0]
    assert engine["decode"] is None
    assert engine["request"]["ms"] == engine["prefill"]["ms"]
    assert engine["tokens_per_second"] == pytest.approx(2 * 32e3 / engine["prefill"]["ms"])


def test_several_threads_are_timed_by_the_wall(small_engine: Maker) -> None:
    result = json.loads(run(small_engine("a"), "--threads=2", "--processes=1", *QUICK[1:]).stdout)
    assert result["clock"] == "wall time"
    blocks = [{"cpu": [1.0] * 20, "wall": [3.0] * 20}] * 8
    assert bench.compare(bench.medians([blocks], [blocks], "wall"))["ms"] == 3000


@pytest.mark.parametrize("harm", ["missing", "truncated", "foreign input", "no clock"])
def test_a_broken_engine_is_one_clear_line(harm: str, small_engine: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "nowhere" if harm == "missing" else small_engine("broken")
    if harm == "truncated":
        (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:500])
    if harm == "foreign input":
        graph = (folder / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(graph.replace(b"attention_mask", b"attention_mist"))
    if harm == "no clock":
        manifest = json.loads((folder / "engine.json").read_text())
        (folder / "engine.json").write_text(json.dumps({**manifest, "clock": "abacus"}))
    done = run(folder, *QUICK)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("bench: ")
    assert str(folder) in last
    assert ("attention_mist" in last) == (harm == "foreign input")
    assert ("bench_abacus.py" in last) == (harm == "no clock")
    assert "Traceback" not in done.stderr


def test_blocks_alternate_and_the_first_runs_are_dropped() -> None:
    order: list[int] = []

    def call(which: int) -> Callable[[], None]:
        def run() -> None:
            order.append(which)

        return run

    blocks = bench.time_blocks([call(0), call(1)], seconds=0.05)
    rounds, size = len(blocks[0]), bench.DROP + bench.KEEP
    assert bench.ROUNDS[0] <= rounds <= bench.ROUNDS[1]
    assert all(len(b["cpu"]) == len(b["wall"]) == bench.KEEP for engine in blocks for b in engine)
    measured = np.array(order[-2 * rounds * size :]).reshape(2 * rounds, size)
    assert (measured == measured[:, :1]).all()
    assert measured[:, 0].tolist() == [0, 1, 1, 0] * (rounds // 2) + [0, 1][: 2 * (rounds % 2)]


def test_slow_engines_get_fewer_runs() -> None:
    count = 0

    def slow() -> None:
        nonlocal count
        count += 1
        time.sleep(0.03)

    blocks = bench.time_blocks([slow], seconds=0.01)
    assert len(blocks[0]) == 3
    assert count < 2 + 3 * (1 + bench.KEEP)


def _blocks(times: Any, runs: int = 20) -> list[bench.Block]:
    return [{"cpu": [t] * runs, "wall": [t] * runs} for t in times]


def _compared(times: np.ndarray) -> dict[str, float]:
    """Return what is found of times `[2, processes, rounds]` of an engine and of its reference."""
    own, reference = ([_blocks(process, 1) for process in engine] for engine in times)
    return bench.compare(bench.medians(own, reference, "cpu"))


def test_the_ratio_cancels_what_both_engines_share() -> None:
    weather = np.random.default_rng(0).uniform(1, 3, (3, 8))
    own, reference = [_blocks(0.5e-3 * w) for w in weather], [_blocks(1e-3 * w) for w in weather]
    found = bench.compare(bench.medians(own, reference, "cpu"))
    assert found["ratio"] == pytest.approx(0.5)
    assert found["ratio_low"] == pytest.approx(0.5)
    assert found["ratio_high"] == pytest.approx(0.5)
    assert found["ms"] == pytest.approx(0.5 * np.median(weather))


@pytest.mark.parametrize("processes", [2, 3, 5, 12])
@pytest.mark.parametrize(("between", "within"), [(0.02, 0), (0.01, 0.05), (0, 0.05)])
def test_the_interval_covers_the_truth(between: float, within: float, processes: int) -> None:
    """However few the processes, and whatever differs, what they or the rounds of each have in common."""
    rng, hits, count = np.random.default_rng(processes), 0, 400
    for _ in range(count):
        noise = rng.normal(0, between, (2, processes, 1)) + rng.normal(0, within, (2, processes, 5))
        times = np.exp(noise) * np.reshape([0.7e-3, 1e-3], (2, 1, 1))
        found = _compared(times)
        hits += found["ratio_low"] <= 0.7 <= found["ratio_high"]
    assert hits >= 0.92 * count


@pytest.mark.parametrize("free", [*range(1, 13), 29, 999])
def test_intervals_are_students(free: int) -> None:
    t = bench.student(free)
    x = np.linspace(-t, t, 100_001)
    scale = math.exp(math.lgamma((free + 1) / 2) - math.lgamma(free / 2)) / math.sqrt(free * math.pi)
    assert np.trapezoid(scale * (1 + x**2 / free) ** (-(free + 1) / 2), x) == pytest.approx(0.95, abs=3e-4)


def test_more_processes_narrow_the_interval_and_one_alone_is_cut_in_parts() -> None:
    rng, widths = np.random.default_rng(0), []
    for processes in (1, 2, 3, 12):
        each = []
        for _ in range(50):
            times = 1e-3 * np.exp(rng.normal(0, 0.02, (2, processes, 6)))
            found = _compared(times)
            each.append(found["ratio_high"] / found["ratio_low"] - 1)
        widths.append(np.median(each))
    assert widths[1] > 2 * widths[2] > 4 * widths[3]
    assert 0 < widths[0] < 0.5


@pytest.mark.parametrize(
    ("cpu", "wall", "flags"),
    [
        ([1.0] * 8, [1.0] * 8, []),
        ([1.0] * 8, [1.3] * 8, ["shared"]),
        ([1.0, 2.0] * 4, [1.0, 2.0] * 4, ["noisy"]),
        ([1.0] * 2, [1.0] * 2, ["few"]),
    ],
)
def test_doubtful_figures_are_flagged(cpu: list[float], wall: list[float], flags: list[str]) -> None:
    blocks = [{"cpu": [c] * 20, "wall": [w] * 20} for c, w in zip(cpu, wall, strict=True)]
    found = bench.figures(blocks, bench.medians([blocks], [blocks], "cpu"), "cpu")
    assert [f.partition(":")[0] for f in found["flags"]] == flags
