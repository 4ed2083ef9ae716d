"""What one change costs in quality, all else left as it is: how far the outputs are then from those of the model given.

Changes are judged one by one, so that whoever chooses among them can add them up; two that make up for each other, or
harm each other, are not seen to.  Only the blocks from the changed one on are run again: the windows wait at its door.
"""

from passes._sensitivity.judge import Judge
from passes._sensitivity.walk import Change, distances

__all__ = ["Change", "Judge", "distances"]
