"""What a pass is worth: the verdict on figures, on real engines, and what a run does with one that gains nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from compress import blocks, files, gain, measure, pipeline, settings, tree
from compress.artifact import Artifact
from compress.errors import BadPipeline, NoGain
from compress.facts import Facts, GridFact, MaskFact
from compress.gain import Factor, Gain
from compress.measure import Figures, Measurement, Phase, Time
from compress.report import gains as page
from compress.settings.expecting import Expect
from tests.compress.conftest import head, install, lay
from tests.conftest import branched, quantized

# -- the verdict -------------------------------------------------------------------------------------------------------


def phase(ratio: float, doubt: float) -> Phase:
    return Phase(
        ms=ratio, ratio=ratio, ratio_low=ratio - doubt, ratio_high=ratio + doubt, cpu_ms=1, wall_ms=1, wall_p10_ms=1,
        spread=0, runs=9, flags=(),
    )  # fmt: skip


def engine(request: float, doubt: float, size: float, decode: float | None = 1.0) -> Figures:
    whole = Time(ms=request, ratio=request, ratio_low=request - doubt, ratio_high=request + doubt)
    return Figures(
        folder="engine", prefill=phase(request, doubt), decode=phase(decode, doubt) if decode else None, request=whole,
        tokens_per_second=1, load_seconds=0, memory_mib=1, file_mib=size,
    )  # fmt: skip


def measured(request: float, doubt: float = 0.01, size: float = 10, decode: float | None = 1.0) -> Measurement:
    return Measurement(
        format=1, request={}, clock="cpu", cache="cold", processes=1, load_average=0, machine={}, versions={}, flags=(),
        engines=(engine(1, 0, 10, decode), engine(request, doubt, size, decode)),
    )  # fmt: skip


def worth(request: float, doubt: float = 0.01, size: float = 10, decode: float | None = 1.0) -> Gain:
    return gain.of_measurement(measured(request, doubt, size, decode))


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({"request": 0.8}, "pays"),
        ({"request": 1.2}, "costs"),
        ({"request": 0.99}, "neutral"),
        ({"request": 0.8, "doubt": 0.3}, "neutral"),  # may be chance
        ({"request": 1.0, "size": 5}, "pays"),
        ({"request": 1.0, "size": 20}, "costs"),
        ({"request": 1.2, "size": 5}, "costs"),
        ({"request": 0.8, "size": 20}, "pays"),
        ({"request": 1.0, "size": 9.9}, "neutral"),
        ({"request": 0.8, "decode": None}, "pays"),
    ],
)
def test_the_verdict_is_of_clear_differences(given: dict[str, Any], verdict: str) -> None:
    found = worth(**given)
    assert found.verdict == verdict
    assert found.told.startswith(f"{verdict}: a request is ")
    assert ("decode_speedup" in found.factors) == (given.get("decode", 1.0) is not None)


def test_kernels_really_used_stand_beside_the_figures() -> None:
    said = "0 of 28 eligible layers use sparse kernels"
    found = gain.of_measurement(measured(1.0), [said])
    assert found.told.endswith(f"smaller; {said}")
    row = {"name": "magnitude", "gain": found.to_dict(), "kept": True, "expected": None, "missed": []}
    assert said in str(page.gains({"gains": [row]}))


def test_a_factor_is_the_inverse_of_the_time_with_its_interval() -> None:
    found = worth(request=0.5, doubt=0.1, size=4).factors
    assert found["request_speedup"] == Factor(2, 1 / 0.6, 1 / 0.4)
    assert found["smaller"].value == 2.5
    assert str(found["request_speedup"]) == "2.00 times (1.67 to 2.50)"


@trials(max_examples=100, deadline=None)
@given(ratio=st.floats(0.2, 5), doubt=st.floats(0, 0.1), wanted=st.floats(0.1, 8))
def test_what_is_expected_is_there_when_the_interval_reaches_it(ratio: float, doubt: float, wanted: float) -> None:
    found = worth(ratio, doubt)
    missed = found.missed(Expect(request_speedup=wanted))
    assert bool(missed) == (1 / (ratio - doubt) < wanted)
    if missed:
        assert f"expected request_speedup = {wanted:g}, measured request" in missed[0]
    assert bool(found.missed(None)) == (found.verdict != "pays")


def test_every_missed_expectation_is_told() -> None:
    assert len(worth(1.0).missed(Expect(request_speedup=1.5, prefill_speedup=1.5, smaller=1.5))) == 3
    assert worth(0.5, size=5).missed(Expect(request_speedup=1.5, smaller=1.5)) == []


# -- the graph ---------------------------------------------------------------------------------------------------------


def digest(artifact: Artifact, folder: Path, masks: str | None = None, patterns: tuple[str, ...] = ()) -> str:
    folder.mkdir()
    artifact.save(folder)
    pattern = {n: MaskFact(masks, 0.5) for n in artifact.masks} if masks else {}
    return gain.graph_of(folder, tree.facts(artifact.model, artifact.task).after(masks=pattern), patterns)


def masked(artifact: Artifact) -> Artifact:
    masks = {}
    for name, layer in tree.block_linears(artifact.model).items():
        masks[name] = torch.arange(layer.in_features).expand(layer.weight.shape) % 4 < 2
        layer.weight.data *= masks[name]
    return artifact.after(masks=masks)


def narrowed(artifact: Artifact) -> Artifact:
    blocks.slice_(artifact.model, 1, neurons=torch.arange(32))
    return artifact


def halved(artifact: Artifact) -> Artifact:
    for parameter in artifact.model.parameters():
        parameter.data = parameter.data.half()
    return artifact


def test_the_graph_is_what_operators_shapes_and_types_come_from(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    plain = digest(tiny("llama"), tmp_path / "plain")
    assert digest(tiny("llama", seed=1), tmp_path / "other") == plain
    assert digest(masked(tiny("llama")), tmp_path / "zeros", "unstructured") == plain
    assert digest(masked(tiny("llama")), tmp_path / "idle", "2:4") == plain
    kinds = [GridFact(bits=4, group_size=8), GridFact(bits=4, group_size=16), GridFact(bits=4, group_size=8, zero=True)]
    coded = [partial(quantized, facts=kind) for kind in kinds]
    others: list[Callable[[Artifact], Artifact]] = [narrowed, halved, branched, *coded]
    digests = {digest(change(tiny("llama")), tmp_path / str(i)) for i, change in enumerate(others)}
    digests |= {plain, digest(masked(tiny("llama")), tmp_path / "fast", "2:4", ("2:4",))}
    assert len(digests) == len(others) + 2
    assert digest(coded[0](tiny("llama", seed=1)), tmp_path / "codes") == digest(
        coded[0](tiny("llama")), tmp_path / "again"
    )


def test_zeros_without_kernels_are_called_what_they_are(tiny: Callable[..., Artifact]) -> None:
    dense = tree.facts(tiny("llama").model, "causal-lm")
    pruned = dense.after(masks={n: MaskFact("unstructured", 0.5) for n in dense.shapes})
    found = gain.of_one_graph(dense, pruned, ("2:4",), "onnxruntime")
    assert found.verdict == "neutral"
    assert "onnxruntime has no kernels for unstructured zeros, which only make an archive of it smaller" in found.told
    assert "zeros" not in gain.of_one_graph(pruned, pruned, (), "onnxruntime").told
    assert found.missed(Expect(smaller=1.1)) == ["expected smaller = 1.1, measured engine files 1.00 times as small"]
    encoder: Facts = dense.after(task="classification")
    assert "decode_speedup" not in gain.of_one_graph(encoder, encoder, (), "onnxruntime").factors


# -- what a file may say -----------------------------------------------------------------------------------------------

TARGET = """[[target]]
name = "laptop"
prompt = 16
generate = 4
"""
SLOW, PRUNE = '[[pass]]\nuse = "slow"\n', '[[pass]]\nuse = "magnitude"\nsparsity = 0.5\n'
CODE = '''
"""Put branches beside all linears that add nothing but time, for the tests."""

import torch
from compress import blocks, tree
from compress.contracts import Pass
from compress.errors import BrokenPromise

RANK = 1024


class Slow(Pass):
    def plan(self, facts):
        more = RANK * sum(sum(shape) for shape in facts.shapes.values())
        return facts.after(branches=dict.fromkeys(sorted(facts.shapes), RANK), parameters=facts.parameters + more)

    def run(self, artifact, context):
        shapes = {n: m.weight.shape for n, m in tree.block_linears(artifact.model).items()}
        made = {n: blocks.Branch(torch.ones(RANK, i), torch.zeros(o, RANK)) for n, (o, i) in shapes.items()}
        blocks.branch_(artifact.model, made)
        return artifact

    def ensures(self, before, after):
        if not after.branches:
            raise BrokenPromise("slow: no branch")
'''


@pytest.fixture
def write(tiny: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a maker of pipeline files about a tiny model, with a third party's pass that slows the engine down."""
    site = tmp_path / "site"
    install(site, "slow_pass", CODE, slow="Slow")
    monkeypatch.syspath_prepend(str(site))
    artifact = tiny("llama-tied")
    blocks.drop_(artifact.model, [1])  # half the time that an export takes
    lay(tmp_path, artifact)

    def make(passes: str, run: str = "", export: str = "onnx", name: str = "pipeline") -> Path:
        path, text = tmp_path / f"{name}.toml", tmp_path / "text.txt"
        begun = head(tmp_path / "run", tmp_path / "model", text, calibration=4, evaluation=4, training=8)
        target = TARGET if export == "onnx" else ""
        rest = f'{target}{passes}\n[[export]]\nuse = "{export}"\n'
        path.write_text(begun.replace("[run]\n", f"[run]\n{run}\n") + rest)
        return path

    return make


