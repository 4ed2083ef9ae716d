"""What a layerwise pass found of each linear, kept on disk until the pass tells it: a resumed pass tells the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from compress import files
from compress.context import Report
from compress.errors import BadModel
from passes._layerwise.inputs import Layer, error

_NAMED = 8  # linears in one note


class Journal:
    """Errors and notes by linear.

    Args:
        path: a file, read if it is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._layers: dict[str, dict[str, Any]] = files.read_json(path) if path.exists() else {}

    def begin(self, name: str) -> None:
        """Forget what was found of a linear before, by a run that was killed before it could keep its work."""
        self._layers[name] = {"notes": []}

    def note(self, name: str, text: str) -> None:
        """Keep a note with a linear."""
        self._layers[name]["notes"].append(text)

    def choose(self, layer: Layer, attempts: Sequence[tuple[str, Tensor]]) -> int:
        """Return which attempt at a linear is best on its held-out rows, the later of equal ones, and keep the errors.

        Args:
            layer: with its old weight.
            attempts: what was done, in words, and the weight `[out, in]` it gave; the last is what was asked for.

        Raises:
            BadModel: an error is not finite.
        """
        return self.choose_together([layer], [(what, [weight]) for what, weight in attempts])

    def choose_together(self, layers: Sequence[Layer], attempts: Iterable[tuple[str, Iterable[Tensor]]]) -> int:
        """Return which attempt at several linears, all or none, is best by the sum of their errors, as `choose` does.

        Args:
            layers: with their old weights.
            attempts: what was done, and the weight that each layer got, which are asked for one at a time.
        """
        words, rows = list[str](), list[list[float]]()
        for what, weights in attempts:
            words.append(what)
            rows.append([error(layer, weight) for layer, weight in zip(layers, weights, strict=True)])
        best = min(range(len(rows)), key=lambda i: (sum(rows[i]), -i))
        for layer, *errors in zip(layers, *rows, strict=True):
            if not all(map(math.isfinite, errors)):
                raise BadModel(f"{layer.name}: its outputs on held-out windows are NaN or infinite once it is changed")
            self._layers[layer.name] |= {"attempts": words, "errors": errors, "best": best}
        return best

    def save(self) -> None:
        """Write the file."""
        files.write_json(self._path, self._layers)

    def tell(self, names: Sequence[str], report: Report) -> None:
        """Report the notes, the errors of every linear (first, last, and the one that stays), and what they come to."""
        layers = {n: self._layers[n] for n in names}
        passed_over: dict[tuple[str, str], list[str]] = {}
        for name, layer in layers.items():
            for text in layer["notes"]:
                report.note(text)
            what, errors, best = layer["attempts"], layer["errors"], layer["best"]
            report.record("layers", [name, *(errors[i] for i in (0, -1, best)), what[best]])
            if best < len(errors) - 1:
                passed_over.setdefault((what[-1], what[best]), []).append(name)
        for (asked, stays), where in passed_over.items():
            some = ", ".join(where[:_NAMED]) + (", ..." if len(where) > _NAMED else "")
            report.note(
                f"{asked} did worse than {stays} on held-out windows, which therefore stays, "
                f"in {len(where)} of {len(layers)} linears: {some}"
            )
        first = median(layer["errors"][0] for layer in layers.values())
        kept = {n: layer["errors"][layer["best"]] for n, layer in layers.items()}
        worst = max(kept, key=lambda n: kept[n])
        plain = f", {first:.3%} by {_plain(layers)}" if any(len(v["errors"]) > 1 for v in layers.values()) else ""
        report.note(
            f"outputs on held-out windows are off by {median(kept.values()):.3%} of their energy in the median linear"
            f"{plain}; most, {kept[worst]:.3%}, in {worst}"
        )


def _plain(layers: Mapping[str, dict[str, Any]]) -> str:
    """Return what was tried first of every linear."""
    told: str = next(iter(layers.values()))["attempts"][0]
    return told
