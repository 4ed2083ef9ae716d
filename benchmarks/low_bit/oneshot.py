"""Codes without training: every tool's RTN, GPTQ, AWQ and the like, at every grid."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks import _cases, _score, _tools
from benchmarks._ledger import Results, Row
from benchmarks.low_bit.ours import METHODS, ready
from compress import tree

SYMMETRIC = [f"W{bits} g{group}" for group in (128, 64, 32) for bits in (4, 3, 2)]
GRIDS = SYMMETRIC + [f"{grid} asymmetric" for grid in SYMMETRIC if not grid.startswith("W4")]  # 4 bits rank nothing
QUICK = ("W4 g64", "W3 g64", "W2 g64")
# Peer -> its methods, and whether it has a code of each group that stands for 0.
PEERS = {
    "llm-compressor": (("rtn", "gptq", "awq"), True),
    "gptqmodel": (("gptq",), True),
    "auto-round": (("autoround",), True),
    "modelopt": (("awq",), False),
}


@dataclass(frozen=True)
class Cell:
    """One method of one tool at one grid."""

    tool: str
    method: str
    grid: str

    @property
    def key(self) -> str:
        """Return the cell's name in the results."""
        return f"oneshot/{self.tool}/{self.method}/{self.grid}"


def cells(peers: Path | None, *, quick: bool, widths: set[int]) -> Iterator[Cell]:
    """Yield what is to be run: whatever has a pass by now, at all grids whose groups divide every width."""
    for grid in QUICK if quick else GRIDS:
        group = int(grid.split()[1][1:])
        if any(width % group for width in widths):
            continue
        yield from (Cell(_tools.OURS, m, grid) for m, uses in METHODS.items() if all(ready(use) for use, _ in uses))
        for tool, (methods, asymmetric) in PEERS.items() if peers else ():
            if asymmetric or not grid.endswith("asymmetric"):
                yield from (Cell(tool, m, grid) for m in methods)


def run(results: Results, case: Path, peers: Path | None, *, quick: bool) -> None:
    """Finish the cells that are not finished yet."""
    widths = {w.shape[1] for w in (m.weight for m in tree.block_linears(_score.open_model(case)).values())}
    for cell in cells(peers, quick=quick, widths=widths):
        if cell.key not in results.rows:
            row = {"key": cell.key, **asdict(cell), **made(cell.tool, cell.method, cell.grid, case, peers)}
            results.add(row)
            tell(row)


def made(tool: str, method: str, grid: str, case: Path, peers: Path | None) -> Row:
    """Return what one tool makes of the case: its time and memory, and the scores of its weights."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "codes.safetensors"
        ours = "benchmarks.low_bit.ours"
        row = _tools.call(tool, ours, peers, case=case, method=method, form=grid, out=out)
        return row if "failed" in row else {**row, **scored(case, out, grid)}


def scored(case: Path, weights: Path, grid: str) -> Row:
    """Return the scores of the weights that a tool wrote."""
    model = _score.open_model(case)
    _score.put_(model, weights)
    return scores(model, case, grid)


def scores(model: PreTrainedModel, case: Path, grid: str) -> Row:
    """Return losses and divergences by window, zeros, and the most values that a group of a weight has."""
    windows = _cases.ids_of(case)["evaluation"]
    zeros, two_of_four = _score.zeros(model)
    row: Row = {
        "losses": [round(v, 6) for v in _score.window_losses(model, windows)],
        "kl": [round(v, 8) for v in _score.window_divergences(model, _score.open_model(case), windows)],
        "zeros": round(zeros, 6),
        "two_of_four": two_of_four,
    }
    if grid:
        group = int(grid.split()[1][1:])
        row["values"] = max(_values(m.weight.detach(), group) for m in tree.block_linears(model).values())
    return row


def tell(row: Row) -> None:
    """Print a finished cell."""
    shown = row.get("failed") or f"{score(row)} ({row['seconds']:.1f} s)"
    print(f"{row['key']}: {shown}", flush=True)


def score(row: Row) -> str:
    """Return a row's perplexity and divergence in words."""
    return f"perplexity {_score.perplexity(row['losses']):.4f}, KL {sum(row['kl']) / len(row['kl']):.6f}"


def _values(weight: torch.Tensor, group: int) -> int:
    """Return how many values the group with the most of them has: 2^bits at most, where a grid is what it says."""
    ordered = weight.reshape(-1, group).sort(dim=1).values
    # What is equal but for the rounding of a scale that was multiplied in and out counts as one value.
    close = ordered.diff(dim=1) <= 1e-5 * ordered.abs().amax(dim=1, keepdim=True)
    return int((~close).sum(1).max()) + 1