@pytest.mark.parametrize(
    ("passes", "more", "said"),
    [
        (PRUNE + "expect = { decode_sped = 1.2 }", {}, "unknown expectation, got 'decode_sped'; did you mean"),
        (PRUNE + "expect = { smaller = 'much' }", {}, "smaller must be a number above 0, got 'much'"),
        (PRUNE + "expect = { smaller = -1 }", {}, "smaller must be a number above 0, got -1"),
        (PRUNE + "expect = {}", {}, "must say what is expected"),
        (PRUNE + "expect = 2", {}, "got 2"),
        (PRUNE + "on_no_gain = 'dorp'", {}, "must be 'keep', 'drop' or 'fail', got 'dorp'"),
        (PRUNE + "on_no_gian = 'drop'", {}, "did you mean 'on_no_gain'?"),
        (PRUNE + "expect = { smaller = 2 }", {"export": "safetensors"}, "pass[1].expect (magnitude): needs an engine"),
        (PRUNE + "on_no_gain = 'fail'", {"export": "safetensors"}, "pass[1].on_no_gain (magnitude): needs an engine"),
        (PRUNE, {"run": "gain = true", "export": "safetensors"}, "run.gain: needs an engine"),
    ],
)
def test_faults_of_expectations_are_found_before_any_work(
    passes: str, more: dict[str, str], said: str, write: Callable[..., Path]
) -> None:
    with pytest.raises(BadPipeline) as error:
        settings.check(write(passes, **more))
    assert len(error.value.faults) == 1
    assert said in str(error.value)


