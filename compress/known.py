"""What is known of an artifact once it is there, read off it instead of planned."""

from __future__ import annotations

from compress import grids, tree
from compress.artifact import Artifact
from compress.facts import Facts


def told(artifact: Artifact) -> Facts:
    """Return what an artifact tells of itself without a look at its tensors: shapes, codes, what is planned of it."""
    return tree.facts(artifact.model, artifact.task).after(grids=grids.facts(artifact.grids), plan=artifact.plan)


def known(artifact: Artifact, planned: Facts) -> Facts:
    """Return the facts of an artifact, now that what was open when it was planned is chosen.

    Args:
        artifact: as its pass left it.
        planned: what was planned of it, whence comes what no model tells: the patterns of masks, and its history.
    """
    history = {n: getattr(planned, n) for n in ("trained", "dropped", "stored")}
    masks = {n: planned.masks[n] for n in artifact.masks}
    return told(artifact).after(masks=masks, library=artifact.library is not None, **history)
