"""Block by block: observe what the linears of a block read, change them, pass on what the changed block gives.

Calibration windows are led to the door of the first block; from there only hidden states travel, one block is looked
at at a time, and every linear is judged on what the already changed blocks before it really give.  A few windows are
held out: they travel alike, and what the linears read on them is for checking alone.
"""

from passes._layerwise.capture import Call, Chunk, calls, ended, lead, windows
from passes._layerwise.cost import cost
from passes._layerwise.inputs import SIZE_BITS, Inputs, Layer, error
from passes._layerwise.journal import Journal
from passes._layerwise.observe import first, pass_, run
from passes._layerwise.settings import REFERENCE, SEQUENTIAL, LayerwiseSettings
from passes._layerwise.stream import Stream
from passes._layerwise.walk import walk_

__all__ = [
    "REFERENCE",
    "SEQUENTIAL",
    "SIZE_BITS",
    "Call",
    "Chunk",
    "Inputs",
    "Journal",
    "Layer",
    "LayerwiseSettings",
    "Stream",
    "calls",
    "cost",
    "ended",
    "error",
    "first",
    "lead",
    "pass_",
    "run",
    "walk_",
    "windows",
]