def test_an_encoder_writes_no_tokens_to_be_faster_at(write: Callable[..., Path]) -> None:
    path = write(PRUNE + "expect = { decode_speedup = 1.2 }")
    path.write_text(path.read_text().replace("generate = 4", "generate = 0"))
    with pytest.raises(BadPipeline, match="decode_speedup needs tokens to be generated"):
        settings.check(path)


def test_editors_know_of_expectations() -> None:
    schema = settings.schema()
    properties = schema["properties"]["pass"]["items"]["oneOf"][0]["properties"]
    assert {"expect", "on_no_gain"} <= properties.keys()
    assert schema["$defs"]["Expect"]["properties"].keys() == Expect.model_fields.keys()
    assert "gain" in schema["properties"]["run"]["properties"]


# -- on real engines ---------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let the clock be the real one, for a moment; return what it is asked to time."""
    asked: list[list[str]] = []
    real = measure.measure

    def short(folders: Any, *rest: Any, **options: Any) -> Measurement:
        asked.append([f"{f.parent.name}/{f.name}" for f in folders])
        return real(folders, *rest, **options | {"processes": 1, "seconds": 0.1})

    monkeypatch.setattr(measure, "measure", short)
    return asked


def test_worth_is_measured_when_asked_for_and_held_to_what_is_expected(
    write: Callable[..., Path], clock: list[list[str]], tmp_path: Path
) -> None:
    unasked = pipeline.run(write(PRUNE), quiet=True)
    assert unasked.report["gains"] == []
    assert page.gains(unasked.report) is None
    assert len(clock) == 1  # the shipped engine beside the dense one, as ever

    clock.clear()
    run = pipeline.run(write(PRUNE + SLOW, run="gain = true"), quiet=True)
    assert clock[0] == ["engines/laptop-dense", "engines/laptop"]  # nothing is built for zeros
    rows = {row["name"]: row for row in run.report["gains"]}
    assert list(rows) == ["magnitude", "slow"]
    assert all(row["kept"] for row in rows.values())
    assert rows["magnitude"]["gain"]["told"].startswith("neutral: the same graph")
    slow = rows["slow"]["gain"]
    assert slow["verdict"] == "costs"
    assert slow["factors"]["request_speedup"]["high"] < 1
    assert slow["factors"]["smaller"]["value"] < 1
    assert not (tmp_path / "run" / "gain").exists()
    assert json.loads((tmp_path / "run" / "report.json").read_text())["gains"] == run.report["gains"]
    html = (tmp_path / "run" / "report.html").read_text()
    assert "What each pass is worth" in html
    assert "which only make an archive of it smaller" in html

    clock.clear()
    kept = pipeline.run(write(PRUNE + SLOW + "expect = { decode_speedup = 1.1 }"), quiet=True)
    assert clock == []  # all of it was measured before
    magnitude, slow = kept.report["gains"]
    assert (magnitude["gain"], page.told(magnitude)) == (None, "-")
    assert slow["missed"][0].startswith("expected decode_speedup = 1.1, measured decode 0.")
    assert slow["kept"]
    assert kept.artifact.branches

    wanted = "expect = { decode_speedup = 1.2, smaller = 1.1 }"
    path = write(PRUNE + SLOW + wanted + "\non_no_gain = 'fail'")
    with pytest.raises(NoGain) as error:
        pipeline.run(path, quiet=True)
    said, line = str(error.value), 1 + path.read_text().splitlines().index(wanted)
    assert said.startswith(f"{path}:{line}: pass[2].expect (slow): expected decode_speedup = 1.2, measured decode 0.")
    assert "; expected smaller = 1.1, measured engine files 0." in said
    assert "\n" not in said
    assert error.value.exit_status == 2


