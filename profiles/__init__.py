"""Latency profiles: what each block shape costs on the runtime that ships, measured, or estimated from a datasheet.

    costs = profiles.open("laptop.json", target)      # a measured profile of this very target, else ForeignProfile
    costs = profiles.open("h100-sxm", target)         # a datasheet: always estimated
    costs.costs(Choice(part=Ffn(...), precision="int4-g128"), target)     # -> the solver's costs of one option
    costs.costs(costs.base, target)                                       # -> the solver's `base`
    costs.predict(picks, base, target)["decode_ms"]                       # -> Prediction with a 95 % interval
    profiles.measure.take(...)                                            # measures what a profile does not hold yet

Entries are keyed by shapes, not by layers, so that one profile serves every model of that geometry.
"""

from __future__ import annotations

from pathlib import Path

from compress.contracts import Target
from profiles._costs import Costs, NotMeasured, Prediction, Time, layout_choices
from profiles._file import BadProfile, Profile, read
from profiles._geometry import base_of, hidden_of, parts_of
from profiles._machine import ForeignProfile, Machine, cached, here, trust
from profiles._parts import Attention, Base, Choice, Ffn, Linear
from profiles.roofline import Roofline, estimate, names

__all__ = [
    "Attention",
    "BadProfile",
    "Base",
    "Choice",
    "Costs",
    "Ffn",
    "ForeignProfile",
    "Linear",
    "Machine",
    "NotMeasured",
    "Prediction",
    "Profile",
    "Roofline",
    "Time",
    "base_of",
    "cached",
    "estimate",
    "here",
    "hidden_of",
    "layout_choices",
    "names",
    "open",
    "parts_of",
    "read",
    "trust",
]  # fmt: skip


def open(
    source: Path | str,
    target: Target,
    *,
    allow_foreign: bool = False,
    warnings: list[str] | None = None,
    parameters: int | None = None,
) -> Costs:
    """Return the costs that a file or a datasheet knows, for a target on this machine.

    Args:
        source: a profile file, or the name of a table (`names()`).
        target: what the engines are for.
        allow_foreign: whether a profile of another machine, runtime, version or options will do.
        warnings: receives what is to be told, such as that a profile is foreign or estimated.
        parameters: of the dense model that it is for, where that is known: models that fit into the cache, and larger
            ones, have profiles of their own.

    Raises:
        BadProfile: the file is none.
        ForeignProfile: it was taken on something else, and that is not allowed.
    """
    told = warnings if warnings is not None else []
    if str(source) in names() and not Path(source).is_file():
        found = estimate(str(source), target)
        told += found.lines()
        return found
    profile = read(source)
    if warning := trust(profile.name, profile.machine, here(target), allow_foreign=allow_foreign):
        told.append(warning)
    if parameters is not None and profile.document.taken.cached != cached(parameters, profile.machine):
        those, this = ("fit", "does not") if profile.document.taken.cached else ("do not fit", "does")
        told.append(
            f"{profile.name}: holds times for models that {those} into the cache, and this one {this}: they are off"
        )
    return profile
