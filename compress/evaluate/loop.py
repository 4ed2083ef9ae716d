"""Read the examples batch by batch, through the subject and its parent side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from compress.context import QuietReport, Report
from compress.data import Question, Source
from compress.errors import BadData, BadModel
from compress.evaluate.choices import Choices
from compress.evaluate.result import Evaluation, compare, summarise
from compress.evaluate.samples import MEASURES
from compress.evaluate.scorers import Batch, Scorer, Subject, scorer_of
from compress.facts import Task

_ELEMENTS = 2**25  # of one model's logits that are held at once
_TOKENS = 4096  # of one batch
_ROWS = 64

Samples = dict[str, list[float]]


class Examples(Protocol):
    """What is evaluated on: windows or labelled examples, by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: list[int]) -> Batch:
        """Return `input_ids`, `attention_mask` `[rows, tokens]`, `labels` and, where known, `bytes` `[rows]`."""


def evaluate(
    subject: Subject,
    examples: Examples,
    task: Task,
    parent: Subject | None = None,
    *,
    batch: int | None = None,
    report: Report | None = None,
    seed: int = 0,
) -> Evaluation:
    """Measure a subject on examples, and beside its parent when one is given.

    Both read each batch before the next is made, so that no more than one batch of logits is ever held.

    Args:
        subject: an artifact, a torch model (with the head of the task) or an engine.
        examples: the data, tokenised for the subject.
        task: what the outputs mean.
        parent: the model that the subject was made from; of the same tokenizer.
        batch: windows at once; by default as many as fit a modest memory.
        report: where progress shows.
        seed: of the bootstrap.

    Raises:
        BadData: nothing or too little to measure on, or a window longer than a model takes.
        BadModel: NaN among the outputs, or a parent of another vocabulary.
    """
    scorers = [scorer_of(s) for s in (subject, parent) if s is not None]
    if task == "embedding" and parent is None:
        raise BadData("an embedding is measured by its cosine to the parent's; give the parent")
    samples = _measured(scorers, examples, task, batch, report or QuietReport())
    return _summary(scorers, samples, seed)


def evaluate_choices(
    subject: Subject,
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    parent: Subject | None = None,
    *,
    batch: int | None = None,
    report: Report | None = None,
    seed: int = 0,
) -> Evaluation:
    """Measure how often a causal model finds the right choice likeliest, in sum and per character.

    A prompt with a choice that is longer than the models take loses its beginning, which is noted.

    Args:
        subject: an artifact, a torch model or an engine.
        questions: prompts with their choices.
        tokenizer: the subject's.
        parent: the model that the subject was made from; of the same tokenizer.
        batch: choices at once; by default as many as fit a modest memory.
        report: where progress shows.
        seed: of the bootstrap.

    Raises:
        BadData: fewer than two questions, or a choice that is too long.
        BadModel: NaN among the outputs.
    """
    scorers = [scorer_of(s) for s in (subject, parent) if s is not None]
    report = report or QuietReport()
    longest = min((s.positions for s in scorers if s.positions is not None), default=None)
    rows = Choices(questions, tokenizer, longest)
    if rows.cut:
        report.note(
            f"{rows.cut} of {len(rows)} choices are longer than {longest} tokens; their prompts lose the beginning"
        )
    samples = [rows.picked(_measured([s], rows, "causal-lm", batch, report)[0]["loss"]) for s in scorers]
    return _summary(scorers, samples, seed)


def evaluate_source(
    subject: Subject,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    parent: Subject | None = None,
    *,
    batch: int | None = None,
    report: Report | None = None,
    seed: int = 0,
) -> Evaluation:
    """Measure a subject on what a source holds: questions with choices by their accuracy, all else as `evaluate` does.

    Args:
        subject: an artifact, a torch model or an engine.
        source: the data, made for the subject's task.
        tokenizer: the subject's.
        parent: the model that the subject was made from; of the same tokenizer.
        batch: windows at once; by default as many as fit a modest memory.
        report: where progress shows.
        seed: of the bootstrap.

    Raises:
        BadData: the data cannot be read, are too few, or of windows longer than a model takes.
        BadModel: NaN among the outputs, or a parent of another vocabulary.
    """
    if source.kind == "choices":
        return evaluate_choices(subject, source.choices(), tokenizer, parent, batch=batch, report=report, seed=seed)
    examples = source.examples(tokenizer)
    return evaluate(subject, examples, source.task, parent, batch=batch, report=report, seed=seed)


