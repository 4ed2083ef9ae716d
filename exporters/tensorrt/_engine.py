"""A plan, run by TensorRT or TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress import files
from compress.bench_tensorrt import Session, described
from compress.contracts import Engine, Past
from compress.errors import BadSettings, Unavailable


class TensorrtEngine(Engine):
    """A decoder or an encoder on the GPU.

    Args:
        folder: holds `engine.json` and the plan.

    Raises:
        Unavailable: the plan cannot run on this machine.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest: Mapping[str, Any] = files.read_json(folder / "engine.json")
        try:
            self._session = Session(folder, self.manifest)
        except ValueError as error:
            raise Unavailable(str(error)) from None
        self._about = described(folder, self.manifest)
        self._rows, self._tokens = map(int, self._about["profiles"]["prefill"]["input_ids"][2])
        self._type = np.dtype(np.float16 if self.manifest["precision"] == "fp16" else np.float32)
        self._parts = [f"{p['layer']}.{part}" for p in self.manifest["past"] for part in ("key", "value")]

    def step(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, position_ids: np.ndarray, past: Past
    ) -> tuple[np.ndarray, Past]:
        """Run a decoder over new tokens, as the contract says; behind a past, one token after the other."""
        old, new = attention_mask.shape[1] - input_ids.shape[1], input_ids.shape[1]
        if old == 0 or new == 1:
            return self._once(input_ids, attention_mask, position_ids, past)
        logits = []
        for at in range(new):  # the plan's profiles know prompts without a past, and single tokens
            seen, now = attention_mask[:, : old + at + 1], slice(at, at + 1)
            said, past = self._once(input_ids[:, now], seen, position_ids[:, now], past)
            logits.append(said)
        return np.concatenate(logits, axis=1), past

    def _once(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, position_ids: np.ndarray, past: Past
    ) -> tuple[np.ndarray, Past]:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        held = [array for pair in past for array in pair]
        given |= {f"past_key_values.{p}": a for p, a in zip(self._parts, held, strict=True)}
        made = self._run(given)
        present = [made[f"present.{p}"] for p in self._parts]
        return made["logits"], list(zip(present[::2], present[1::2], strict=True))

    def encode(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """Run an encoder, as the contract says."""
        types = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": types}
        (result,) = self._run(given).values()
        return result

    def _run(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs; more sequences than the plan takes go one part after the other.

        Raises:
            BadSettings: sequences longer than the plan takes.
        """
        rows, tokens = given["attention_mask"].shape
        if not self.takes(tokens):
            mend = f"[[target]] max_length = {tokens} would do"
            raise BadSettings(f"the plan takes {self._tokens} tokens, got {tokens}; {mend}")
        starts = range(0, rows, self._rows)
        parts = [self._session({n: a[i : i + self._rows] for n, a in given.items()}) for i in starts]
        return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}

    def takes(self, tokens: int) -> bool:
        """Tell whether sequences of so many tokens are within the plan's profiles."""
        return tokens <= self._tokens

    def empty_past(self, batch: int) -> Past:
        """Return the past of length 0."""
        shapes = [(batch, p["heads"], 0, p["head_dim"]) for p in self.manifest["past"]]
        return [(np.zeros(s, self._type), np.zeros(s, self._type)) for s in shapes]

    def providers(self) -> tuple[str, ...]:
        """Return the runtime and the GPU."""
        return (f"{self._about['flavour']} {self._about['version']}", self._session.versions["gpu"])

    def kernels(self) -> Mapping[str, str]:
        """Return the kernel of each layer, as far as the engine inspector tells: TensorRT-RTX may choose unseen."""
        return self._session.kernels() or {"every layer": "unknown"}

    def close(self) -> None:
        """Free the engine's memory."""
        del self._session
