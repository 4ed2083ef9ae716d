"""Pruning in one walk over the blocks: what the passes share that choose masks from what each linear reads.

A pass makes attempts at each linear, plain zeroing first; the last is what was asked for, and where an earlier one is
nearer to the old outputs on held-out windows, that one stays and a note says so.
"""

from passes._oneshot.base import Oneshot
from passes._oneshot.settings import OneshotSettings
from passes._oneshot.task import Attempt, Task

__all__ = ["Attempt", "Oneshot", "OneshotSettings", "Task"]
