"""Low-bit weights beside those of the peers: the same model, calibration ids, training batches and held-out ids.

    python -m benchmarks.low_bit.run --quick                      # under 10 minutes on 2 cores, without peers
    benchmarks/peers/make.sh ENVIRONMENTS llmcompressor modelopt gptqmodel autoround      # once, 7 GB
    python -m benchmarks.low_bit.run --peers ENVIRONMENTS         # all; kill it and run it again, it goes on
    python -m benchmarks.low_bit.run --only oneshot               # a part: oneshot, trained, chain, cost, engines
    python -m benchmarks.low_bit.run --case demo                  # the demo model instead of the byte-level fixture
    python -m benchmarks.low_bit.run --case NAME --model FOLDER --text train.jsonl --evaluation valid.jsonl
    python -m benchmarks.low_bit.run --report                     # only the tables, from what is finished

Each finished cell is one line of results/<case>.jsonl; results/<case>.md holds the tables.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import _cases, _score
from benchmarks._ledger import Results, publish
from benchmarks.low_bit import chain, cost, engines, oneshot, report, trained
from compress.errors import UserFault

RESULTS = Path(__file__).parent / "results"
PARTS = ("oneshot", "trained", "chain", "cost", "engines")


def work(given: Any, path: Path) -> None:
    """Run what is not finished."""
    case = _cases.of(given)
    torch.set_num_threads(1)
    results = Results(path, _cases.setup(case))
    if "dense" not in results.rows:
        losses = _score.window_losses(_score.open_model(case), _cases.ids_of(case)["evaluation"])
        results.add({"key": "dense", "losses": [round(v, 6) for v in losses]})
    if "oneshot" in given.only:
        oneshot.run(results, case, given.peers, quick=given.quick)
    if "trained" in given.only:
        trained.run(results, case, quick=given.quick)
    if "chain" in given.only:
        chain.run(results, case, given.peers, quick=given.quick)
    if "cost" in given.only:
        cost.run(results, case, quick=given.quick)
    if "engines" in given.only:
        engines.run(results, case, quick=given.quick)


def arguments() -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _cases.add_arguments(parser, Path("runs/low_bit"))
    parser.add_argument("--peers", type=Path, help="the folder of the peers' environments; without it, none is run")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="only these parts, for now")
    parser.add_argument("--quick", action="store_true", help="few grids, few training steps, one seed")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the tables")
    return _cases.parsed(parser)


def main() -> None:
    """Run what is asked and write the tables."""
    given = arguments()
    path = RESULTS / f"{given.case}{'-quick' if given.quick else ''}.jsonl"
    try:
        if not given.report:
            work(given, path)
    except UserFault as error:
        sys.exit(f"error: {error}")
    publish(path, report.render)


if __name__ == "__main__":
    main()
