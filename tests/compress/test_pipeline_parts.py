"""The parts of the runner by themselves: code digest, lock, console."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from compress import settings
from compress.errors import Busy
from compress.pipeline import code
from compress.pipeline.code import code_digest
from compress.pipeline.console import Console
from compress.pipeline.lock import locked
from compress.pipeline.runner import Runner


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A third party's plug-in package: `method` uses `helper`, and `stranger` is used by nobody."""
    root = tmp_path / "thirdparty"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "helper.py").write_text("RATE = 1\n")
    (root / "stranger.py").write_text("RATE = 1\n")
    (root / "method.py").write_text(
        textwrap.dedent(
            '''
            """Card."""
            from typing import TYPE_CHECKING
            from thirdparty.helper import RATE
            if TYPE_CHECKING:
                from thirdparty.stranger import RATE as OTHER

            def method(x):
                """Say."""
                return x * RATE
            '''
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return root


def _digest() -> str:
    for cached in (code_digest, code._is_module):
        cached.cache_clear()
    return code_digest("thirdparty.method")


def test_code_digest_notices_code_and_what_it_uses(package: Path) -> None:
    first = _digest()
    (package / "helper.py").write_text("RATE = 2\n")
    second = _digest()
    assert second != first
    method = package / "method.py"
    method.write_text(method.read_text().replace("x * RATE", "x + RATE"))
    assert _digest() not in {first, second}


def test_code_digest_ignores_comments_docstrings_and_strangers(package: Path) -> None:
    first = _digest()
    (package / "stranger.py").write_text("RATE = 3\n")
    method = package / "method.py"
    method.write_text("# a comment\n" + method.read_text().replace("Say.", "Say it better.").replace("Card.", "New."))
    assert _digest() == first


def test_code_digest_follows_our_own_imports() -> None:
    seen = set(code._imports(code._read(code._files("compress.artifact")[0])))
    assert {"compress.files", "compress.loading", "compress.tree"} <= seen
    assert code_digest("compress.artifact") != code_digest("compress.files")


def test_a_locked_folder_is_busy_for_others_and_free_after_a_kill(tmp_path: Path) -> None:
    script = "import sys,time\nfrom pathlib import Path\nfrom compress.pipeline.lock import locked\n"
    script += "with locked(Path(sys.argv[1])):\n print('held', flush=True)\n time.sleep(60)\n"
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "held"
    with pytest.raises(Busy, match=f"process {holder.pid}"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_console_prints_plain_lines_when_piped_and_logs_them(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(tmp_path / "run.log", out)
    console.begin(1, 3, "perp", cached=False)
    with console.bar("training", total=4) as bar:
        bar.advance(4)
    console.note("kept [all] zeros")
    console.record("loss", 1.5)
    console.end(61.2)
    printed = out.getvalue().splitlines()
    assert printed == ["[1/3] perp: started", "  kept [all] zeros", "[1/3] perp: done in 1 min 01 s"]
    assert console.notes == ["kept [all] zeros"]
    assert console.measured == {"loss": [1.5]}
    assert "kept [all] zeros" in (tmp_path / "run.log").read_text()


def test_each_training_of_a_chain_has_a_turn_of_its_own() -> None:
    opened = settings.read(Path(__file__).parents[2] / "examples" / "full.toml")
    keys = Runner(opened, Path("x"), Console(Path("/dev/null"), quiet=True)).keys
    turns = {e.name: keys.turn(e) for e in opened.passes}
    assert turns == {"bld": 0, "puzzle": 0, "gkd": 1, "magnitude": 0, "perp": 2, "l4q": 3}
