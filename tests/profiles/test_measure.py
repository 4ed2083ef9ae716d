"""Taking profiles with a clock whose truth is known: slopes, base, wholes, what is doubtful, resumed and drifted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import profiles
from compress.contracts import Target
from compress.errors import BadModel, BadSettings
from compress.measure import Measurement
from compress.profiling import Wanted, profiler
from profiles import Attention, Base, Choice, Ffn, ForeignProfile, NotMeasured, _planning, _probe, _taking
from profiles._slopes import Unmeasurable
from profiles.measure import Measure

WANTED = Wanted(
    model="demo", target=Target(prompt=16, generate=4), neurons=(64,), kv_heads=(1,), models=6, processes=1,
    precisions=("fp32", "int4-g32"),
)  # fmt: skip


class Shop:
    """Engines that are nothing but the order of their parts."""

    def __init__(self, *_: Any) -> None:
        pass

    def build(self, order: Sequence[Choice], folder: Path, vocabulary: int | None = None) -> Path:
        folder.mkdir(parents=True)
        card = {"parts": [c.model_dump() for c in order], "vocabulary": vocabulary}
        (folder / "order.json").write_text(json.dumps(card))
        return folder


class Clock:
    """The truth: ms of a part by its weights and bits, a base by its vocabulary, an interaction, a load that grows."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.slow, self.interaction, self.flip = 1.0, 1.0, 0
        self.negative: set[str] = set()
        self.per_mib = 0.0  # of weights of engines with the model's own head, at decoding: others stay in the cache

    def part(self, choice: Choice, phase: str) -> float:
        size = choice.part.weights / 1e5 * (0.5 if choice.precision != "fp32" else 1.0)
        return size * {"prefill": 16, "decode": 1}[phase] + 0.1

    def base(self, vocabulary: int | None, phase: str) -> float:
        return ((vocabulary or 251) / 1e3 + 0.2) * {"prefill": 4, "decode": 1}[phase]

    def memory(self, picks: Sequence[Choice], vocabulary: int | None, phase: str) -> float:
        charged = phase == "decode" and vocabulary == 4096
        return self.per_mib * sum(c.bytes_with(4) for c in picks) / 2**20 if charged else 0.0

    def whole(self, folder: Path, phase: str) -> float:
        card = json.loads((folder / "order.json").read_text())
        picks = [Choice.model_validate(c) for c in card["parts"]]
        kinds = {c.part for c in picks}
        total = sum(-0.1 * self.part(c, phase) if c.part.part in self.negative else self.part(c, phase) for c in picks)
        return (
            self.base(card["vocabulary"], phase)
            + total * (self.interaction if len(kinds) > 2 else 1.0)
            + self.memory(picks, card["vocabulary"], phase)
            + 50.0 * bool(self.negative)
        )

    def __call__(self, folders: Sequence[Path], target: Target, report: Any = None, **options: Any) -> Measurement:
        self.calls.append(len(folders))
        self.slow *= 1.1  # the machine gets slower and slower; ratios to the reference do not
        engines = []
        for folder in folders:
            phases = {}
            for phase in ("prefill", "decode"):
                ms, first = (self.slow * self.whole(f, phase) for f in (folder, folders[0]))
                ratio = ms / first
                phases[phase] = {
                    "ms": ms, "ratio": ratio, "ratio_low": ratio * 0.999, "ratio_high": ratio * 1.001, "cpu_ms": ms,
                    "wall_ms": ms, "wall_p10_ms": ms, "spread": 0.01, "runs": 100, "flags": [],
                }  # fmt: skip
            count = len(json.loads((folder / "order.json").read_text())["parts"])
            engines.append(
                {"folder": str(folder), **phases, "request": phases["prefill"], "tokens_per_second": 1.0,
                 "load_seconds": 1.0, "memory_mib": 10.0 + 2.0 * count, "file_mib": 1.0}
            )  # fmt: skip
        return Measurement.model_validate(
            {"format": 1, "request": {}, "clock": "thread CPU time", "cache": "interleaved blocks", "processes": 1,
             "load_average": 1.0, "machine": {}, "versions": {}, "engines": engines, "flags": []}
        )  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(_taking, "Workshop", Shop)
    monkeypatch.setattr("compress.measure.measure", found)
    return found


