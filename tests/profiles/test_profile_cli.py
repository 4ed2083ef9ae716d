"""`compress profile` and `compress show` of profiles, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import profiles
from compress.cli import cli
from compress.contracts import Target
from profiles import Base


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_show_tells_of_a_datasheet_and_of_no_such_thing() -> None:
    told = call("show", "h100-sxm")
    assert told.exit_code == 0
    assert "estimated by arithmetic, not measured" in told.stdout
    assert "https://glennklockwood.com/garden/processors/h100" in told.stdout
    assert json.loads(call("show", "l4", "--json").stdout)["bandwidth_gb_s"] == 300
    wrong = call("show", "h100-sxn")
    assert (wrong.exit_code, wrong.stderr) == (2, "h100-sxn: no such folder\n")


def test_a_file_that_is_no_profile_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    wrong = call("show", tmp_path / "x.json")
    assert wrong.exit_code == 2
    assert wrong.stderr == f"{tmp_path / 'x.json'}: is no latency profile: its 'kind' is not 'latency profile'\n"


def test_the_schema_is_printed_alone() -> None:
    schema = json.loads(call("profile", "--schema").stdout)
    assert {"machine", "parts", "wholes", "taken"} <= schema["properties"].keys()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give the SOURCE, a pipeline file or a model, or --schema"),
        (("demo", "--copies", "4;8"), "--copies must be depths such as 4,8, got '4;8'"),
        (("demo", "--precision", "int9"), "must be one of fp32, fp16"),
        (("demo", "--shape", "ffn:12"), "must be attention:HIDDEN,HEADS,KV_HEADS,HEAD_DIM or ffn:HIDDEN,NEURONS"),
        (("nowhere.toml",), "nowhere.toml: no such file"),
    ],
)
def test_bad_options_are_one_line(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    wrong = call("profile", *arguments, "-o", tmp_path / "p.json")
    assert wrong.exit_code == 2
    assert told in wrong.stderr


@pytest.mark.slow
def test_a_real_profile_predicts_a_real_engine(tmp_path: Path) -> None:
    """The whole way, on this machine: measured, shown, and a model that was no part of it predicted."""
    path = tmp_path / "p.json"
    done = call(
        "profile", "demo", "-o", path, "--prompt", "16", "--neurons", "128", "--models", "6", "--seconds", "0.3"
    )
    assert done.exit_code == 0, done.output
    assert "whole models, decode 1 x 16" in call("show", path).stdout
    profile = profiles.read(path)
    target = Target(prompt=16, generate=4)
    picks = [c for c in profile.choices if not isinstance(c.part, Base)] * 4
    found = profile.predict(picks, profile.base, target)
    assert all(p.fitted for p in found.values())
    assert sum(profile.costs(c, target)["decode_ms"] for c in [*picks, profile.base]) == pytest.approx(
        found["decode_ms"].ms
    )
