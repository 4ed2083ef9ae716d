"""What of the settings is offered to a model: precisions and patterns that fit it, told before anything runs."""

from __future__ import annotations

from compress.errors import BadSettings
from compress.facts import Facts, GridFact, Planned
from compress.grid import BITS
from passes._masks import Pattern
from passes.puzzle.pieces import DENSE, grid_of, opened_of
from passes.puzzle.settings import PuzzleSettings
from profiles import _precision


def floats_of(settings: PuzzleSettings) -> str | None:
    """Return the floats among the precisions, None where every linear is to get codes."""
    return next((p for p in settings.precisions if grid_of(p) is None), None)


def check(settings: PuzzleSettings, facts: Facts) -> None:
    """Raise `BadSettings` for precisions or patterns that are none, do not go together or do not fit the linears."""
    parsed = [_parsed(name) for name in settings.precisions]
    if len({p.kernels for p in parsed if p.grid}) > 1:
        what = f"exact and fast kernels cannot be in one engine, got {', '.join(settings.precisions)}"
        raise BadSettings(f"{what}; keep one kind", key="precisions")
    if len(floats := sorted({p.name for p in parsed if p.grid is None})) > 1:
        what = f"one graph has one type of floats, got {' and '.join(floats)}"
        raise BadSettings(f"{what}; keep the target's", key="precisions")
    for precision in parsed:
        _check_grid(precision, facts)
    for pattern in settings.patterns:
        _check_pattern(pattern, facts)


def bounds(facts: Facts, settings: PuzzleSettings) -> dict[str, Planned]:
    """Return, per linear, what may be planned of it: of codes all that there are, of zeros the first pattern."""
    grids = sorted((g for p in settings.precisions if (g := grid_of(p))), key=lambda g: -g.bits)
    most = GridFact(**{**vars(grids[0]), "others": tuple(dict.fromkeys(grids[1:]))}) if grids else None
    pattern = next((p for p in settings.patterns if p != DENSE), None)
    inside = {n for names in opened_of(facts, settings).values() for n in names}
    return {n: Planned(grid=most, pattern=pattern) if n in inside else Planned() for n in facts.shapes}


def _parsed(name: str) -> _precision.Precision:
    try:
        found = _precision.parse(name)
    except BadSettings as error:
        raise BadSettings(str(error), key="precisions") from None
    if found.grid and found.grid.bits not in BITS:
        raise BadSettings(f"codes have {', '.join(map(str, BITS))} bits, got {name!r}", key="precisions")
    return found


def _check_grid(precision: _precision.Precision, facts: Facts) -> None:
    size = precision.grid.group_size if precision.grid else None
    name, (_, inputs) = min(facts.shapes.items(), key=lambda item: item[1][1])
    if size and size > inputs:
        what = f"{name} has {inputs} inputs, fewer than a group of {size}, got {precision.name!r}"
        raise BadSettings(f"{what}; groups of up to {inputs} would do", key="precisions")


def _check_pattern(pattern: str, facts: Facts) -> None:
    try:
        _precision.check_pattern(pattern)
    except BadSettings as error:
        raise BadSettings(str(error), key="patterns") from None
    if pattern == "unstructured":
        what = "scattered zeros have no pattern that a later pass could be held to, got 'unstructured'"
        raise BadSettings(f"{what}; N:M such as 2:4 would do", key="patterns")
    if pattern != DENSE:
        group = Pattern.parse(pattern).group
        for name, (_, inputs) in facts.shapes.items():
            if inputs % group:
                what = f"{pattern} does not divide the {inputs} inputs of {name}"
                raise BadSettings(f"{what}; exclude it or choose another pattern", key="patterns")
