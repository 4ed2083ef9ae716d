"""What is to be said, and how people said it: read from a task's folder, and tokenised as prompts with responses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from benchmarks.nlg.cells import TASKS
from compress import files
from compress.data import DataSettings, Examples, Source
from compress.data.places import locate
from compress.errors import BadData

TRAINING = ("train", "dev")  # the first that is there: E2E's training file may be missing
EVALUATION = ("test",)


@dataclass(frozen=True)
class Meaning:
    """One input.

    Attributes:
        prompt: what is to be said, a line or several, each with its end.
        references: all the ways in which people said it.
    """

    prompt: str
    references: tuple[str, ...]


def read(folder: Path, splits: Sequence[str]) -> tuple[Path, list[Meaning]]:
    """Return the first of these splits that a task's folder has, as its file and the inputs in its order.

    Raises:
        BadData: there is none, or a row is not what the task has.
    """
    paths = [p for name in splits for p in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if p.exists()]
    if not paths:
        wanted = " and no ".join(f"{name}.jsonl" for name in splits)
        raise BadData(f"{folder}: no {wanted} in it; --data names a folder with {' and '.join(TASKS)} in it")
    rows = locate(DataSettings(source=str(paths[0])), "training").rows()
    return paths[0], [_meaning(where, row, TASKS[folder.name]) for where, row in rows]


def examples(
    meanings: Sequence[Meaning], tokenizer: PreTrainedTokenizerBase, length: int, path: Path, most: int = 0
) -> tuple[Examples, list[int]]:
    """Return every pair of an input and a reference, of which the reference alone is learnt, and whose pair each is.

    Args:
        meanings: the inputs.
        tokenizer: the model's.
        length: tokens after which a pair is cut.
        path: of a file for the pairs, which the project's own source reads.
        most: references of an input that are taken; 0 = all.

    Raises:
        BadData: an input leaves no room for its reference.
    """
    pairs = [(i, m.prompt, r) for i, m in enumerate(meanings) for r in m.references[: most or None]]
    lines = [json.dumps({"prompt": prompt, "response": said}) + "\n" for _, prompt, said in pairs]
    files.write_atomic(path, "".join(lines).encode())
    settings = DataSettings(source=str(path), windows=0, length=length)
    found = Source(settings, "evaluation", "causal-lm").examples(tokenizer)  # in the order of the file
    if found.left_out:
        raise BadData(f"{found.left_out} pairs leave no room for a sentence in {length} tokens; raise --length")
    return found, [i for i, _, _ in pairs]


def _meaning(where: str, row: Mapping[str, Any], column: str) -> Meaning:
    given, said = row.get(column), row.get("refs")
    lines = [given] if isinstance(given, str) else given
    for name, value in ((column, lines), ("refs", said)):
        if not (isinstance(value, list) and value and all(isinstance(v, str) and v.strip() for v in value)):
            raise BadData(f"{where}: column {name!r} must hold text, got {row.get(name)!r}")
    return Meaning("".join(f"{line.replace('_', ' ')}\n" for line in lines), tuple(r.strip() for r in said))
