"""Multiple choice as rows of tokens: every prompt with every of its choices, of which only the choice is scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from compress.data import IGNORED, Question, encode_answer
from compress.errors import BadData


class Choices:
    """Questions as examples for a causal model, one row per choice.

    Args:
        questions: prompts, choices, and the place of the right one.
        tokenizer: the model's.
        longest: tokens that the model takes; of longer rows the prompt loses its beginning.

    Attributes:
        cut: how many rows did.

    Raises:
        BadData: a choice that leaves no room for any of its prompt.
    """

    def __init__(self, questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, longest: int | None) -> None:
        self.questions, self.cut = questions, 0
        self._rows: list[tuple[Tensor, Tensor]] = []
        for number, question in enumerate(questions):
            for choice in question.choices:
                ids, start = encode_answer(tokenizer, question.prompt, f" {choice}")
                if len(ids) == start:
                    raise BadData(f"question {number} (counted from 0): choice {choice!r} has no token of its own")
                over = max(0, len(ids) - longest) if longest is not None else 0
                if over >= max(start, 1):
                    raise BadData(
                        f"question {number} (counted from 0): a choice of {len(ids) - start} tokens, and the model "
                        f"takes at most {longest} with something before them; leave it out"
                    )
                self.cut += over > 0
                row = torch.tensor(ids[over:])
                self._rows.append((row, torch.where(torch.arange(len(row)) < start - over, IGNORED, row)))

    def __len__(self) -> int:
        """Return the number of rows: of all choices of all questions."""
        return len(self._rows)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return rows padded on the right: `input_ids`, `attention_mask` and `labels`, int64 `[rows, tokens]`."""
        ids, labels = zip(*(self._rows[i] for i in indices), strict=True)
        return {
            "input_ids": pad_sequence(list(ids), batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(list(labels), batch_first=True, padding_value=IGNORED),
        }

    def picked(self, loss: Sequence[float]) -> dict[str, list[float]]:
        """Return per question the place of the likeliest choice, in sum and per character, and of the right one.

        Args:
            loss: mean nats per token of each row.
        """
        tokens = [int((labels[1:] != IGNORED).sum()) for _, labels in self._rows]
        chance = -np.asarray(loss) * tokens
        sizes = np.array([max(1, len(choice)) for q in self.questions for choice in q.choices])
        ends = np.cumsum([len(q.choices) for q in self.questions])[:-1]
        return {
            "picked": [int(part.argmax()) for part in np.split(chance, ends)],
            "picked_normalised": [int(part.argmax()) for part in np.split(chance / sizes, ends)],
            "gold": [q.gold for q in self.questions],
        }
