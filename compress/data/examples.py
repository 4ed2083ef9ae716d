"""Tokenised windows and examples: batches of tensors out, one safetensors file on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from compress import files
from compress.errors import BadData

IGNORED = -100  # a label that takes no part in the loss, as transformers has it


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Rows of tokens with their labels.

    Attributes:
        tokens: int64 `[all tokens]`, row after row.
        lengths: int64 `[rows]`.
        pad: the token that fills a batch up, on the right; it is masked and never learnt.
        labels: int64 `[all tokens]` (`IGNORED` where nothing is learnt) for a causal language model, int64 `[rows]`
            classes, float32 `[rows]` numbers, or None.
        types: int64 `[all tokens]`, which of two sentences a token belongs to, where the tokenizer tells.
        bytes: int64 `[rows]`, UTF-8 bytes of the text that a row predicts (all but its first token), where known.
        of_text: whether the rows are windows of running text, all of one length.
        by_token: whether there is a label for each token, not for each row.
        left_out: how many of the chosen rows had no room for a token to learn.
    """

    tokens: Tensor
    lengths: Tensor
    pad: int = 0
    labels: Tensor | None = None
    types: Tensor | None = None
    bytes: Tensor | None = None
    of_text: bool = False
    by_token: bool = False
    left_out: int = 0

    @classmethod
    def of_windows(cls, windows: Tensor, bytes_: Tensor | None = None) -> Examples:
        """Return windows of running text, int64 `[rows, length]`, in which every token is learnt."""
        rows, length = windows.shape
        flat = windows.reshape(-1)
        return cls(
            tokens=flat, lengths=torch.full((rows,), length), labels=flat, bytes=bytes_, of_text=True, by_token=True
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)

    @property
    def windows(self) -> Tensor:
        """Windows of running text, int64 `[rows, length]`.

        Raises:
            BadData: the rows are labelled examples.
        """
        if not self.of_text:
            raise BadData("these data are labelled examples, no running text; give a text for this use")
        return self.tokens.view(len(self), -1)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return rows as the model takes them, padded on the right.

        Args:
            indices: which rows, from 0.

        Returns:
            `input_ids` and `attention_mask`, int64 `[batch, longest]`; `labels`, if any, int64 `[batch, longest]`
            (`IGNORED` where nothing is learnt), int64 `[batch]` or float32 `[batch]`; `token_type_ids` where the
            tokenizer gives them; `bytes`, int64 `[batch]`, where known.
        """
        chosen = list(indices)
        rows = self._rows(self.tokens, chosen)
        found = {
            "input_ids": _padded(rows, self.pad),
            "attention_mask": _padded([torch.ones_like(row) for row in rows], 0),
        }
        if self.types is not None:
            found["token_type_ids"] = _padded(self._rows(self.types, chosen), 0)
        if self.labels is not None and self.by_token:
            found["labels"] = _padded(self._rows(self.labels, chosen), IGNORED)
        elif self.labels is not None:
            found["labels"] = self.labels[chosen]
        if self.bytes is not None:
            found["bytes"] = self.bytes[chosen]
        return found

    def save(self, path: Path) -> None:
        """Write the examples atomically."""
        tensors = {"tokens": self.tokens, "lengths": self.lengths, "types": self.types, "bytes": self.bytes}
        tensors["labels"] = None if self.of_text else self.labels  # of running text, the labels are the tokens
        facts = {"pad": self.pad, "of_text": self.of_text, "by_token": self.by_token, "left_out": self.left_out}
        present = {n: t.contiguous() for n, t in tensors.items() if t is not None}
        files.write_atomic(path, save(present, {"facts": json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path) -> Examples:
        """Read what `save` wrote.

        Raises:
            BadData: something else wrote into the file.
        """
        try:
            with safe_open(path, "pt") as file:
                tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 (not a mapping)
                facts = json.loads(file.metadata()["facts"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BadData(f"{path}: no cached tokens ({error}); delete the file") from error
        if facts["of_text"]:
            tensors["labels"] = tensors["tokens"]
        return cls(**tensors, **facts)

    @cached_property
    def _ends(self) -> list[int]:
        return [0, *self.lengths.cumsum(0).tolist()]

    def _rows(self, flat: Tensor, chosen: list[int]) -> list[Tensor]:
        return [flat[self._ends[i] : self._ends[i + 1]] for i in chosen]


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)