def test_every_part_is_what_one_more_copy_adds(clock: Clock, tmp_path: Path, quiet: Any) -> None:
    path = tmp_path / "p.json"
    Measure().take(WANTED, path, quiet)
    profile = profiles.open(path, WANTED.target)
    assert isinstance(profile, profiles.Profile)
    shapes = {str(c.part) for c in profile.choices}
    assert shapes == {
        "attention 256: 8 heads on 4 of 32", "attention 256: 8 heads on 1 of 32", "ffn 256: 768 neurons",
        "ffn 256: 64 neurons", "base 256: 4096 tokens",
    }  # fmt: skip
    for choice in profile.choices:
        for phase in ("prefill", "decode"):
            wanted = clock.base(4096, phase) if isinstance(choice.part, Base) else clock.part(choice, phase)
            assert profile.time(choice, phase, 1, 16).ms == pytest.approx(
                wanted * 1.1, rel=1e-6
            )  # the first run's load
    assert {p.memory_mib for p in profile.document.parts} <= {2.0, None}
    assert profile.line("prefill", 1, 16).slope == pytest.approx(1.0, rel=1e-6)


def test_wholes_tell_what_sums_miss(clock: Clock, tmp_path: Path, quiet: Any) -> None:
    clock.interaction = 1.25
    path = tmp_path / "p.json"
    Measure().take(WANTED, path, quiet)
    profile = profiles.read(path)
    line = profile.line("prefill", 1, 16)
    assert 1.05 < line.slope < 1.35
    assert len(profile.document.wholes) == 6
    picks = _planning.wholes(_planning.plan(WANTED), 20, 1)[-1]
    assert profile.predict(picks, profile.base, WANTED.target)["prefill_ms"].fitted


def test_a_killed_take_goes_on_and_nothing_is_measured_twice(
    clock: Clock, tmp_path: Path, quiet: Any, monkeypatch: Any
) -> None:
    path, whole = tmp_path / "p.json", tmp_path / "whole.json"
    Measure().take(WANTED, whole, quiet)
    full = len(clock.calls)
    keep, count = _taking.Session.save, 0

    def save(self: Any) -> None:
        nonlocal count
        keep(self)
        count += 1
        if count == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(_taking.Session, "save", save)
    clock.calls.clear()
    with pytest.raises(KeyboardInterrupt):
        Measure().take(WANTED, path, quiet)
    monkeypatch.setattr(_taking.Session, "save", keep)
    Measure().take(WANTED, path, quiet)
    assert len(clock.calls) <= full + 1
    first, again = (profiles.read(p) for p in (whole, path))
    assert set(first.choices) == set(again.choices)
    scale = again.time(first.choices[0], "decode", 1, 16).ms / first.time(first.choices[0], "decode", 1, 16).ms
    for choice in first.choices:
        times = [p.time(choice, "decode", 1, 16).ms for p in (first, again)]
        assert times[1] == pytest.approx(scale * times[0])
    clock.calls.clear()
    Measure().take(WANTED, path, quiet)
    assert clock.calls == []


def test_another_request_or_shape_adds_to_a_profile(clock: Clock, tmp_path: Path, quiet: Any) -> None:
    path = tmp_path / "p.json"
    Measure().take(WANTED, path, quiet)
    before = profiles.read(path)
    more = Wanted(model="demo", target=WANTED.target, shapes=("ffn:256,32",), requests=((2, 8),), models=0)
    Measure().take(more, path, quiet)
    after = profiles.read(path)
    narrow = Choice(part=Ffn(family="llama", hidden=256, neurons=32))
    assert after.time(narrow, "decode", 2, 8).ms > 0
    with pytest.raises(NotMeasured, match="holds no ffn 256: 32"):
        before.time(narrow, "decode", 1, 16)
    for choice in before.choices:
        assert after.time(choice, "prefill", 1, 16) == before.time(choice, "prefill", 1, 16)


