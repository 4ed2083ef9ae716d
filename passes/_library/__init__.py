"""Blocks to choose from: the search space, how each variant begins, the blocks made so, the folder that keeps them.

A block has two parts, attention and FFN.  A variant is another shape of one of them; its state is that part's
parameters by their names within the block, those of norms that it alone reads too, and the masks of its linears under
`<linear>.mask`.  What a variant begins with needs one walk over the calibration windows at most; what it is after that
does not depend on what else is chosen, so that a library serves every later choice.
"""

from passes._library.folder import Library, digest
from passes._library.making import MASK, State, assembled, masks_of, module, name_of, realise_, state_of, swapped
from passes._library.settings import SpaceSettings
from passes._library.space import PARTS, Part, Variant, joined, linears_of, variants
from passes._library.starting import initial
from passes._library.worth import Statistics, statistics

__all__ = [
    "MASK",
    "PARTS",
    "Library",
    "Part",
    "SpaceSettings",
    "State",
    "Statistics",
    "Variant",
    "assembled",
    "digest",
    "initial",
    "joined",
    "linears_of",
    "masks_of",
    "module",
    "name_of",
    "realise_",
    "state_of",
    "statistics",
    "swapped",
    "variants",
]
