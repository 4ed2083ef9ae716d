"""What the ground calls: settings, passes, exporters and engines.

A plug-in is one file that holds one subclass of `Pass` or `Exporter`; its module docstring is its card.
"""

from compress.contracts.engines import Engine, Past
from compress.contracts.exporters import Export, Exporter, Variant
from compress.contracts.passes import Candidate, Estimate, Pass
from compress.contracts.settings import DataUse, PassSettings, Settings, Target

__all__ = [
    "Candidate", "DataUse", "Engine", "Estimate", "Export", "Exporter", "Pass", "PassSettings", "Past", "Settings",
    "Target", "Variant",
]  # fmt: skip
