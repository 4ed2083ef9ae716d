"""`[data.calibration]`, `[data.training]`, `[data.evaluation]`: which text, how much of it, under which columns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from compress.contracts import Settings

Role = Literal["calibration", "training", "evaluation"]
Column = Annotated[str, Field(min_length=1)]

_WINDOWS: dict[str, int] = {"calibration": 128, "training": 2048, "evaluation": 256}


class DataSettings(Settings):
    """One source of text or of labelled examples.

    Columns are found by their usual names; the settings `text` to `gold` name others.
    """

    source: str = Field(
        "python-docs",
        min_length=1,
        description="python-docs, python-source, python-returns (labelled), a txt/jsonl/csv/parquet file, a folder of "
        "those, or a hub data set",
    )
    name: str | None = Field(None, description="configuration of a hub data set, such as sst2 of nyu-mll/glue")
    revision: str | None = Field(None, description="branch, tag or commit of a hub data set")
    split: str | None = Field(
        None,
        description="train or heldout of a built-in corpus, a hub split, or of a folder the files so named; "
        "by default what is held out for evaluation and train otherwise, of a folder all files",
    )
    windows: int = Field(128, ge=0, description="windows or examples to take; 0 = all")
    length: int = Field(256, ge=2, description="tokens of a window; longer examples are cut")
    text: Column | None = Field(None, description="column of the text or first sentence; text, sentence, sentence1, …")
    text_pair: Column | None = Field(None, description="column of the second sentence; sentence2, hypothesis, …")
    label: Column | None = Field(None, description="column of the class or number; label")
    classes: tuple[str, ...] = Field((), description="names of the classes in order of their ids; by default sorted")
    prompt: Column | None = Field(None, description="column of the question or instruction; prompt, instruction, …")
    input: Column | None = Field(None, description="column of the instruction's input; input")
    response: Column | None = Field(
        None, description="column of the answer, which alone is learnt; output, response, …"
    )
    choices: Column | None = Field(None, description="column of the answers to choose from; choices")
    gold: Column | None = Field(None, description="column of the right answer's place, from 0, or letter; gold, …")

    @classmethod
    def defaults(cls, role: str) -> dict[str, Any]:
        """Return the defaults that differ between the uses of data."""
        return {"windows": _WINDOWS[role]}
