"""A loaded engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Past = Sequence[tuple["np.ndarray", "np.ndarray"]]


class Engine(ABC):
    """A loaded engine: arrays in, arrays out, nothing of torch; `manifest` is the content of `engine.json`."""

    manifest: Mapping[str, Any]

    @abstractmethod
    def step(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, position_ids: np.ndarray, past: Past
    ) -> tuple[np.ndarray, Past]:
        """Run a decoder over new tokens.

        Args:
            input_ids: int64 [batch, new].
            attention_mask: int64 [batch, past + new], 0 = padding.
            position_ids: int64 [batch, new].
            past: one (key, value) pair of [batch, kv_heads, past, head_dim] per layer that has attention.

        Returns:
            logits float [batch, new, vocabulary] and the new past.
        """

    @abstractmethod
    def encode(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """Run an encoder: int64 [batch, tokens] each -> float [batch, labels or hidden]; types are 0 unless given."""

    def takes(self, tokens: int) -> bool:
        """Tell whether it was made for sequences of so many tokens; else a step raises."""
        return True

    @abstractmethod
    def empty_past(self, batch: int) -> Past:
        """Return the past of length 0."""

    @abstractmethod
    def providers(self) -> tuple[str, ...]:
        """Return the execution providers really used."""

    def kernels(self) -> Mapping[str, str]:
        """Return the kernel chosen per layer where the runtime tells, else an empty table."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Free the engine's memory."""
