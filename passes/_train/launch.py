"""Several processes that train one model: started with `accelerate launch`, heard, and taken down with this one.

The first of them tells what it notes, records and shows as lines on its output; what they trained comes back as a file.
Their input is a pipe from this process that nothing is written to: when it ends, however this process ended, they end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from compress import errors, files, following
from compress.artifact import Artifact
from compress.context import Context, Report
from compress.errors import CompressError, Unavailable
from passes._train.team import TeamSettings

JOB, TRAINED, LOG = "job.json", "trained.safetensors", "workers.log"
MARK = "compress: "  # begins every line that is for us; libraries print on the same output


def launch_(use: str, settings: TeamSettings, artifact: Artifact, context: Context) -> None:
    """Let `settings.processes` processes train the artifact's model, and put in what they trained.

    Each opens the artifact and the dense parent from folders and calls the pass's `train_` with its team.

    Args:
        use: the pass.
        settings: the pass's.
        artifact: what is trained; it stays in this process meanwhile.
        context: the pass's.

    Raises:
        Unavailable: there are fewer GPUs than processes.
        CompressError: what a process raised, or that it died.
    """
    device, count = context.device.type, settings.processes
    if device == "cuda" and count > torch.cuda.device_count():
        raise Unavailable(f"processes = {count}, and {torch.cuda.device_count()} GPUs are here, one for each; fewer do")
    _write(use, settings, artifact, context)
    fault, status = _start(count, context)
    if fault or status:
        log = context.folder / LOG
        raise fault or CompressError(died(use, following.last_line(log), log))
    trained = load_file(context.folder / TRAINED, device=str(context.device))
    with torch.no_grad():
        for name, parameter in artifact.model.named_parameters():
            parameter.copy_(trained[name])
    for name in ("given", "parent"):
        shutil.rmtree(context.folder / name)


def _start(count: int, context: Context) -> tuple[CompressError | None, int]:
    """Run the processes to their end, passing on what they tell; return the first fault and the launcher's status."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1"]
    how = [f"--num_processes={count}", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    command = [*launch, *how, "-m", "passes._train.worker", str(context.folder.absolute())]
    environment = following.environment(max(torch.get_num_threads() // count, 1))
    with following.started(command, context.folder / LOG, environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            fault = hear(process.stdout, context.report)
        except BaseException:
            process.stdin.close()
            os.killpg(process.pid, signal.SIGTERM)
            raise
    return fault, process.returncode


def _write(use: str, settings: TeamSettings, artifact: Artifact, context: Context) -> None:
    """Lay down what the processes open; folders that a killed run left whole are kept."""
    for name, make in (("given", lambda: artifact), ("parent", context.parent)):
        if make and not (context.folder / name).exists():
            with files.atomic_folder(context.folder / name) as new:
                make().save(new)
    data = {}
    for role, source in context.data.items():
        source.examples(artifact.tokenizer)  # read, tokenised and kept here, once
        cache = str(source.cache.absolute()) if source.cache else None
        table = source.settings.model_dump(mode="json")
        data[role] = {"settings": table, "task": source.task, "seed": source.seed, "cache": cache}
    job = {
        "use": use,
        "settings": settings.model_dump(mode="json"),
        "device": context.device.type,
        "seed": context.seed,
        "turn": context.turn,
        "data": data,
    }
    files.write_json(context.folder / JOB, job)


def hear(lines: Iterable[str], report: Report) -> CompressError | None:
    """Pass on what the processes tell, and return the first fault among it."""
    fault: CompressError | None = None
    with ExitStack() as bars:
        bar: Any = None
        for line in lines:
            if not line.startswith(MARK):
                continue
            kind, *given = json.loads(line.removeprefix(MARK))
            if kind == "fault":
                fault = fault or getattr(errors, given[0])(given[1])
            elif kind == "bar":
                bars.close()
                bar = bars.enter_context(report.bar(*given))
            elif kind in ("advance", "show"):
                getattr(bar, kind)(*given)
            else:
                getattr(report, kind)(*given)
    return fault


def died(use: str, why: str, log: Path) -> str:
    """Return what is told of a process of a pass that ended for a reason that is not the user's."""
    return f"{use}: a process that trains died: {why}; {log} has all"
