"""What a `[[pass]]` is expected to gain, and what happens when it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from compress import registry
from compress.contracts import Settings

OnNoGain = Literal["keep", "drop", "fail"]


class Expect(Settings):
    """What a pass is to gain, against the engine of the model before it."""

    decode_speedup: float | None = Field(None, gt=0, description="how many times as fast a token is written")
    prefill_speedup: float | None = Field(None, gt=0, description="how many times as fast the prompt is read")
    request_speedup: float | None = Field(None, gt=0, description="how many times as fast a whole request is")
    smaller: float | None = Field(None, gt=0, description="how many times smaller the engine's files are")

    @property
    def wanted(self) -> Mapping[str, float]:
        """What is expected, by name."""
        return self.model_dump(exclude_none=True)


def named(given: Any) -> Any:
    """Return a table of expectations as it is.

    Raises:
        ValueError: a name or a number in it is wrong, which is then named; or there is none.
    """
    if not isinstance(given, Mapping):
        return given
    for name, wanted in given.items():
        if name not in Expect.model_fields:
            raise ValueError(f"unknown expectation, got {name!r}{registry.nearest(name, Expect.model_fields)}")
        if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 < wanted < float("inf"):
            raise ValueError(f"{name} must be a number above 0, got {wanted!r}; such as 1.2")
    if not given:
        raise ValueError("must say what is expected, got {}; such as { decode_speedup = 1.2 }")
    return given
