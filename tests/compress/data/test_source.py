from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from compress import files
from compress.data import DataSettings, Examples, Question, Role, Source
from compress.data.source import tokenizer_digest
from compress.errors import BadData
from compress.facts import Task

TEXT = "the quick brown fox jumps over the lazy dog; a model is pruned and retrained. "
SENTENCES = [{"sentence": f"{word} fox", "label": i % 3} for i, word in enumerate(TEXT.split())]

Make = Callable[..., Source]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a maker of sources over a jsonl file of the given rows, or over a txt file."""

    def made(
        content: str | list[Any], role: Role = "training", task: Task = "causal-lm", seed: int = 0,
        cache: Path | None = None, name: str = "data", **settings: Any,
    ) -> Source:  # fmt: skip
        path = tmp_path / f"{name}.txt"
        if not isinstance(content, str):
            path = path.with_suffix(".jsonl")
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(content)
        return Source(DataSettings(source=str(path), **({"length": 8} | settings)), role, task, seed, cache)

    return made


def same(a: Examples, b: Examples) -> bool:
    ours, theirs = a.batch(range(len(a))), b.batch(range(len(b)))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# -- what comes out ----------------------------------------------------------------------------------------------


def test_windows_by_use(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    row = tokenizer(TEXT * 20, add_special_tokens=False)["input_ids"]
    found = make(TEXT * 20, "evaluation", windows=3).examples(tokenizer)
    assert found.windows.flatten().tolist() == row[:24]
    assert found.bytes is not None
    for role in ("calibration", "training"):
        trained = make(TEXT * 20, role, windows=3).examples(tokenizer)
        with_bos = [0, *row]
        cut = [with_bos[i : i + 8] for i in range(0, len(with_bos) - 7, 8)]
        assert len(trained) == 3
        assert all(w in cut for w in trained.windows.tolist())
        assert "bytes" not in trained.batch([0])


def test_the_seed_decides_but_for_evaluation(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    for content, task in ((TEXT * 20, "causal-lm"), (SENTENCES, "classification")):
        first, again, other = (make(content, "training", task, seed=s).examples(tokenizer) for s in (0, 0, 1))
        assert same(first, again)
        assert not same(first, other)
        fixed = [make(content, "evaluation", task, seed=s, windows=5).examples(tokenizer) for s in (0, 1)]
        assert same(*fixed)


def test_documents_are_all_there_is(make: Make) -> None:
    assert list(make([{"text": "a"}, {"text": ""}, {"text": "b"}], windows=1).documents()) == ["a", "", "b"]
    assert make("a\nb").kind == "text"


def test_evaluated_examples_stay_in_the_order_of_the_file(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"text": "fox", "label": float(i)} for i in range(9)]
    labels = make(rows, "evaluation", "regression", windows=4).examples(tokenizer).batch(range(4))["labels"]
    assert labels.dtype == torch.float32
    assert sorted(labels.tolist()) == labels.tolist()
    assert labels.tolist() != [0, 1, 2, 3]  # a file may be sorted by its labels
    every = make(rows, "evaluation", "regression", windows=0).examples(tokenizer)
    assert every.batch(range(9))["labels"].tolist() == list(range(9))


@pytest.mark.parametrize("task", ["classification", "regression", "embedding"])
def test_labels_stay_with_their_sentences(make: Make, tokenizer: PreTrainedTokenizerFast, task: Task) -> None:
    examples = make(SENTENCES, "training", task, windows=5).examples(tokenizer)
    batch = examples.batch(range(5))
    known = {row["sentence"]: row["label"] for row in SENTENCES}
    texts = [tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(*list(batch.values())[:2], strict=True)]
    assert len(texts) == 5
    if task == "embedding":
        assert "labels" not in batch
        return
    assert batch["labels"].tolist() == [known[t] for t in texts]
    assert batch["labels"].dtype == (torch.int64 if task == "classification" else torch.float32)


def test_calibration_needs_no_labels(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    bare = [{"sentence": "the fox"}]
    assert "labels" not in make(bare, "calibration", "classification").examples(tokenizer).batch([0])
    assert "labels" in make(SENTENCES, "calibration", "classification").examples(tokenizer).batch([0])
    for role, settings in (("training", {}), ("evaluation", {}), ("calibration", {"label": "label"})):
        with pytest.raises(BadData, match=r"data\.jsonl:1: no column 'label'; known: sentence$"):
            make(bare, role, "classification", **settings).examples(tokenizer)


def test_questions(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": f"{i}:", "choices": ["x", "y"], "gold": i % 2} for i in range(9)]
    source = make(rows, "evaluation", windows=0)
    assert source.kind == "choices"
    assert source.choices()[3] == Question("3:", ("x", "y"), 1)
    assert len(make(rows, "evaluation", windows=4).choices()) == 4
    batch = source.examples(tokenizer).batch([3])
    assert tokenizer.decode(batch["input_ids"][0]) == "<s>3: y</s>"
    assert tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0]) == " y</s>"
    with pytest.raises(BadData, match=r"data\.jsonl:1: no column 'prompt'"):
        make([{"text": "a"}]).choices()


def test_answers(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    source = make([{"instruction": "Add.", "input": "1 2", "output": "3"}], length=99)
    assert source.kind == "answers"
    labels = source.examples(tokenizer).batch([0])["labels"][0]
    assert tokenizer.decode(labels[labels >= 0]) == "3</s>"


def test_the_tokenizer_is_left_as_it_was(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.enable_truncation(5)
    before = own.backend_tokenizer.to_str()
    make(SENTENCES, task="classification").examples(own)
    make(TEXT * 20).examples(own)
    assert own.backend_tokenizer.to_str() == before


# -- digests and the cache ---------------------------------------------------------------------------------------


def test_the_digest_follows_settings_use_and_content(make: Make) -> None:
    first = make(TEXT, windows=3).digest
    assert make(TEXT, windows=3).digest == first
    others = {
        make(TEXT, windows=4).digest,
        make(TEXT, windows=3, length=9).digest,
        make(TEXT, "calibration", windows=3).digest,
        make(TEXT, task="embedding", windows=3).digest,
        make(TEXT, seed=1, windows=3).digest,
        make(TEXT + "!", windows=3).digest,
    }
    assert len(others) == 6
    assert first not in others


def test_the_path_is_not_in_the_digest(make: Make, tmp_path: Path) -> None:
    first = make(TEXT)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data.txt").write_text(TEXT)
    moved = Source(first.settings.model_copy(update={"source": str(tmp_path / "elsewhere")}), "training", "causal-lm")
    assert moved.digest == first.digest


def test_cached_equals_fresh_and_is_not_made_again(
    make: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[tuple[str | list[Any], Task]] = [
        (TEXT * 20, "causal-lm"),
        (SENTENCES, "classification"),
        ([{"prompt": "a", "response": "b"}], "causal-lm"),
    ]
    cache = tmp_path / "deep" / "cache"
    fresh = [make(content, task=task).examples(tokenizer) for content, task in kinds]
    made = [make(content, task=task, cache=cache).examples(tokenizer) for content, task in kinds]
    before = files.digests(cache)
    assert len(before) == 3
    monkeypatch.setattr(Source, "_made", lambda *_: pytest.fail("made again"))
    read = [make(content, task=task, cache=cache).examples(tokenizer) for content, task in kinds]
    assert all(same(*pair) for pair in zip(fresh, made, strict=True))
    assert all(same(*pair) for pair in zip(fresh, read, strict=True))
    assert files.digests(cache) == before


def test_changed_content_or_another_tokenizer_is_noticed(
    make: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = make(TEXT * 20, cache=cache).examples(tokenizer)
    changed = make(TEXT.replace("fox", "dog") * 20, cache=cache).examples(tokenizer)
    assert not same(first, changed)
    other = copy.deepcopy(tokenizer)
    other.bos_token = "</s>"
    swapped = make(TEXT * 20, cache=cache).examples(other)
    assert not same(first, swapped)
    assert len(list(cache.iterdir())) == 3


def test_a_use_of_the_tokenizer_does_not_change_its_digest(tokenizer: PreTrainedTokenizerFast) -> None:
    own = copy.deepcopy(tokenizer)
    before = tokenizer_digest(own)
    own(["a b c"], truncation=True, max_length=2, padding="max_length")
    assert tokenizer_digest(own) == before
    own.add_tokens(["fox"])
    assert tokenizer_digest(own) != before


# -- faults ------------------------------------------------------------------------------------------------------


def test_too_little(make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(BadData, match=r"data\.txt: holds \d tokens, less than one window of 8; give a longer text"):
        make("fox").examples(tokenizer)
    with pytest.raises(BadData, match=r"data\.txt: holds no text"):
        make("", "evaluation").examples(tokenizer)
    for content in ([], [""]):
        with pytest.raises(BadData, match=r"data\.jsonl(: is empty; give data|:1: must be an object)"):
            make(content).examples(tokenizer)


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        ("classification", -1, r"data\.jsonl:\d+: label -1 is out of range"),
        ("classification", float("nan"), r"data\.jsonl:\d+: label must be a whole number or a name, got nan"),
        ("regression", float("nan"), r"data\.jsonl:\d+: label is nan; give a finite number"),
    ],
)
def test_bad_labels(make: Make, tokenizer: PreTrainedTokenizerFast, task: Task, label: Any, message: str) -> None:
    rows = [*SENTENCES, {"sentence": "the fox", "label": label}]
    with pytest.raises(BadData, match=message):
        make(rows, task=task, windows=1).examples(tokenizer)


# -- settings ----------------------------------------------------------------------------------------------------


def test_defaults_differ_by_use() -> None:
    windows = [DataSettings(**DataSettings.defaults(r)).windows for r in ("calibration", "training", "evaluation")]
    assert windows == [128, 2048, 256]


def test_settings_come_without_torch() -> None:
    code = "import sys, compress.data, compress.data.places as _; print({'torch', 'datasets'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
