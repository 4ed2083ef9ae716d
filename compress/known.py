"""What is known of an artifact once it is there, read off it instead of planned."""

from __future__ import annotations

from compress import grids, tree
from compress.artifact import Artifact
from compress.facts import Facts


def known(artifact: Artifact, planned: Facts) -> Facts:
    """Return the facts of an artifact, now that what was open when it was planned is chosen.

    Args:
        artifact: as its pass left it.
        planned: what was planned of it, whence comes what no model tells: the patterns of masks, and its history.
    """
    now = tree.facts(artifact.model, artifact.task)
    told = {n: getattr(planned, n) for n in ("trained", "dropped", "stored")}
    masks = {n: planned.masks[n] for n in artifact.masks}
    found = {"grids": grids.facts(artifact.grids), "plan": artifact.plan, "library": artifact.library is not None}
    return now.after(masks=masks, **found, **told)
