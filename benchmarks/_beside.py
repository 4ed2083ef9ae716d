"""What benchmarks beside the peers share: their command line, the dense model's row, and how a run ends."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import _cases, _score
from benchmarks._ledger import Render, Results, conclude

Work = Callable[[Any, Results, Path], None]


def parser(about: str | None, folder: Path, quick: str) -> argparse.ArgumentParser:
    """Return the command line: a case, the peers' environments, and how much is run.

    Args:
        about: the module's docstring.
        folder: where cases are laid out unless another is given.
        quick: what `--quick` leaves.
    """
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    _cases.add_arguments(made, folder)
    made.add_argument("--peers", type=Path, help="the folder of the peers' environments; without it, none is run")
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--report", action="store_true", help="run nothing, only write the tables")
    return made


def run(command: argparse.ArgumentParser, folder: Path, work: Work, render: Render) -> None:
    """Run what is not finished, and write the tables.

    Args:
        command: as `parser` made it.
        folder: of the results.
        work: gets the arguments, the results, which hold the dense model's row, and the case's folder.
        render: the page of some results.
    """
    given = _cases.parsed(command)
    path = folder / f"{given.case}{'-quick' if given.quick else ''}.jsonl"

    def whole() -> None:
        case = _cases.of(given)
        torch.set_num_threads(1)
        results = Results(path, _cases.setup(case))
        if "dense" not in results.rows:
            losses = _score.window_losses(_score.open_model(case), _cases.ids_of(case)["evaluation"])
            results.add({"key": "dense", "losses": [round(v, 6) for v in losses]})
        work(given, results, case)

    conclude(path, render, None if given.report else whole)
