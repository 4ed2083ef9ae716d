from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.data import IGNORED, Examples
from compress.errors import BadData


@pytest.fixture
def ragged() -> Examples:
    return Examples(
        tokens=torch.tensor([1, 2, 3, 4, 5, 6]),
        lengths=torch.tensor([1, 3, 2]),
        labels=torch.tensor([1, IGNORED, 3, 4, IGNORED, 6]),
        types=torch.tensor([0, 0, 0, 1, 0, 1]),
        pad=9,
        by_token=True,
        left_out=4,
    )


def test_a_batch_is_padded_on_the_right(ragged: Examples) -> None:
    batch = ragged.batch([2, 0, 1])
    assert batch["input_ids"].tolist() == [[5, 6, 9], [1, 9, 9], [2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 6, -100], [1, -100, -100], [-100, 3, 4]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert {t.dtype for t in batch.values()} == {torch.int64}
    assert batch.keys() == {"input_ids", "attention_mask", "labels", "token_type_ids"}


@pytest.mark.parametrize("labels", [torch.tensor([2, 0, 1]), torch.tensor([0.5, 1.5, -2.0]), None])
def test_labels_of_rows(labels: torch.Tensor | None) -> None:
    batch = Examples(tokens=torch.tensor([1, 2, 3]), lengths=torch.tensor([1, 1, 1]), labels=labels).batch([2, 1])
    assert ("labels" in batch) == (labels is not None)
    if labels is not None:
        assert torch.equal(batch["labels"], labels[[2, 1]])
        assert batch["labels"].dtype == labels.dtype


def test_windows() -> None:
    windows = torch.arange(12).view(3, 4)
    examples = Examples.of_windows(windows, torch.tensor([5, 6, 7]))
    assert len(examples) == 3
    assert torch.equal(examples.windows, windows)
    batch = examples.batch([2, 0])
    assert torch.equal(batch["input_ids"], windows[[2, 0]])
    assert torch.equal(batch["labels"], windows[[2, 0]])
    assert batch["attention_mask"].min() == 1
    assert batch["bytes"].tolist() == [7, 5]
    batch["labels"].zero_()
    assert torch.equal(examples.windows, windows)


def test_labelled_examples_are_no_windows(ragged: Examples) -> None:
    with pytest.raises(BadData, match="labelled examples, no running text"):
        _ = ragged.windows


@pytest.mark.parametrize("kind", ["ragged", "windows"])
def test_saved_and_loaded(kind: str, ragged: Examples, tmp_path: Path) -> None:
    examples = ragged if kind == "ragged" else Examples.of_windows(torch.arange(12).view(3, 4), torch.arange(3))
    examples.save(tmp_path / "a.safetensors")
    loaded = Examples.load(tmp_path / "a.safetensors")
    for name in ("pad", "of_text", "by_token", "left_out"):
        assert getattr(loaded, name) == getattr(examples, name)
    ours, theirs = examples.batch([2, 1, 0]), loaded.batch([2, 1, 0])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_broken_file(ragged: Examples, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    ragged.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadData, match=r"a\.safetensors: no cached tokens .*delete the file"):
        Examples.load(path)
