"""From text to tokens: windows of running text, answers of which only the response is learnt, labelled sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from compress.data.columns import Answer, Question, Sentences
from compress.data.examples import IGNORED, Examples
from compress.errors import BadData

_SPREAD = 4  # times the windows that are asked for: from so many they are chosen
_DOCUMENTS = 64  # tokenised at once


def joined_windows(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], length: int, count: int, seed: int
) -> Tensor:
    """Return windows for calibration and training.

    The documents, in a random order, are tokenised, each with the tokenizer's BOS (if it has one) in front, and
    joined; the row of tokens is cut into windows, of which a random choice is taken.  Of a large corpus only so many
    documents are read that there are four times the windows asked for.

    Args:
        tokenizer: the model's.
        documents: texts; blank ones are passed over.
        length: tokens of a window.
        count: windows to take; 0, or more than there are = all.
        seed: of both random orders.

    Returns:
        int64 `[windows, length]`.

    Raises:
        BadData: there is no text, or less than one window of it.
    """
    rng = np.random.default_rng(seed)
    texts = [t for t in documents if t.strip()]
    order = rng.permutation(len(texts))
    front = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens: list[int] = []
    for start in range(0, len(texts), _DOCUMENTS):
        part = [texts[i] for i in order[start : start + _DOCUMENTS]]
        for ids in tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]:
            tokens += front + ids
        if count and len(tokens) >= _SPREAD * count * length:
            break
    windows = _cut(tokens, length)
    chosen = rng.permutation(len(windows))
    return windows[chosen[:count] if count else chosen]


def standard_windows(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], length: int, count: int
) -> tuple[Tensor, Tensor | None]:
    """Return windows for perplexity, by the usual protocol.

    The texts are joined by blank lines and tokenised once, as the tokenizer does by itself; of N tokens the first
    floor(N / length) windows are taken.

    Args:
        tokenizer: the model's.
        documents: texts.
        length: tokens of a window.
        count: windows to take from the start; 0, or more than there are = all.

    Returns:
        int64 `[windows, length]`, and int64 `[windows]` with the UTF-8 bytes of all tokens of a window but its first
        (which is not predicted), or None where the tokenizer does not tell where its tokens stand.

    Raises:
        BadData: there is no text, or less than one window of it.
    """
    text = "\n\n".join(documents) if any(t.strip() for t in documents) else ""
    encoded = tokenizer(text, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    windows = _cut(encoded["input_ids"], length)[: count or None]
    if not tokenizer.is_fast:
        return windows, None
    ends = np.array([end for _, end in encoded["offset_mapping"]])
    sizes = np.diff(_byte_ends(text)[np.maximum.accumulate(ends)], prepend=0)
    sizes = sizes[: windows.numel()].reshape(len(windows), length)
    return windows, torch.from_numpy(sizes[:, 1:].sum(1))


def answers(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Answer], length: int) -> Examples:
    """Return prompts with their responses, of which only the response and the EOS after it are learnt.

    With a chat template the prompt is the user's turn.  Without one, an instruction stands under headings, and any
    other prompt as it is.  What is longer than `length` loses its end.

    Raises:
        BadData: no response has room.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tokens, labels = [], []
    for row in rows:
        ids, start = encode_answer(tokenizer, _prompt(tokenizer, row), row.response)
        ids = (ids + end)[:length]
        if start < len(ids):
            tokens.append(torch.tensor(ids))
            labels.append(torch.tensor([IGNORED] * start + ids[start:]))
    if not tokens:
        raise BadData(f"no prompt leaves room for its response in {length} tokens; raise length")
    return Examples(
        tokens=torch.cat(tokens),
        lengths=torch.tensor([len(t) for t in tokens]),
        labels=torch.cat(labels),
        by_token=True,
        pad=_pad(tokenizer),
        left_out=len(rows) - len(tokens),
    )


def encode_answer(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[list[int], int]:
    """Return the tokens of prompt and response, BOS in front, and where the response begins.

    Both are tokenised together, as the model would meet them; the response begins at the first token that the prompt
    alone would not have given.
    """
    whole = tokenizer(prompt + response, add_special_tokens=False, verbose=False)["input_ids"]
    alone = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, alone, strict=False)))
    bos = tokenizer.bos_token_id
    front = [] if bos is None or whole[:1] == [bos] else [bos]
    return front + whole, len(front) + start


def right_answer(row: Question) -> Answer:
    """Return the question with its right choice, as something to learn."""
    return Answer(row.prompt, f" {row.choices[row.gold]}", sections=False)


def sentences(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sentences], length: int, labels: Tensor | None
) -> Examples:
    """Return sentences or pairs with the tokenizer's special tokens, cut to `length`.

    Args:
        tokenizer: the model's.
        rows: all single or all pairs.
        length: the most tokens of one.
        labels: int64 or float32 `[rows]`, or None.
    """
    seconds = [r.second for r in rows if r.second is not None] or None
    encoded = tokenizer([r.first for r in rows], seconds, truncation=True, max_length=length, verbose=False)
    return Examples(
        tokens=_flat(encoded["input_ids"]),
        lengths=torch.tensor([len(ids) for ids in encoded["input_ids"]]),
        types=_flat(encoded["token_type_ids"]) if "token_type_ids" in encoded else None,
        labels=labels,
        pad=_pad(tokenizer),
    )


def _cut(tokens: list[int], length: int) -> Tensor:
    if len(tokens) < length:
        what = f"{len(tokens)} tokens, less than one window of {length}" if tokens else "no text"
        raise BadData(f"holds {what}; give a longer text or lower length")
    rows = len(tokens) // length
    return torch.tensor(tokens[: rows * length], dtype=torch.int64).view(rows, length)


def _byte_ends(text: str) -> np.ndarray:
    """Return how many UTF-8 bytes the first 0, 1, 2, … characters take, int64 `[characters + 1]`."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(widths)])


def _prompt(tokenizer: PreTrainedTokenizerBase, row: Answer) -> str:
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": row.prompt}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    if row.sections:
        return f"### Instruction:\n{row.prompt}\n\n### Response:\n"
    apart = row.prompt[-1:].isspace() or row.response[:1].isspace()
    return row.prompt if apart else f"{row.prompt}\n"


def _flat(rows: list[list[int]]) -> Tensor:
    return torch.cat([torch.tensor(ids, dtype=torch.int64) for ids in rows])


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)  # masked, so any token does
    return next(int(token) for token in known if token is not None)
