"""What every pass that quantizes shares: its settings, the steps of a grid, rounding, what is planned and promised."""

from passes._quant.base import Quantizer, finite, put_
from passes._quant.checking import check
from passes._quant.mixed import with_choice
from passes._quant.plan import planned
from passes._quant.rounding import Steps, codes, grid, integers, span
from passes._quant.settings import DYNAMIC, QuantSettings, StaticSettings
from passes._quant.steps import search
from passes._quant.telling import cost, kept, size, told
from passes._quant.walking import Walking

__all__ = [
    "DYNAMIC",
    "QuantSettings",
    "Quantizer",
    "StaticSettings",
    "Steps",
    "Walking",
    "check",
    "codes",
    "cost",
    "finite",
    "grid",
    "integers",
    "kept",
    "planned",
    "put_",
    "search",
    "size",
    "span",
    "told",
    "with_choice",
]
