"""Profiles of other machines: files go there, the clock runs there with nothing of ours, figures come back."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest

import profiles
from compress import hosts, measure
from compress.context import QuietReport
from compress.contracts import Target
from compress.errors import Unavailable, UserFault
from compress.profiling import Wanted
from profiles import here
from profiles.measure import Measure
from tests.profiles.test_measure import Clock, Shop

TARGET = Target(prompt=8, generate=2)
SSH = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done
[ "$1" = board ] || { echo "ssh: Could not resolve hostname $1" >&2; exit 255; }
cd "$BOARD" && PATH="$BOARD/bin:/usr/bin:/bin" PYTHONPATH="$BOARD/site" TMPDIR="$BOARD/tmp" sh -c "$2"
"""
SCP = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done
cp -r "${1#board:}" "${2#board:}"
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `ssh board` runs in, with a Python that has numpy and onnxruntime and nothing else."""
    made = tmp_path / "board"
    for name in ("bin", "site", "tmp"):
        (made / name).mkdir(parents=True)
    for module in (numpy, onnxruntime):
        source = Path(str(module.__file__)).parent
        for folder in (*source.parent.glob(f"{source.name}.libs"), *source.parent.glob(f"{source.name}-*"), source):
            (made / "site" / folder.name).symlink_to(folder)
    _program(made / "bin" / "python3", f'#!/bin/sh\nexec "{_bare()}" -s "$@"\n')
    tools = tmp_path / "tools"
    tools.mkdir()
    _program(tools / "ssh", SSH)
    _program(tools / "scp", SCP)
    monkeypatch.setenv("BOARD", str(made))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return made


def _bare() -> str:
    """The interpreter that this environment was made of."""
    return getattr(sys, "_base_executable", sys.executable)


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_clock_runs_there_with_nothing_of_ours(board: Path, engine_of: Callable[..., Path]) -> None:
    one, two = engine_of("llama"), engine_of("gpt2")
    with hosts.reached("board") as host:
        found = measure.measure([one, two], TARGET, processes=1, seconds=0.02, host=host)
        assert len(list((board / "tmp").glob("tmp.*"))) == 1
        assert host.put(one) == host.put(one)
        host.forget([one])
        assert here(TARGET, host) == here(TARGET)
    assert [e.folder for e in found.engines] == [str(one), str(two)]
    assert all(e.prefill.ms > 0 and e.decode for e in found.engines)
    assert not list((board / "tmp").glob("tmp.*"))  # nothing is left there


def test_a_profile_of_another_machine(board: Path, tmp_path: Path, monkeypatch: Any) -> None:
    clock, asked = Clock(), []

    def timed(*args: Any, host: Any, **options: Any) -> Any:
        asked.append(host.name)
        host.put(args[0][0])
        return clock(*args, **options)

    monkeypatch.setattr("profiles._taking.Workshop", Shop)
    monkeypatch.setattr("compress.measure.measure", timed)
    wanted = Wanted(model="demo", target=TARGET, models=0, host="board")
    Measure().take(wanted, tmp_path / "p.json", QuietReport())
    assert set(asked) == {"board"}
    assert profiles.read(tmp_path / "p.json").machine == here(TARGET)
    lines = Measure().check(wanted, tmp_path / "p.json", QuietReport())
    assert all(line.startswith(("holds", "DRIFTED")) for line in lines)
    assert len(asked) == 3
    assert not list((board / "tmp").glob("tmp.*"))


def test_what_a_host_lacks_is_one_clear_line(board: Path, engine_of: Callable[..., Path], monkeypatch: Any) -> None:
    with pytest.raises(
        UserFault, match=r"^nowhere: cannot be reached \(ssh: Could not resolve hostname nowhere\); does"
    ):
        Measure().take(Wanted(model="demo", target=TARGET, host="nowhere"), board / "p.json", QuietReport())
    with (
        pytest.raises(UserFault, match=r"^board: has no such program \(.*python9.*\); install Python there"),
        hosts.reached("board", "python9"),
    ):
        pass
    with pytest.raises(UserFault, match="'-oProxyCommand=x': is no host"), hosts.reached("-oProxyCommand=x"):
        pass
    with hosts.reached("board") as host:
        with pytest.raises(UserFault, match=r"^board: device 'cuda': no nvidia-smi"):
            here(TARGET.model_copy(update={"device": "cuda"}), host)
        for path in (board / "site").glob("onnxruntime*"):
            path.unlink()
        with pytest.raises(UserFault, match=r"^board: has no onnxruntime; install it there, for python3"):
            here(TARGET, host)
        with pytest.raises(
            UserFault, match=r"board: .*llama-fp32\d+: cannot be loaded as an engine: No module named 'onnxruntime'"
        ):
            measure.measure([engine_of("llama")], TARGET, processes=1, seconds=0.02, host=host)
        (board / "site" / "numpy").unlink()
        (board / "site" / "numpy.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\")")
        with pytest.raises(UserFault, match=r"^board: ModuleNotFoundError: No module named 'numpy'"):
            measure.measure([engine_of("llama")], TARGET, processes=1, seconds=0.02, host=host)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="board: cannot be reached: there is no ssh here"), hosts.reached("board"):
        pass
