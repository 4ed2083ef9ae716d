"""Models whose blocks differ in shape, and linears with a low-rank branch beside their weight.

A block is described by its `BlockConfig`.  `slice_` makes linears really smaller, `drop_` takes whole blocks away,
`shape_` gives a freshly built model the shapes of another, `reshape_` a single block.  A part of size 0 is absent: it
adds nothing to the residual, its linears and biases are gone, attention keeps no keys and values; a norm that only this
part read is gone too, one over the residual (BERT) still runs.  Or one linear stands in for the part: its last, under
its own name and with its bias, reads what the part's first would, and nothing else of the part is there.
"""

from __future__ import annotations

from compress.blocks.disk import branch_
from compress.blocks.modelling import NoAttention, NoOutput
from compress.blocks.reshaping import reshape_, shape_
from compress.blocks.shapes import Cut, cut_masks, drop_, slice_
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
    "reshape_",
    "shape_",
    "slice_",
]
