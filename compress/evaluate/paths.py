"""Open whatever a path is and measure it on data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from compress import loading
from compress.artifact import CARD, Artifact
from compress.context import Report
from compress.data import DataSettings, Source
from compress.engines import MANIFEST, Engines
from compress.errors import BadModel
from compress.evaluate.loop import evaluate_source
from compress.evaluate.result import Evaluation
from compress.evaluate.scorers import EngineScorer, ModelScorer, Scorer
from compress.facts import Task


@dataclass(frozen=True)
class Opened:
    """What a path holds, ready to be measured."""

    scorer: Scorer
    tokenizer: PreTrainedTokenizerBase
    task: Task


def evaluate_path(
    path: Path | str,
    settings: DataSettings | None = None,
    parent: Path | str | None = None,
    *,
    task: Task = "causal-lm",
    device: str = "cpu",
    batch: int | None = None,
    report: Report | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Measure a model folder or hub id, an artifact or an engine folder; the result's `kind` says which it was.

    Args:
        path: what to measure.
        settings: the data; by default the held-out side of the built-in documentation.
        parent: what it was made from, in any of the same forms; nothing is compared unless it is given.
        task: of a model that is no artifact; artifacts and engines know theirs.
        device: where torch models run; an engine runs on the device that it was made for.
        batch: windows at once.
        report: where progress shows.
        seed: of the data and of the bootstrap.
        trust_remote_code: whether Python files beside the weights may run.

    Raises:
        BadModel: nothing there that can be measured, or a parent of another task.
        BadData: the data are missing, too few, or of windows longer than a model takes.
    """
    with ExitStack() as stack:
        ours = stack.enter_context(opened(path, task, device, trust_remote_code))
        dense = None
        if parent is not None:
            theirs = stack.enter_context(opened(parent, ours.task, device, trust_remote_code))
            _check_pair(path, ours, parent, theirs)
            dense = theirs.scorer
        source = Source(settings or _usual(ours.scorer.positions), "evaluation", ours.task, seed)
        return evaluate_source(ours.scorer, source, ours.tokenizer, dense, batch=batch, report=report, seed=seed)


@contextmanager
def opened(path: Path | str, task: Task, device: str = "cpu", trust_remote_code: bool = False) -> Iterator[Opened]:
    """Yield what a path holds; an engine is closed afterwards.

    Raises:
        BadModel: neither an engine, nor an artifact, nor a model that can be loaded.
    """
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        engine = Engines().open(folder)
        try:
            yield Opened(EngineScorer(engine), AutoTokenizer.from_pretrained(folder), engine.manifest["task"])
        finally:
            engine.close()
    elif (folder / CARD).is_file():
        artifact = Artifact.load(folder, trust_remote_code=trust_remote_code)
        scorer = ModelScorer(artifact.model.to(torch.device(device)), "artifact")  # type: ignore[arg-type]
        yield Opened(scorer, artifact.tokenizer, artifact.task)
    else:
        model, tokenizer = loading.open_source(str(path), task, trust_remote_code=trust_remote_code)
        yield Opened(ModelScorer(model.to(torch.device(device))), tokenizer, task)  # type: ignore[arg-type]


def _usual(positions: int | None) -> DataSettings:
    settings = DataSettings(**DataSettings.defaults("evaluation"))
    return settings.model_copy(update={"length": min(settings.length, positions or settings.length)})


def _check_pair(path: Path | str, ours: Opened, parent: Path | str, theirs: Opened) -> None:
    if ours.task != theirs.task:
        raise BadModel(f"{path} is made for {ours.task}, its parent {parent} for {theirs.task}; give another parent")
    if ours.tokenizer.get_vocab() != theirs.tokenizer.get_vocab():
        raise BadModel(f"{path} and its parent {parent} have different tokenizers; give the model it was made from")
