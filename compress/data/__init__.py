"""Text in, token windows and labelled examples out.

The settings come without torch; everything else is imported when it is first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from compress.data.settings import DataSettings, Role

if TYPE_CHECKING:
    from compress.data.columns import Kind, Question
    from compress.data.encoding import encode_answer
    from compress.data.examples import IGNORED, Examples
    from compress.data.source import Source

__all__ = ["IGNORED", "DataSettings", "Examples", "Kind", "Question", "Role", "Source", "encode_answer"]

_HOMES = {"Kind": "columns", "Question": "columns", "encode_answer": "encoding", "IGNORED": "examples",
          "Examples": "examples", "Source": "source"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
