"""What one change costs in quality, all else left as it is: how far the outputs are then from those of the model given.

Changes are judged one by one, so that whoever chooses among them can add them up; two that make up for each other, or
harm each other, are not seen to.  Only the blocks from the changed one on are run again: the windows wait at its door.
A change gives linears other weights, or puts another module in a block's place.
"""

from passes._sensitivity.judge import Judge, Kind, check
from passes._sensitivity.score import Score
from passes._sensitivity.walk import Change, Swap, distances, scores

__all__ = ["Change", "Judge", "Kind", "Score", "Swap", "check", "distances", "scores"]
