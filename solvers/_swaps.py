"""Feasible choices by swapping one option at a time, or two: into the budgets, then down in score."""

from __future__ import annotations

import numpy as np

from solvers._table import EPSILON, Alike, Choice, Reals, Table, equal_layers

_PAIRS = 400  # swaps of least reduced cost that are tried two by two


def repaired(table: Table, choice: Choice) -> Choice | None:
    """Return a choice that fits, each swap the one of least score per excess removed; None where none removes any.

    Excess is the sum over budgets of scaled costs above the room, and over what must differ of layers too many.
    """
    choice = choice.copy()
    while (before := _excess(table, choice)) > EPSILON:
        after = _excess_after(table, choice)
        score = _score_after(table, choice)
        gain = np.where(np.isfinite(score), before - after, 0.0)
        rate = np.where(gain > EPSILON, np.maximum(score, 1e-12) / np.maximum(gain, EPSILON), np.inf)
        if not np.isfinite(rate.min()):
            return None
        group, option = np.unravel_index(rate.argmin(), rate.shape)
        choice[group] = option
    return choice


def improved(table: Table, choice: Choice, reduced: Reals | None = None) -> Choice:
    """Return a choice that fits and that no swap, and with `reduced` hardly a pair of swaps, makes better.

    Args:
        table: what the choice fits.
        choice: a choice that fits.
        reduced: reduced costs [G, J]; pairs are tried among the swaps where they are least.
    """
    choice = choice.copy()
    while True:
        score = np.where(_excess_after(table, choice) <= EPSILON, _score_after(table, choice), np.inf)
        if score.min() < -EPSILON:
            group, option = np.unravel_index(score.argmin(), score.shape)
            choice[group] = option
        elif reduced is None or (pair := _pair(table, choice, reduced)) is None:
            return choice
        else:
            choice = pair


def _pair(table: Table, choice: Choice, reduced: Reals) -> Choice | None:
    """Return the choice after the best pair of swaps in two groups, or None where none gains."""
    order = np.argsort(reduced, axis=None, kind="stable")[:_PAIRS]
    groups, options = np.unravel_index(order, reduced.shape)
    real = np.isfinite(table.score[groups, options]) & (options != choice[groups])
    groups, options = groups[real], options[real]
    score = _score_after(table, choice)[groups, options]
    rows = table.linear()
    costs = (rows.costs - rows.costs[:, np.arange(len(choice)), choice][:, :, None])[:, groups, options]
    left = rows.room + EPSILON - rows.used(choice)
    both = score[:, None] + score[None, :]
    fits = (groups[:, None] < groups[None, :]) & (both < -EPSILON)
    for b in range(len(left)):
        fits &= costs[b][:, None] + costs[b][None, :] <= left[b]
    for flat in np.argsort(np.where(fits, both, np.inf), axis=None, kind="stable")[: min(int(fits.sum()), _PAIRS)]:
        swap = list(np.unravel_index(flat, both.shape))
        tried = choice.copy()
        tried[groups[swap]] = options[swap]
        if table.fits(tried):
            return tried
    return None


def _excess(table: Table, choice: Choice) -> float:
    over = np.maximum(table.used(choice) - table.room, 0.0).sum()
    return float(over) + sum(max(equal_layers(a, choice) - a.most, 0) for a in table.alike)


def _excess_after(table: Table, choice: Choice) -> Reals:
    """Return the excess after each single swap, [G, J]."""
    here = table.costs[:, np.arange(len(choice)), choice]
    after = (table.used(choice) - table.room)[:, None, None] + table.costs - here[:, :, None]
    found: Reals = np.maximum(after, 0.0).sum(axis=0)
    for alike in table.alike:
        found += np.maximum(_equal_after(alike, choice, table.score.shape) - alike.most, 0)
    return found


def _equal_after(alike: Alike, choice: Choice, shape: tuple[int, ...]) -> Reals:
    """Return how many layers equal the reference after each single swap, [G, J]."""
    found = np.full(shape, float(equal_layers(alike, choice)))
    for literals in alike.layers:
        apart = [(g, j) for g, j in literals if choice[g] != j]
        if not apart:
            for g, j in literals:
                found[g] -= 1
                found[g, j] += 1
        elif len(apart) == 1:
            found[apart[0]] += 1
    return found


def _score_after(table: Table, choice: Choice) -> Reals:
    """Return how the score changes by each single swap, [G, J]; inf where there is no option."""
    return table.score - table.score[np.arange(len(choice)), choice][:, None]