@pytest.mark.parametrize("cache", [64.0, 8.0])
def test_weights_that_leave_the_cache_are_charged_by_the_mib(
    cache: float, clock: Clock, tmp_path: Path, quiet: Any, monkeypatch: Any
) -> None:
    """The demo model has 22 MiB, so that it fits into the first cache only; parts are timed within it in any case."""
    clock.per_mib = 0.25 if cache < 22 else 0.0
    monkeypatch.setattr(_taking, "HEAD", 2**19)  # engines of parts have half the model's vocabulary
    machine = profiles.here(WANTED.target).model_copy(update={"cache_mib": cache})
    monkeypatch.setattr(_taking, "here", lambda *_: machine)
    path = tmp_path / "p.json"
    Measure().take(WANTED, path, quiet)
    profile = profiles.read(path)
    assert profile.document.taken.cached is (cache > 22)
    line = profile.line("decode", 1, 16)
    assert (line.slope, line.per_mib) == pytest.approx((1.0, 1.1 * clock.per_mib), rel=1e-6, abs=1e-9)
    assert profile.line("prefill", 1, 16).per_mib == 0
    for picks in _planning.wholes(_planning.plan(WANTED), 5, 1):
        parts = sum(clock.part(c, "decode") for c in picks) + clock.memory(picks, 4096, "decode")
        truth = 1.1 * (clock.base(4096, "decode") + parts)
        assert profile.predict(picks, profile.base, WANTED.target)["decode_ms"].ms == pytest.approx(truth, rel=1e-6)
        summed = [profile.costs(choice, WANTED.target)["decode_ms"] for choice in (profile.base, *picks)]
        assert sum(summed) == pytest.approx(truth, rel=1e-6)
    assert ("ms for each MiB" in "\n".join(Measure().lines(path))) is (cache < 22)

    for parameters in (10**6, 10**8):
        warnings: list[str] = []
        profiles.open(path, WANTED.target, parameters=parameters, warnings=warnings)
        assert [line[-12:] for line in warnings] == ["they are off"] * ((parameters == 10**6) != (cache > 22))
    other = machine.model_copy(update={"cache_mib": 72.0 - cache})
    monkeypatch.setattr(_taking, "here", lambda *_: other)
    before = path.read_bytes()
    with pytest.raises(
        BadSettings, match=r"p\.json: holds times for models that do.* fit into the cache, and this is one"
    ):
        Measure().take(WANTED, path, quiet)
    assert path.read_bytes() == before


def test_a_cache_that_no_system_tells_is_taken_for_a_large_one() -> None:
    machine = profiles.here(WANTED.target).model_copy(update={"cache_mib": None})
    assert profiles.cached(2**24, machine)  # 64 MiB
    assert not profiles.cached(2**24 + 1, machine)
    assert profiles.cached(2**25, machine.model_copy(update={"precision": "fp16"}))


def test_the_largest_cache_is_read_from_the_system(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(_probe, "_CACHES", tmp_path)
    assert _probe.probe("cpu", ())["cache_mib"] is None
    for index, size in enumerate(("32K", "2M", "1536K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert _probe.probe("cpu", ())["cache_mib"] == 2.0


def test_what_takes_no_time_is_measured_again_and_fails_by_name(clock: Clock, tmp_path: Path, quiet: Any) -> None:
    clock.negative = {"ffn"}
    path = tmp_path / "p.json"
    with pytest.raises(Unmeasurable, match=r"ffn 256: 768 neurons, fp32: one more copy takes no time \(prefill -"):
        Measure().take(WANTED, path, quiet)
    kept = profiles.read(path)
    assert all(t.ms > 0 for p in kept.document.parts for t in p.times)
    assert {type(c.part) for c in kept.choices} <= {Attention, Base}
    assert clock.calls.count(1 + 2 * 2) >= 2  # those alone again


def test_a_profile_of_another_machine_is_not_gone_on_with(clock: Clock, tmp_path: Path, quiet: Any) -> None:
    path = tmp_path / "p.json"
    Measure().take(WANTED, path, quiet)
    content = json.loads(path.read_text())
    content["machine"]["model"] = "Other"
    path.write_text(json.dumps(content))
    with pytest.raises(ForeignProfile, match="model Other, wanted "):
        Measure().take(WANTED, path, quiet)
    with pytest.raises(ForeignProfile, match="model Other"):
        Measure().check(WANTED, path, quiet)
    assert "used all the same" in Measure().check(WANTED, path, quiet, allow_foreign=True)[0]


def test_a_check_tells_drift_and_writes_nothing(clock: Clock, tmp_path: Path, quiet: Any) -> None:
    path = tmp_path / "p.json"
    Measure().take(WANTED, path, quiet)
    before = path.read_bytes()
    clock.slow = 1.0
    assert {line.partition(":")[0] for line in Measure().check(WANTED, path, quiet)} == {"holds"}
    clock.slow = 1.5
    assert {line.partition(":")[0] for line in Measure().check(WANTED, path, quiet)} == {"DRIFTED"}
    assert path.read_bytes() == before


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"copies": (4,)}, BadSettings, "two or more ascending depths"),
    ({"copies": (8, 4)}, BadSettings, "two or more ascending depths"),
    ({"precisions": ("fp16",)}, BadSettings, "the target's graph is fp32, got 'fp16'"),
    ({"precisions": ("int9",)}, BadSettings, "must be one of fp32"),
    ({"patterns": ("4:2",)}, BadSettings, "N < M, got '4:2'"),
    ({"kv_heads": (3,)}, BadSettings, "must divide 8 query heads, got 3"),
    ({"shapes": ("ffn:1",)}, BadSettings, "must be attention:HIDDEN"),
    ({"requests": ((1, 600),)}, BadSettings, "more than the 512 positions"),
    ({"model": "./nowhere"}, BadModel, "no such folder"),
]


