"""Tables from the results of a run: Markdown, with paired bootstrap intervals over the test inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks._ledger import Row
from benchmarks._methods import DENSE, SMALLER, SPARSE, Cell, finished
from benchmarks.nlg import text
from benchmarks.nlg.cells import SEEDS, SPARSITIES, TASKS
from compress.evaluate.statistics import interval, mean

Reals = NDArray[np.float64]


def _loss(weights: Reals, row: Row) -> Reals:
    found: Reals = (weights @ np.asarray(row["nats"], float)) / (weights @ np.asarray(row["tokens"], float))
    return found


# Name -> a corpus' value `[draws]` under weights `[draws, inputs]`, and the places that are shown.
MEASURES: dict[str, tuple[Callable[[Reals, Row], Reals], int]] = {
    "nats a token": (_loss, 3),
    "BLEU": (lambda weights, row: text.bleu(weights, np.asarray(row["bleu"], float)), 1),
    "chrF": (lambda weights, row: mean(weights, np.asarray(row["chrf"], float)), 1),
}


class Table:
    """The finished cells of all tasks, by what they are; seeds together."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self.rows = rows

    def seeds(self, cell: Cell) -> list[Row]:
        """Return the finished seeds of a cell at its tuned learning rate."""
        return finished(self.rows, cell, SEEDS)

    def values(self, cell: Cell, measure: str, weights: Reals) -> Reals:
        """Return a measure `[draws]` under each row of weights `[draws, inputs]`, averaged over seeds."""
        found: Reals = np.mean([MEASURES[measure][0](weights, row) for row in self.seeds(cell)], axis=0)
        return found

    def value(self, cell: Cell, measure: str) -> str:
        """Return a measure on all inputs, with its spread over seeds where there are several."""
        each = [MEASURES[measure][0](np.ones((1, len(r["tokens"]))), r)[0] for r in self.seeds(cell)]
        places = MEASURES[measure][1]
        spread = f" ± {np.std(each, ddof=1):.{places}f}" if len(each) > 1 else ""
        return f"{np.mean(each):.{places}f}{spread}"

    def minus(self, ours: Cell, theirs: Cell, measure: str) -> str:
        """Return the difference with its 95 % interval over the test inputs; empty where one is missing."""
        if ours == theirs or not self.seeds(ours) or not self.seeds(theirs):
            return ""

        def difference(weights: Reals) -> Reals:
            return self.values(ours, measure, weights) - self.values(theirs, measure, weights)

        count = len(self.seeds(ours)[0]["tokens"])
        low, high = interval(difference, count, 0)
        shown = (float(difference(np.ones((1, count)))[0]), low, high)
        middle, below, above = (f"{v:+.{MEASURES[measure][1]}f}" for v in shown)
        return f"{middle} ({below} … {above})"


def render(setup: Row, rows: Mapping[str, Row]) -> str:
    """Return the whole report as Markdown."""
    done = sum(r.get("seconds", 0) for r in rows.values()) / 60
    parts = [f"Setup: {'; '.join(f'{k} {v}' for k, v in setup.items())}. {len(rows)} rows in {done:.0f} minutes."]
    parts += [_task(task, rows) for task in TASKS if f"data/{task}" in rows]
    return "\n\n".join(parts) + "\n"


def _task(task: str, rows: Mapping[str, Row]) -> str:
    table, about, full = Table(rows), rows[f"data/{task}"], Cell(task=task, method="full")
    shown = [Cell(task=task, method=m) for m in (*DENSE, SMALLER)]
    shown += [Cell(task=task, method=m, sparsity=s) for s in SPARSITIES for m in ("magnitude", *SPARSE)]
    (told, inputs, pairs), (asked, count, measured) = about["training"], about["test"]
    columns = [f"{m} | minus full (95 %) | minus magnitude (95 %)" for m in MEASURES]
    lines = [
        f"## {task}: {count} inputs of {asked} ({measured} sentences for the loss); "
        f"trained on {pairs} pairs of {inputs} inputs of {told}",
        "",
        f"| method | trained | zeros | FLOPs | lr | seeds | {' | '.join(columns)} |",
        "|---" + "|--:" * (5 + 3 * len(MEASURES)) + "|",
    ]
    for cell in shown:
        if not (found := table.seeds(cell)):
            continue
        row, pruned = found[0], cell.at(method="magnitude")
        line = [
            cell.title, f"{row['trainable'] / row['parameters']:.2%}", f"{row['zeros']:.0%}",
            f"{row['flops_kept'] / row['flops']:.0%}", f"{row['lr']:g}", str(len(found)),
        ]  # fmt: skip
        for measure in MEASURES:
            beside = table.minus(cell, pruned, measure) if cell.sparsity else ""
            line += [table.value(cell, measure), table.minus(cell, full, measure), beside]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)
