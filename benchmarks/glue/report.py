"""Tables from the results of a run: Markdown, with paired bootstrap intervals over the dev examples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks._ledger import Row
from benchmarks._methods import DENSE, SMALLER, SPARSE, Cell, finished
from benchmarks.glue.cells import SEEDS, SPARSITIES, TASKS
from compress.evaluate.statistics import STATISTICS, interval

Reals = NDArray[np.float64]


class Table:
    """The finished cells of one task, by what they are; seeds together."""

    def __init__(self, task: str, rows: Mapping[str, Row]) -> None:
        self.task, self.rows = TASKS[task], rows
        self.truth = np.asarray(rows[f"truth/{task}"]["labels"], dtype=np.float64)

    def seeds(self, cell: Cell) -> list[Row]:
        """Return the finished seeds of a cell at its tuned learning rate."""
        return finished(self.rows, cell, SEEDS)

    def values(self, cell: Cell, weights: Reals) -> Reals:
        """Return the metric `[draws]` under each row of weights `[draws, examples]`, averaged over seeds."""
        statistic = STATISTICS[self.task.metric].compute
        found = [statistic(weights, np.asarray(r["predicted"], dtype=np.float64), self.truth) for r in self.seeds(cell)]
        mean: Reals = np.mean(found, axis=0)
        return mean

    def each(self, cell: Cell) -> list[float]:
        """Return the metric of each seed, in percent."""
        ones = np.ones((1, len(self.truth)))
        statistic = STATISTICS[self.task.metric].compute
        return [
            100 * float(statistic(ones, np.asarray(r["predicted"], float), self.truth)[0]) for r in self.seeds(cell)
        ]

    def minus(self, ours: Cell, theirs: Cell) -> str:
        """Return the difference in points with its 95 % interval over the dev examples; empty where one is missing."""
        if ours == theirs or not self.seeds(ours) or not self.seeds(theirs):
            return ""
        low, high = interval(
            lambda weights: 100 * (self.values(ours, weights) - self.values(theirs, weights)), len(self.truth), 0
        )
        difference = np.mean(self.each(ours)) - np.mean(self.each(theirs))
        return f"{difference:+.1f} ({low:+.1f} … {high:+.1f})"


def render(setup: Row, rows: Mapping[str, Row]) -> str:
    """Return the whole report as Markdown."""
    done = sum(r.get("seconds", 0) for r in rows.values()) / 60
    parts = [f"Setup: {'; '.join(f'{k} {v}' for k, v in setup.items())}. {len(rows)} rows in {done:.0f} minutes."]
    parts += [_task(Table(t, rows)) for t in TASKS if f"truth/{t}" in rows]
    parts += [_latency(rows["latency"])] if "latency" in rows else []
    return "\n\n".join(parts) + "\n"


def _task(table: Table) -> str:
    name, full = table.task.name, Cell(task=table.task.name, method="full")
    shown = [Cell(task=name, method=m) for m in (*DENSE, SMALLER)]
    shown += [Cell(task=name, method=m, sparsity=s) for s in SPARSITIES for m in ("magnitude", *SPARSE)]
    lines = [
        f"## {name}: {table.task.metric.replace('_', ' and ')} on {len(table.truth)} dev examples, in percent",
        "",
        "| method | trained | FLOPs | lr | metric (± of seeds) | seeds | minus full (95 %) | minus magnitude (95 %) |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for cell in shown:
        found = table.seeds(cell)
        if not found:
            continue
        values = table.each(cell)
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        row, pruned = found[0], cell.at(method="magnitude")
        lines.append(
            f"| {cell.title} | {row['trainable'] / row['parameters']:.2%} | {row['flops_kept'] / row['flops']:.0%} "
            f"| {row['lr']:g} | {np.mean(values):.1f}{spread} | {len(found)} | {table.minus(cell, full)} "
            f"| {table.minus(cell, pruned) if cell.sparsity else ''} |"
        )
    return "\n".join(lines)


def _latency(row: Row) -> str:
    lines = [
        f"## Latency: one sequence of {row['tokens']} tokens, onnxruntime, one thread ({row['clock']})",
        "",
        "| engine | ms | x dense (95 %) |",
        "|---|--:|--:|",
    ]
    for title, time in row["times"].items():
        lines.append(f"| {title} | {time['ms']:.2f} | {time['ratio']:.3f} ({time['low']:.3f} … {time['high']:.3f}) |")
    return "\n".join(lines + [f"\nThe clock warns: {flag}" for flag in row["flags"]])
