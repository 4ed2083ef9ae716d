"""Models whose blocks differ in shape, and linears with a low-rank branch beside their weight.

A block is described by its `BlockConfig`.  `slice_` makes linears really smaller, `drop_` takes whole blocks away,
`shape_` gives a freshly built model the shapes of another.  A part of size 0 is absent: it adds nothing to the
residual, its linears and biases are gone, attention keeps no keys and values; a norm that only this part read is gone
too, one over the residual (BERT) still runs.
"""

from __future__ import annotations

from compress.blocks.disk import branch_
from compress.blocks.modules import NoAttention, NoOutput
from compress.blocks.shapes import Cut, cut_masks, drop_, shape_, slice_
from compress.branched import Branch, Branched
from compress.facts import BlockConfig
from compress.tree import layout as of

__all__ = [
    "BlockConfig",
    "Branch",
    "Branched",
    "Cut",
    "NoAttention",
    "NoOutput",
    "branch_",
    "cut_masks",
    "drop_",
    "of",
    "shape_",
    "slice_",
]
