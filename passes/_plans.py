"""What an earlier pass chose for each linear (`Facts.plan`), as passes read it that make it true.

A plan tells of linears; one that it does not name is left alone.
"""

from __future__ import annotations

from compress import tree
from compress.contracts import PassSettings
from compress.errors import BadSettings
from compress.facts import Facts, Planned

PLAN = "plan"  # what a setting says that leaves its value to the plan


def check(facts: Facts, settings: PassSettings, key: str, *replaced: str) -> None:
    """Raise `BadSettings` unless there is a plan, and nothing is given that it decides.

    Args:
        facts: of the model; where a choice is yet to be made, the plan may still come.
        settings: of the pass.
        key: the setting that says 'plan'.
        replaced: those that it replaces, where the pass has them.
    """
    for name in replaced:
        if name in settings.model_fields_set:
            what = f"comes from the plan where {key} = 'plan', got {getattr(settings, name)}"
            raise BadSettings(f"{what}; leave one of them out", key=name)
    if not facts.plan and not facts.open:
        what = f"no earlier pass has planned anything, got {PLAN!r}"
        raise BadSettings(f"{what}; put this behind one that chooses for each linear, or give {key}", key=key)


def chosen(facts: Facts, settings: PassSettings) -> dict[str, Planned]:
    """Return what is planned of the linears that the settings choose, by name in order.

    Raises:
        BadSettings: a pattern matches nothing, or nothing is left.
    """
    names = tree.select(list(facts.shapes), settings.include, settings.exclude)
    return {n: facts.plan[n] for n in names if n in facts.plan}
