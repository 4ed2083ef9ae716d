"""Blocks made narrower: what stays is planned by facts alone, then heads and neurons of lowest score are cut out.

A unit is a key-value head with its query heads, or a neuron of the FFN.  It is known by the linear that reads it, in
front of which it is a run of neighbouring columns: the output projection, the down projection.
"""

from __future__ import annotations

from passes._narrowing.cutting import Units, cut_, keep, units_of
from passes._narrowing.planning import Asked, Plan, plan, shaped

__all__ = ["Asked", "Plan", "Units", "cut_", "keep", "plan", "shaped", "units_of"]