def test_a_pass_that_is_left_out_leaves_no_trace_but_in_the_report(
    write: Callable[..., Path], clock: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = pipeline.run(write(PRUNE, export="safetensors", name="plain"), folder=tmp_path / "plain", quiet=True)
    drop = "on_no_gain = 'drop'\n"
    path = write(SLOW + drop + PRUNE)
    run = pipeline.run(path)
    assert clock[0] == ["engines/laptop-dense", "engines/laptop"]  # the zeros after it change no graph
    assert [step.name for step in run.steps] == ["dense", "magnitude"]
    ours, theirs = (files.sha256(r.steps[-1].folder / "compress.json") for r in (run, plain))
    assert ours == theirs
    slow, magnitude = run.report["gains"]
    assert (slow["name"], slow["kept"], slow["gain"]["verdict"]) == ("slow", False, "costs")
    assert magnitude["gain"] is None
    assert "slow is left out: expected that it pays, and it is costs: a request is 0." in capsys.readouterr().out
    assert "slow (left out)" in (tmp_path / "run" / "report.html").read_text()

    clock.clear()
    again = pipeline.run(path, quiet=True)
    assert again.report["gains"] == run.report["gains"]
    assert clock == []

    none = pipeline.run(write(SLOW + drop + PRUNE + drop), quiet=True)
    assert [step.name for step in none.steps] == ["dense"]
    assert [row["kept"] for row in none.report["gains"]] == [False, False]


def test_what_cannot_do_without_the_pass_left_out_is_told(write: Callable[..., Path], clock: list[list[str]]) -> None:
    needs = '[[pass]]\nuse = "perp"\ntrain = ["mask_lora"]\nsteps = 2\nrank = 2\nbatch = 2\n'
    path = write(PRUNE + "on_no_gain = 'drop'\n" + needs)
    with pytest.raises(BadPipeline, match="magnitude gains too little and is left out, and without it this cannot be"):
        pipeline.run(path, quiet=True)
