"""Zeros first, codes after: what is left of the pattern in the files that are handed out, and of the quality.

An under-trained model gains from any text, so a chain that trains on text is judged beside the dense model trained as
many steps on the same batches; one that only learns to give the dense model's outputs, beside that as it is.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks import _cases, _score, _tools
from benchmarks._ledger import Results, Row
from benchmarks._passes import chained
from benchmarks.low_bit import oneshot, packed
from benchmarks.low_bit.ours import ready
from benchmarks.low_bit.trained import BATCH, RANK, opened
from benchmarks.peers._case import Grid
from compress import registry
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Exporter, Target
from compress.errors import Diverged

GRID = "W4 g128"
PATTERNS = ("2:4", "50%")
STEPS, QUICK_STEPS = 128, 24
RATES, QUICK_RATES = (1e-3, 3e-3, 1e-2), (3e-3,)
FULL_RATES = (3e-4, 1e-3, 2e-3, 3e-3)  # of a training of all weights
CONTROL = "dense, trained in full"
Steps = tuple[tuple[str, dict[str, Any]], ...]
SPARSE: Steps = (("sparsegpt", {}),)
FULL: dict[str, Any] = {"method": "full"}
# After a rate that has fallen to 0: few steps, in which step sizes move little.
STAY: dict[str, Any] = {"loss": "lm", "borders": "stay", "lr_steps": 0.01, "again": True, "steps": 1 / 16}
# Before the pruning, at a rate that stays high, with this share of the steps; it falls to 0 under the mask alone.
DENSE_FIRST: Steps = (("recover", {**FULL, "schedule": "constant", "steps": 0.5}),)
# Name in the tables -> passes; those that train take the cell's learning rate, and the share of its steps that `steps`
# says, or else an equal one.
CHAINS: dict[str, Steps] = {
    "sparsegpt, rtn": (*SPARSE, ("rtn", {})),
    "sparsegpt, gptq": (*SPARSE, ("gptq", {})),
    "sparsegpt, l4q kl": (*SPARSE, ("l4q", {"loss": "kl"})),
    "sparsegpt, gptq, l4q kl": (*SPARSE, ("gptq", {}), ("l4q", {"loss": "kl", "again": True})),
    "sparsegpt, perp, l4q": (
        *SPARSE,
        ("perp", {"train": ["norms", "mask_lora"], "rank": RANK}),
        ("l4q", {"loss": "lm"}),
    ),
    "sparsegpt, perp reconstruct, l4q kl": (
        *SPARSE,
        ("perp", {"train": ["norms", "mask_lora"], "rank": RANK, "mode": "reconstruct"}),
        ("l4q", {"loss": "kl"}),
    ),
    "sparsegpt, recover full, l4q": (*SPARSE, ("recover", FULL), ("l4q", {"loss": "lm"})),
    "dense first, sparsegpt, recover full, gptq": (*DENSE_FIRST, *SPARSE, ("recover", FULL), ("gptq", {})),
    "dense first, sparsegpt, recover full, gptq, l4q stay": (
        *DENSE_FIRST,
        *SPARSE,
        ("recover", {**FULL, "steps": 7 / 16}),
        ("gptq", {}),
        ("l4q", STAY),
    ),
    "dense first, sparsegpt, perp, gptq, l4q stay": (
        *DENSE_FIRST,
        *SPARSE,
        ("perp", {"train": ["norms", "mask_lora"], "rank": RANK, "steps": 7 / 16}),
        ("gptq", {}),
        ("l4q", STAY),
    ),
    CONTROL: (("recover", FULL),),
    "dense, lora": (("perp", {"train": ["norms", "lora"], "rank": RANK}),),
}
TRAINS = ("perp", "l4q", "recover")
PEERS = {"llm-compressor": ("then gptq", "then rtn"), "modelopt": ("then rtn",)}


@dataclass(frozen=True)
class Cell:
    """One chain at one pattern of zeros; steps are those of all its trainings together."""

    tool: str
    chain: str
    pattern: str
    steps: int = 0
    lr: float | None = None

    @property
    def key(self) -> str:
        """Return its name in the results."""
        rate = "" if self.lr is None else f"/{self.steps}/{self.lr:g}"
        return f"chain/{self.tool}/{self.chain}/{self.pattern}{rate}"


def cells(peers: Path | None, *, quick: bool) -> Iterator[Cell]:
    """Yield what is to be run."""
    steps = QUICK_STEPS if quick else STEPS
    for pattern in PATTERNS[:1] if quick else PATTERNS:
        for name, uses in CHAINS.items():
            dense = SPARSE[0] not in uses
            if not all(ready(use) for use, _ in uses) or (dense and pattern != PATTERNS[0]):
                continue
            trained = sum(use in TRAINS for use, _ in uses)
            full = any(use == "recover" for use, _ in uses)
            rates = QUICK_RATES if quick else FULL_RATES if full else RATES
            for rate in rates if trained else (None,):
                yield Cell(_tools.OURS, name, "" if dense else pattern, 2 * steps if trained else 0, rate)
        for tool, chains in PEERS.items() if peers else ():
            if tool != "modelopt" or ":" in pattern:
                yield from (Cell(tool, f"{pattern} {chain}", pattern) for chain in chains)


def run(results: Results, case: Path, peers: Path | None, *, quick: bool) -> None:
    """Finish the chains that are not finished yet."""
    ids = _cases.ids_of(case)
    for cell in cells(peers, quick=quick):
        if cell.key in results.rows:
            continue
        row: Row = {"key": cell.key, **asdict(cell)}
        if cell.tool != _tools.OURS:
            row |= oneshot.made(cell.tool, cell.chain, GRID, case, peers)
        else:
            row |= ours(cell, case, ids)
        results.add(row)
        oneshot.tell(row)


def ours(cell: Cell, case: Path, ids: Mapping[str, Tensor]) -> Row:
    """Run a chain of our passes; return its scores and the zeros of its files."""
    started, artifact = time.process_time(), opened(case)
    try:
        artifact = chained(passes(cell), artifact, parent=lambda: opened(case), **ids)
    except Diverged as error:
        return {"failed": str(error), "tuning": float("inf"), "seconds": time.process_time() - started}
    tuning = _score.window_losses(artifact.model, ids["calibration"])
    row = {"seconds": round(time.process_time() - started, 1), "tuning": round(sum(tuning) / len(tuning), 6)}
    row |= oneshot.scores(artifact.model, case, GRID if artifact.grids else "")
    return row | (files_of(artifact) if artifact.grids else {})


def passes(cell: Cell) -> Iterator[tuple[str, Row]]:
    """Yield the passes of a chain with all their settings."""
    uses = CHAINS[cell.chain]
    equal = 1 / max(sum(use in TRAINS for use, _ in uses), 1)
    for use, settings in uses:
        found = {**asked(use, cell), **settings}
        yield use, found | ({"steps": round(settings.get("steps", equal) * cell.steps)} if use in TRAINS else {})


def asked(use: str, cell: Cell) -> Row:
    """Return the settings of a pass that its cell tells: the pattern, the grid, and how it trains."""
    if use == "sparsegpt":
        return {"pattern": cell.pattern} if ":" in cell.pattern else {"sparsity": 0.5}
    found = Grid.of(GRID)._asdict() if use in ("rtn", "gptq", "l4q") else {}
    found |= {"rank": RANK} if use == "l4q" else {}
    return found | ({"lr": cell.lr, "batch": BATCH, "checkpoint_every": 10**6} if use in TRAINS else {})


def files_of(artifact: Artifact) -> Row:
    """Return the zeros that are counted in what the exporters write."""
    found = {}
    for name, count in (("onnx", packed.of_onnx), ("safetensors", packed.of_compressed_tensors)):
        plugin = registry.load("exporters", name, Exporter)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "out"
            folder.mkdir()
            plugin(plugin.Settings()).export(artifact, folder, Context(folder=Path(place)), Target())
            found[name] = count(folder / "model.onnx" if name == "onnx" else folder)
    return {"packed": found}