@pytest.mark.parametrize(("change", "kind", "told"), WRONG)
def test_bad_wishes_are_one_line(
    change: dict[str, Any], kind: type[Exception], told: str, tmp_path: Path, quiet: Any
) -> None:
    wishes = {"model": "demo", "target": Target(prompt=16, generate=4), **change}
    with pytest.raises(kind, match=told) as caught:
        Measure().take(Wanted(**wishes), tmp_path / "p.json", quiet)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "p.json").exists()


def test_random_wholes_are_the_same_for_one_seed_and_never_mix_kernels() -> None:
    wishes: dict[str, Any] = {"precisions": ("fp32", "int4-g32", "int4-g32-exact"), "neurons": (64, 128)}
    plan = _planning.plan(Wanted(model="demo", target=Target(prompt=16, generate=4), **wishes))
    many = _planning.wholes(plan, 40, 3)
    assert many[:10] == _planning.wholes(plan, 10, 3)
    assert many != _planning.wholes(plan, 40, 4)
    for picks in many:
        kinds = {c.precision.endswith("-exact") for c in picks if c.precision != "fp32"}
        assert len(kinds) <= 1
    assert {type(c.part) for picks in many for c in picks} == {Attention, Ffn}


@pytest.mark.parametrize(("blocks", "room", "deepest"), [(6, 2**30, 6), (40, 2**30, 40), (40, 0, 8)])
def test_whole_models_are_as_deep_as_the_model_where_there_is_room(
    blocks: int, room: int, deepest: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(_planning, "_ROOM", room)
    plan = replace(_planning.plan(Wanted(model="demo", target=Target(prompt=16, generate=4))), blocks=blocks)
    longest = max(len(picks) for picks in _planning.wholes(plan, 400, 0))  # some blocks have one part, most have two
    assert 1.7 * deepest <= longest <= 2 * deepest


def test_a_pipeline_tells_model_target_shapes_and_codes(tmp_path: Path) -> None:
    from compress.profiling import of_pipeline

    file = tmp_path / "pipeline.toml"
    file.write_text(
        '[model]\nsource = "demo"\n[[pass]]\nuse = "rtn"\nbits = 4\ngroup_size = 32\n'
        '[[target]]\nname = "a"\nprompt = 8\n[[target]]\nname = "b"\nprompt = 24\n'
    )
    wanted = Wanted(**of_pipeline(file, "b"))
    assert wanted.target.prompt == 24
    plan = _planning.plan(wanted)
    assert {c.precision for c in plan.choices} == {"fp32", "int4-g32"}
    assert plan.requests == ((1, 24),)
    with pytest.raises(BadSettings, match="has no target 'c'; there are a, b"):
        of_pipeline(file, "c")


def test_the_command_line_reaches_profiles_by_name() -> None:
    assert isinstance(profiler(), Measure)
    assert profiler().known("h100-sxm")
    assert not profiler().known("h100-sxm-2")
    assert profiler().document("l4")["estimated"] is True
    assert "parts" in profiler().schema()["properties"]


@pytest.fixture
def quiet() -> Any:
    from compress.context import QuietReport

    return QuietReport()
