"""A profile's page: every part of every request has its bars, on its own page and in the report of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from compress import report
from compress.cli import cli
from compress.context import QuietReport
from compress.contracts import Target
from compress.pipeline import summary
from compress.pipeline.runner import Done
from compress.profiling import profiler
from profiles import Attention, Base, Ffn, here
from profiles._file import Document, Measured, Taken, Timing, write

SHAPE: dict[str, Any] = {"family": "llama", "hidden": 64}


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """Two FFNs, one in codes with a doubtful decode, attention and a base, for two requests."""

    def times(ms: float, *flags: str) -> tuple[Timing, ...]:
        return tuple(
            Timing(phase=p, batch=b, length=16, ms=m, spread=0.1, runs=9, flags=f)
            for b in (1, 4) for p, m, f in (("prefill", 8 * ms * b, ()), ("decode", ms, flags))
        )  # fmt: skip

    parts = (
        Measured(part=Ffn(**SHAPE, neurons=32), times=times(0.5)),
        Measured(part=Base(**SHAPE, vocabulary=100, elements=6464), times=times(0.25)),
        Measured(part=Ffn(**SHAPE, neurons=128), precision="int4-g32", times=times(1.0, "wide")),
        Measured(part=Ffn(**SHAPE, neurons=128), times=times(2.0)),
        Measured(part=Attention(**SHAPE, heads=4, kv_heads=2, head_dim=16), times=times(1.5)),
    )
    taken = Taken(date="2026-01-02", load=(0.5, 1.0), copies=(2, 4), processes=1, seconds=1.0)
    write(Document(machine=here(Target()), taken=taken, parts=parts), tmp_path / "here.json")
    return tmp_path / "here.json"


def _bars(page: str) -> list[float]:
    return [float(w) for w in re.findall(r'<rect[^>]* width="([\d.]+)"', page)]


def test_a_profile_has_a_page(profile: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["show", str(profile), "--html", str(tmp_path / "out.html")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out.html").read_text()
    bars = _bars(page)
    assert len(bars) == 2 * 5 * 2  # requests, parts, phases
    heads = re.findall(r'class="head">(.*?)<', page)
    assert heads[:4] == [
        "attention 64: 4 heads on 2 of 16", "ffn 64: 128 neurons", "ffn 64: 32 neurons", "base 64: 100 tokens",
    ]  # fmt: skip
    coded, floats = bars[2:4], bars[4:6]  # of the widest FFN: prefill and decode
    assert [a / b for a, b in zip(coded, floats, strict=True)] == pytest.approx([0.5, 0.5], abs=0.01)
    assert page.count("1.00 !<") == 2
    assert "16 tokens, batch 4" in page


def test_a_datasheet_has_a_page_too_and_a_run_has_its_report(tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    assert CliRunner().invoke(cli, ["show", "h100-sxm", "--html", str(out)]).exit_code == 0
    assert "estimated by arithmetic" in out.read_text()
    assert not _bars(out.read_text())
    refused = CliRunner().invoke(cli, ["show", str(tmp_path), "--html", str(out)])
    assert refused.exit_code == 2
    assert "compress report RUN" in refused.output


def test_the_report_shows_what_a_pass_has_chosen_by(profile: Path, tmp_path: Path) -> None:
    quiet = QuietReport()
    for path in (profile, profile, tmp_path / "gone.json", "h100-sxm"):
        quiet.record("profile", str(path))
    done = Done(index=2, use="x", name="x", folder=tmp_path, cached=True, measured=quiet.measured)
    found = summary._profiles([done])
    assert [p["name"] for p in found] == ["here.json", "h100-sxm"]
    assert json.loads(json.dumps(found)) == found
    content: Any = {"format": report.FORMAT, "name": "run", "profiles": found}
    report.write(tmp_path, content)
    page = (tmp_path / "report.html").read_text()
    assert len(_bars(page)) == 20
    assert "What parts cost" in page
    assert found[0]["costs"] == profiler().figures(profile)["costs"]
    report.write(tmp_path, {"format": report.FORMAT, "name": "run"})
    assert "What parts cost" not in (tmp_path / "report.html").read_text()
