"""What every pass that quantizes shares: its settings, the steps of a grid, rounding, what is planned and promised."""

from passes._quant.plan import chosen, planned
from passes._quant.rounding import Steps, codes, grid, span
from passes._quant.settings import QuantSettings

__all__ = ["QuantSettings", "Steps", "chosen", "codes", "grid", "planned", "span"]
