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

from pathlib import Path
from typing import Any

from benchmarks import _beside
from benchmarks._ledger import Results
from benchmarks.low_bit import chain, cost, engines, oneshot, report, trained

RESULTS = Path(__file__).parent / "results"
PARTS = ("oneshot", "trained", "chain", "cost", "engines")


def work(given: Any, results: Results, case: Path) -> None:
    """Run what is not finished."""
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


if __name__ == "__main__":
    command = _beside.parser(__doc__, Path("runs/low_bit"), "few grids, few training steps, one seed")
    command.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="only these parts, for now")
    _beside.run(command, RESULTS, work, report.render)