def _measured(
    scorers: list[Scorer], examples: Examples, task: Task, batch: int | None, report: Report
) -> list[Samples]:
    """Return the samples of a subject and, if there is a second, of its parent."""
    samples: list[Samples] = [{} for _ in scorers]
    done, rows = 0, batch or 1
    with report.bar("evaluate", len(examples)) as bar:
        while done < len(examples):
            indices = list(range(done, min(done + rows, len(examples))))
            given = examples.batch(indices)
            outputs = [_outputs(s, task, given, indices) for s in scorers]
            _same_width(outputs)
            references = (outputs[1] if len(scorers) > 1 else None, None)
            for found, ours, reference, scorer in zip(samples, outputs, references, scorers, strict=False):
                measured = MEASURES[task](given, ours, reference)
                _check(measured, scorer, indices)
                for name, values in measured.items():
                    found.setdefault(name, []).extend(values.tolist())
            done += len(indices)
            rows = batch or _fitting(outputs[0], given)
            bar.advance(len(indices))
    return samples


def _summary(scorers: list[Scorer], samples: list[Samples], seed: int) -> Evaluation:
    found = summarise(scorers[0].kind, samples[0], seed=seed)
    if len(scorers) == 1 or not samples[1]:
        return found
    return replace(
        found,
        deltas=compare(samples[0], samples[1], seed=seed),
        parent=summarise(scorers[1].kind, samples[1], seed=seed),
    )


def _outputs(scorer: Scorer, task: Task, given: Batch, indices: list[int]) -> Tensor:
    """Return the outputs on one batch, after refusing windows that are too long and outputs that are NaN."""
    mask = torch.as_tensor(given["attention_mask"])
    length = int(mask.sum(1).max())
    if scorer.positions is not None and length > scorer.positions:
        raise BadData(
            f"a window of {length} tokens, and the {scorer.kind} takes at most {scorer.positions}; use shorter windows"
        )
    if task == "causal-lm":
        outputs = scorer.logits(given)
        bad = (outputs.isnan().any(-1) & mask.bool().to(outputs.device)).cpu()
    else:
        outputs = scorer.outputs(given, task == "embedding").cpu()
        bad = outputs.isnan()
    if bad.any():
        row = int(bad.any(1).nonzero()[0])
        raise BadModel(f"the {scorer.kind} gives NaN in window {indices[row]} (counted from 0); its weights are broken")
    return outputs


def _same_width(outputs: list[Tensor]) -> None:
    widths = {o.shape[-1] for o in outputs}
    if len(widths) > 1:
        ours, parents = (o.shape[-1] for o in outputs)
        raise BadModel(f"{ours} outputs cannot be compared with the parent's {parents}; is it really the parent?")


def _check(measured: Mapping[str, Tensor], scorer: Scorer, indices: list[int]) -> None:
    tokens = measured.get("tokens")
    if tokens is not None and not tokens.all():
        row = int((tokens == 0).nonzero()[0])
        raise BadData(f"window {indices[row]} (counted from 0) predicts no token; give longer texts")
    for name, values in measured.items():
        if not values.isfinite().all():
            row = int((~values.isfinite()).nonzero()[0])
            raise BadModel(
                f"the {scorer.kind}'s {name} in window {indices[row]} (counted from 0) is {float(values[row])}; "
                "its weights are broken"
            )


def _fitting(outputs: Tensor, given: Batch) -> int:
    """Return how many windows make a modest batch, by what one of them took."""
    rows, tokens = torch.as_tensor(given["input_ids"]).shape
    return max(1, min(_ROWS, _TOKENS // tokens, _ELEMENTS * rows // outputs.numel()))
