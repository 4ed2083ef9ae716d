"""One source of data in its use: text, token windows, labelled examples, questions."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from compress import files
from compress.data import columns, encoding
from compress.data.columns import Kind, Layout, Question
from compress.data.examples import Examples
from compress.data.places import Row, locate
from compress.data.settings import DataSettings, Role
from compress.errors import BadData
from compress.facts import Task

T = TypeVar("T")


class Source:
    """What `[data.<role>]` stands for.

    Making one looks whether the source can be there; nothing is read before it is asked for.

    Args:
        settings: the table.
        role: what the data are for: a random choice of windows for `calibration` and `training`, the usual
            perplexity protocol for `evaluation`, which is the same for every seed.
        task: what the model is for; decides how rows are read.
        seed: of the choice of windows and examples.
        cache: folder for tokenised data; None keeps nothing.

    Raises:
        BadData: there is no such file, folder, corpus or split.
    """

    def __init__(
        self, settings: DataSettings, role: Role, task: Task, seed: int = 0, cache: Path | None = None
    ) -> None:
        self.settings, self.role, self.task, self.seed, self.cache = settings, role, task, seed, cache
        self._place = locate(settings, role)

    @cached_property
    def digest(self) -> str:
        """Hex digest of the settings, the use and the content of the data, wherever they lie."""
        settings = self.settings.model_dump(mode="json", exclude={"source"})
        return files.digest_of(
            {
                "settings": settings,
                "role": self.role,
                "task": self.task,
                "seed": self.seed,
                "data": self._place.digest(),
            }
        )

    @property
    def kind(self) -> Kind:
        """How the rows are read: as `text`, `sentences`, `answers` or `choices`."""
        return self._layout.kind

    def documents(self) -> Iterator[str]:
        """Yield the text of every row, all of them, in a fixed order."""
        column = columns.layout(self.settings, self.task, self._first, only="text").columns["text"]
        for row in self._place.rows():
            yield columns.text(row, column)

    def choices(self) -> list[Question]:
        """Return the multiple-choice questions that the settings take."""
        found = columns.layout(self.settings, self.task, self._first, only="choices").columns
        return self._chosen([columns.question(row, found) for row in self._place.rows()])

    def examples(self, tokenizer: PreTrainedTokenizerBase) -> Examples:
        """Return the windows or examples that the settings take, tokenised or as the cache has them.

        Raises:
            BadData: unreadable, empty or too short data, a missing column, a label out of range.
        """
        if self.cache is None:
            return self._made(tokenizer)
        made_by = {p.name: files.sha256(p) for p in sorted(Path(__file__).parent.glob("*.py"))}
        key = files.digest_of({"data": self.digest, "tokenizer": tokenizer_digest(tokenizer), "code": made_by})
        path = self.cache / f"{key}.safetensors"
        if not path.exists():
            examples = self._made(tokenizer)
            self.cache.mkdir(parents=True, exist_ok=True)
            examples.save(path)
        return Examples.load(path)

    def _made(self, tokenizer: PreTrainedTokenizerBase) -> Examples:
        own = copy.deepcopy(tokenizer)  # a call with truncation would change what the tokenizer saves
        length = self.settings.length
        if self.kind == "sentences":
            return self._sentences(own)
        if self.kind == "text":
            return self._windows(own)
        rows = [
            encoding.right_answer(columns.question(row, self._layout.columns))
            if self.kind == "choices"
            else columns.answer(row, self._layout.columns)
            for row in self._place.rows()
        ]
        return encoding.answers(own, self._chosen(rows), length)

    def _windows(self, tokenizer: PreTrainedTokenizerBase) -> Examples:
        length, count = self.settings.length, self.settings.windows
        documents = list(self.documents())
        try:
            if self.role == "evaluation":
                return Examples.of_windows(*encoding.standard_windows(tokenizer, documents, length, count))
            return Examples.of_windows(encoding.joined_windows(tokenizer, documents, length, count, self.seed))
        except BadData as error:
            raise BadData(f"{self.settings.source}: {error}") from None

    def _sentences(self, tokenizer: PreTrainedTokenizerBase) -> Examples:
        rows = list(self._place.rows())
        texts = [columns.sentences(row, self._layout.columns) for row in rows]
        labels = self._labels(rows)
        chosen = self._chosen(range(len(rows)))
        return encoding.sentences(
            tokenizer, [texts[i] for i in chosen], self.settings.length, None if labels is None else labels[chosen]
        )

    def _labels(self, rows: Sequence[Row]) -> Tensor | None:
        """Return the labels; embeddings have none, and calibration does without where there are none."""
        column = self.settings.label or "label"
        optional = self.role == "calibration" and self.settings.label is None
        if self.task == "embedding" or (optional and column not in rows[0][1]):
            return None
        if self.task == "regression":
            return torch.tensor(columns.numbers(rows, column), dtype=torch.float32)
        return torch.tensor(columns.classes(rows, column, self.settings.classes), dtype=torch.int64)

    def _chosen(self, rows: Sequence[T]) -> list[T]:
        """Return a random choice; for evaluation the same one for every seed, in the order of the file."""
        count = self.settings.windows or len(rows)
        if self.role == "evaluation":
            return [rows[i] for i in sorted(np.random.default_rng(0).permutation(len(rows))[:count])]
        return [rows[i] for i in np.random.default_rng(self.seed).permutation(len(rows))[:count]]

    @cached_property
    def _first(self) -> Row:
        for row in self._place.rows():
            return row
        raise BadData(f"{self.settings.source}: is empty; give data with at least one row")

    @cached_property
    def _layout(self) -> Layout:
        return columns.layout(self.settings, self.task, self._first)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the hex digest of all that decides which tokens a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else dict(tokenizer.get_vocab())
    content = {k: v for k, v in content.items() if k not in ("truncation", "padding")}  # left behind by the last call
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    around = [type(tokenizer).__qualname__, tokenizer.chat_template, sorted(tokenizer.model_input_names)]
    return files.digest_of([content, special, around])
