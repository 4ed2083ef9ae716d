"""Measuring through the clock: real engines, real failures, and the table that a reader gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from compress import measure as module
from compress.context import QuietReport
from compress.contracts import Target
from compress.errors import BadModel, BadSettings, CompressError, UserFault
from compress.measure import Measurement, compare, digits, labels, lines, made_for, measure

Maker = Callable[..., Path]
REQUEST = Target(prompt=16, generate=4)


class Counting(QuietReport):
    """A report that counts how far its bar came."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.total = self.moved = 0
        self.fail_at = fail_at

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Counting]:
        self.total = total
        yield self

    def advance(self, amount: int = 1) -> None:
        self.moved += amount
        if self.moved == self.fail_at:
            raise KeyboardInterrupt

    def show(self, text: str) -> None:
        assert text in ("time", "memory")


def test_measures_engines_and_reads_every_figure(small_engine: Maker) -> None:
    report = Counting()
    folders = [small_engine("dense", layers=12), small_engine("small", layers=3)]
    found = measure(folders, REQUEST, report, processes=1, seconds=0.05)
    assert [e.folder for e in found.engines] == [str(f) for f in folders]
    assert report.moved == report.total == 3  # one process of timing, two of memory
    dense, small = found.engines
    assert dense.request.ratio == 1
    assert small.request.ratio < 0.9  # a quarter of the layers
    assert small.decode is not None
    assert Measurement.model_validate_json(found.model_dump_json()) == found
    table = lines(found)
    assert table[0].split() == ["dense", "small"]
    assert any(row.startswith("prefill of 16 tokens") and "as fast" in row for row in table)
    assert any(row.startswith("decode per token") for row in table)
    assert "interleaved blocks" in table[-2 - len(module.cautions(found))]


def test_an_encoder_has_no_row_for_decoding(small_engine: Maker) -> None:
    found = measure([small_engine("e", decoder=False)], REQUEST, processes=1, seconds=0.02)
    assert found.engines[0].decode is None
    assert not any(row.startswith(("decode", "request")) for row in lines(found))


def test_a_folder_that_is_no_engine_is_the_users_fault(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match=r"nowhere: cannot be loaded as an engine: .*engine\.json") as fault:
        measure([tmp_path / "nowhere"], REQUEST, processes=1)
    assert "\n" not in str(fault.value)


def test_a_clock_that_dies_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = tmp_path / "clock.py"
    clock.write_text("import sys\nprint('progress: time', file=sys.stderr)\nraise MemoryError('none left')\n")
    monkeypatch.setattr(module, "_BENCH", clock)
    with pytest.raises(CompressError, match="measuring: MemoryError: none left") as fault:
        measure([tmp_path], REQUEST)
    assert not isinstance(fault.value, UserFault)


def test_an_interrupt_leaves_no_process_behind(small_engine: Maker) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure([small_engine("a")], REQUEST, Counting(fail_at=1), processes=2, seconds=0.02)
    left = [p for p in psutil.Process().children(recursive=True) if "bench.py" in " ".join(p.cmdline())]
    _, alive = psutil.wait_procs(left, timeout=20)  # the kernel takes its time on a busy machine
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_compares_an_engine_with_a_run(small_engine: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[Path], Target]] = []
    monkeypatch.setattr(module, "measure", lambda folders, target, report: asked.append((folders, target)))
    engine, run = small_engine("alone"), tmp_path / "run"
    one, dense = small_engine("run/engines/cpu"), small_engine("run/engines/cpu-dense")
    compare(run, engine)
    assert asked == [([one, engine], made_for(one))]
    assert made_for(one) == Target(name="cpu", prompt=32, generate=8)
    compare(engine, dense, REQUEST)
    assert asked[1] == ([engine, dense], REQUEST)
    two = small_engine("run/engines/phone")
    with pytest.raises(BadSettings, match=r"several engines; name one: .*cpu.*phone"):
        compare(run, engine)
    compare(run, engine, Target(name="phone"))
    assert asked[2][0] == [two, engine]
    with pytest.raises(BadModel, match="no engine in it"):
        compare(engine, tmp_path)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["runs/a/engines/cpu", "runs/b/engines/cpu"], ["a", "b"]),
        (["run/engines/cpu", "run/engines/cpu-dense"], ["cpu", "cpu-dense"]),
        (["x/engine"], ["engine"]),
        (["x/engine", "x/engine"], ["engine (1)", "engine (2)"]),
        (["/a/engine", "b/engine"], ["/a", "b"]),
        (["run/engines/cpu", "run"], ["run/engines/cpu", "run"]),
    ],
)
def test_labels_tell_folders_apart(folders: list[str], expected: list[str]) -> None:
    assert labels(folders) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1,234,567"), (123.4, "123"), (12.34, "12.3"), (9.999, "10.0"), (0.01234, "0.0123")],
)
def test_digits_that_count(value: float, text: str) -> None:
    assert digits(value) == text
