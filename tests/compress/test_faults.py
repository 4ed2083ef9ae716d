"""Every fault of the user gives one clear line and exit status 2, says what to do, and loses nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.artifact import Artifact
from compress.cli import cli
from tests.compress.conftest import head, lay, steps_in

REST = """[[pass]]
use = "magnitude"
sparsity = 0.5
[[pass]]
use = "perp"
rank = 2
steps = 4
batch = 2
[[export]]
use = "safetensors"
"""


@pytest.fixture(scope="module")
def saved(tiny: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay(tmp_path_factory.mktemp("saved"), tiny("llama"))


class Ground:
    """A folder of one test: a copy of the model, a text, and pipeline files over them."""

    def __init__(self, folder: Path, saved: Path) -> None:
        self.folder, self.model, self.text = folder, folder / "model", folder / "text.txt"
        shutil.copytree(saved, folder, dirs_exist_ok=True)

    def file(self, *changes: tuple[str, str], run: str = "run") -> Path:
        text = head(self.folder / run, self.model, self.text, training=8, evaluation=4) + REST
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = self.folder / "pipeline.toml"
        path.write_text(text)
        return path

    def fault(self, path: Path) -> str:
        """Run the file and return its one line of fault."""
        result = CliRunner().invoke(cli, ["run", str(path)])
        assert result.exit_code == 2, result.output + result.stderr
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, result.stderr
        assert "Traceback" not in result.output
        return lines[0]


@pytest.fixture
def ground(tmp_path: Path, saved: Path) -> Ground:
    return Ground(tmp_path, saved)


def test_missing_pipeline_file(ground: Ground) -> None:
    assert "nowhere.toml" in ground.fault(ground.folder / "nowhere.toml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('use = "perp"', 'use = "perp', r"pipeline\.toml:\d+:\d+: is no TOML"),
        ("rank = 2", "rnak = 2", r"pipeline\.toml:\d+: pass\[2\]\.rnak \(perp\).*'rank'"),
        ('use = "perp"', 'use = "prep"', r"'prep'.*'perp'"),
        ("sparsity = 0.5", "sparsity = 1.2", r"pass\[1\]\.sparsity.*1\.2"),
        ("sparsity = 0.5", 'pattern = "4:2"', r"must be 'unstructured' or N:M with N < M, got '4:2'"),
        ("sparsity = 0.5", 'pattern = "3:5"', r"3:5 does not divide the 32 inputs"),
        ("sparsity = 0.5", 'sparsity = 0.5\ninclude = ["qq_proj"]', r"include.*'qq_proj' matches no linear"),
    ],
)
def test_a_wrong_file(ground: Ground, old: str, new: str, said: str) -> None:
    assert re.search(said, ground.fault(ground.file((old, new))))
    assert not (ground.folder / "run" / "steps").exists()


def test_unknown_family(ground: Ground) -> None:
    config = ground.model / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"gptj"'))
    assert "'gptj' is not supported; supported: bert" in ground.fault(ground.file())


def test_empty_data(ground: Ground) -> None:
    ground.text.write_text("")
    assert "text.txt" in ground.fault(ground.file())


def test_text_shorter_than_one_window(ground: Ground) -> None:
    ground.text.write_text("the quick brown fox")
    assert re.search(r"text\.txt.*32", ground.fault(ground.file()))


def test_tokenizer_of_another_model(ground: Ground) -> None:
    tokenizer = ground.model / "tokenizer.json"
    text = tokenizer.read_text().replace('"added_tokens": [', '"added_tokens": [' + _added(range(400, 600)), 1)
    tokenizer.write_text(text)
    assert "do not belong together" in ground.fault(ground.file())


def test_truncated_safetensors(ground: Ground) -> None:
    weights = ground.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert re.search(r"model\.safetensors: truncated", ground.fault(ground.file()))


def test_a_pickle_is_refused_with_the_reason(ground: Ground) -> None:
    (ground.model / "model.safetensors").rename(ground.model / "pytorch_model.bin")
    assert "a pickle, which can run any code" in ground.fault(ground.file())


def test_a_hub_id_without_network(ground: Ground) -> None:
    path = ground.file((str(ground.model), "nobody/nothing"))
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(ground.folder / "home")}
    result = subprocess.run(
        [sys.executable, "-m", "compress.cli", "check", str(path)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    assert "nobody/nothing" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_run_folder_in_use(ground: Ground) -> None:
    path = ground.file()
    holder = "from pathlib import Path\nfrom compress.pipeline.lock import locked\nimport time\n"
    holder += f"with locked(Path({str(ground.folder / 'run')!r})):\n print('held', flush=True)\n time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "held"
        assert f"another run works in this folder (process {process.pid})" in ground.fault(path)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(ground: Ground, small_disk: Path) -> None:
    path = ground.file((str(ground.folder / "run"), str(small_disk / "run")))
    assert "no space left on the disk; free some" in ground.fault(path)
    finished = sorted((small_disk / "run" / "steps").glob("*/compress.json"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert CliRunner().invoke(cli, ["run", str(path)]).exit_code == 0
    assert all(f.exists() for f in finished)


def test_an_artifact_edited_by_hand(ground: Ground) -> None:
    path = ground.file()
    assert CliRunner().invoke(cli, ["run", str(path)]).exit_code == 0
    config = next((ground.folder / "run" / "steps").glob("01-dense-*/config.json"))
    config.write_text(config.read_text() + " ")
    assert re.search(r"config\.json: was changed after it was written.*delete", ground.fault(path))


def test_ctrl_c_is_clean_and_resumable(ground: Ground) -> None:
    path = ground.file(("steps = 4", "steps = 4000"))
    command = [sys.executable, "-m", "compress.cli", "run", str(path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    deadline = time.monotonic() + 120
    while not list((ground.folder / "run").glob("partial/03-perp-*/*.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2, errors
    assert errors.strip().splitlines() == ["stopped; everything finished is kept, run the same command again to go on"]
    assert steps_in(ground.folder / "run") == ["01-dense", "02-magnitude"]


def _added(numbers: range) -> str:
    one = '{{"id": {0}, "content": "<{0}>", "single_word": false, "lstrip": false, "rstrip": false, '
    one += '"normalized": false, "special": false}},'
    return "".join(one.format(n) for n in numbers)
