"""The command line: help at once, one line for every fault, the right exit status."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import compress
from compress import errors
from compress.artifact import Artifact
from compress.cli import cli

VERBS = (
    "run", "sweep", "check", "plan", "evaluate", "generate", "export", "report", "compare", "list", "show", "init",
    "doctor",
)  # fmt: skip


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="compress")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    artifact = tiny("llama")
    artifact.model.save_pretrained(folder)
    artifact.tokenizer.save_pretrained(folder)
    return folder


def test_help_needs_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'pydantic', 'numpy', 'datasets', 'rich', 'onnxruntime'}"
    done = python(
        "import sys; sys.argv = ['compress', '--help']\n"
        "import compress.cli\n"
        "try: compress.cli.main()\n"
        f"except SystemExit as end: sys.exit(end.code or ' '.join({heavy} & set(sys.modules)) or 0)"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {v} " in done.stdout for v in VERBS)


def test_version() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("compress")
    as_module = [sys.executable, "-m", "compress", "--version"]
    assert subprocess.run(as_module, capture_output=True, text=True, check=True).stdout == result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0
    assert f"compress {verb} " in result.output.split("Examples:")[1] or verb == "doctor"


def test_the_users_faults_are_lines_with_status_2(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("[run]\nsed = 1\n")
    result = call("check", path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert [line.removeprefix(f"{path}:")[:8] for line in result.stderr.splitlines()] == ["1: model", "2: run.s"]
    assert call("check").exit_code == call("chekc").exit_code == call("run").exit_code == 2


def test_a_missing_file_ends_a_process_with_2() -> None:
    done = python("import sys; sys.argv = ['compress', 'run', 'none.toml']; import compress.cli; compress.cli.main()")
    assert done.returncode == 2
    assert done.stderr == "none.toml: no such file; `compress init MODEL -o none.toml` writes one\n"


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (errors.BadModel("no such folder"), 2, "no such folder\n"),
        (errors.ParityError("logits differ"), 1, "logits differ\n"),
        (KeyboardInterrupt(), 2, "stopped; run the same command again to go on\n"),
    ],
)
def test_exit_status(error: BaseException, status: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("compress.settings.read", fail)
    result = call("check", "p.toml")
    assert (result.exit_code, result.stderr) == (status, says)


def test_a_fault_of_ours_is_one_line_and_a_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("compress.settings.read", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = call("check", "p.toml")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("ZeroDivisionError: a b; this is a fault of compress, the log is at ")
    assert "Traceback" in Path(line.rpartition(" ")[2]).read_text()
    assert "Traceback" in call("--debug", "check", "p.toml").stderr


def test_check_tells_of_a_healthy_file_and_prints_the_schema(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    assert call("init", model, "-o", path).exit_code == 0
    result = call("check", path)
    assert result.exit_code == 0, result.output
    assert "magnitude -> perp -> onnx; llama, " in result.stdout
    assert json.loads(call("check", "--schema").stdout)["required"] == ["model"]


def test_list_shows_rooms_and_cards() -> None:
    shown = call("list").stdout
    assert "passes:\n" in shown
    assert re.search(r"^  magnitude +Magnitude pruning", shown, re.MULTILINE)
    assert re.search(r"^  llama +Llama", shown, re.MULTILINE)
    card = call("list", "magnitude").stdout
    assert "Formula:" in card
    assert "  sparsity = none  # number >= 0, < 1\n      share of zeros" in card
    wrong = call("list", "magnitud")
    assert (wrong.exit_code, wrong.stderr) == (2, "no pass, exporter or family 'magnitud'; did you mean 'magnitude'?\n")
    assert json.loads(call("list", "llama", "--json").stdout)["room"] == "families"


def test_show_tells_what_a_folder_is(model: Path, tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact: Any = tiny("llama")
    name = "model.layers.0.self_attn.q_proj"
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[:, :8] = False
    with torch.no_grad():
        artifact.model.get_submodule(name).weight.mul_(mask)
    (tmp_path / "artifact").mkdir()
    artifact.after(masks={name: mask}).save(tmp_path / "artifact")
    found = compress.show(tmp_path / "artifact")
    assert found["kind"] == "artifact"
    assert found["sparsity"] == {name: 0.25}
    assert "25.00%" in call("show", tmp_path / "artifact").stdout
    assert compress.show(model)["kind"] == "model"
    wrong = call("show", tmp_path)
    assert wrong.exit_code == 2
    assert "no run, artifact, engine or model folder" in wrong.stderr


def test_export_writes_what_the_exporter_writes(model: Path, tmp_path: Path) -> None:
    result = call("export", model, tmp_path / "out", "--use", "safetensors")
    assert result.exit_code == 0, result.output
    assert list((tmp_path / "out").glob("*.safetensors"))
    again = call("export", model, tmp_path / "out", "--use", "safetensors")
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    wrong = call("export", model, tmp_path / "other", "--use", "onnx", "--set", "zzz=1")
    assert wrong.exit_code == 2
    assert "unknown setting" in wrong.stderr
    assert not (tmp_path / "other").exists()


def test_an_engine_is_exported_shown_asked_and_evaluated(model: Path, tmp_path: Path) -> None:
    engine, text = tmp_path / "engine", tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog, again and again. " * 40)
    result = call("export", model, engine, "--target", "name=x", "--target", "prompt=8", "--target", "generate=4")
    assert (result.exit_code, result.stdout) == (0, f"{engine}\n"), result.output
    shown = call("show", engine).stdout
    assert "target: name x, runtime onnxruntime, device cpu, threads 1, batch 1, prompt 8, generate 4" in shown
    assert "parity: logits differ from the model's by at most " in shown
    asked = call("generate", engine, "the quick", "--tokens", "4")
    assert asked.exit_code == 0
    assert asked.stdout == call("generate", engine, "the quick", "--tokens", "4").stdout
    options = ("--data", text, "--set", "length=32", "--set", "windows=4")
    found = json.loads(call("evaluate", engine, *options, "--parent", model, "--json").stdout)
    assert found["kind"] == "engine"
    assert {d["name"]: abs(d["value"]) < 1e-4 for d in found["deltas"]}["nats_per_token"]
    told = call("evaluate", model, *options).stdout
    assert told.startswith(f"{model} (model), with 95 % intervals:\n  perplexity ")
    wrong = call("evaluate", model, "--set", "windws=4")
    assert (wrong.exit_code, wrong.stderr) == (2, "data.evaluation.windws: unknown setting; did you mean 'windows'?\n")


def test_doctor_ends_with_2_only_when_something_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from compress import doctor

    findings = {level: [doctor.Finding(level, "gpu", "there")] for level in ("ok", "warn", "error")}
    statuses = {}
    for level, found in findings.items():
        monkeypatch.setattr(doctor, "doctor", lambda found=found: found)
        result = call("doctor")
        statuses[level] = result.exit_code
        assert result.stdout.startswith(level)
    assert statuses == {"ok": 0, "warn": 0, "error": 2}


def test_the_face_imports_nothing_before_it_is_used() -> None:
    done = python(
        "import sys, compress; print(sorted({'torch', 'pydantic', 'click'} & set(sys.modules)), compress.read)"
    )
    assert done.stdout.startswith("[] <function read")
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        compress.rum  # noqa: B018
