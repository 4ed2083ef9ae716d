"""Evaluations of tiny models against sums by hand, transformers' own loss, and an engine of numpy arrays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.context import QuietReport
from compress.contracts import Engine, Past
from compress.errors import BadData, BadModel
from compress.evaluate import ModelScorer, evaluate

Tiny = Callable[..., Artifact]


class Rows:
    """Examples from lists: ids and labels of any length, padded at the end."""

    def __init__(self, ids: list[list[int]], labels: list[Any] | None = None, **more: list[int]) -> None:
        self.ids, self.labels, self.more = ids, labels if labels is not None else ids, more
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        self.asked.append(indices)
        ids = [self.ids[i] for i in indices]
        longest = max(map(len, ids))
        labels = [self.labels[i] for i in indices]
        padded = [row + [-100] * (longest - len(row)) if isinstance(row, list) else row for row in labels]
        return {
            "input_ids": torch.tensor([row + [1] * (longest - len(row)) for row in ids]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
            "labels": torch.tensor(padded),
            **{n: torch.tensor([v[i] for i in indices]) for n, v in self.more.items()},
        }


class NumpyEngine(Engine):
    """A torch model behind the engine's face, nothing but arrays in and out."""

    def __init__(self, model: Any, positions: int | None = 128) -> None:
        self.model, self.manifest = model, {"positions": positions}

    def step(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, position_ids: np.ndarray, past: Past
    ) -> tuple[np.ndarray, Past]:
        assert past == []
        given = [torch.from_numpy(a) for a in (input_ids, attention_mask, position_ids)]
        with torch.no_grad():
            logits = self.model(given[0], attention_mask=given[1], position_ids=given[2]).logits
        return logits.numpy(), []

    def encode(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        more = {} if token_type_ids is None else {"token_type_ids": torch.from_numpy(token_type_ids)}
        with torch.no_grad():
            logits: Tensor = self.model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask), **more).logits
        return logits.numpy()

    def empty_past(self, batch: int) -> Past:
        return []

    def providers(self) -> tuple[str, ...]:
        return ("numpy",)

    def close(self) -> None:
        self.model = None


def windows(count: int = 6, length: int = 20, seed: int = 0) -> list[list[int]]:
    ids: list[list[int]] = torch.randint(
        2, 384, (count, length), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return ids


def disturbed(artifact: Artifact, amount: float = 0.3) -> Artifact:
    model = copy.deepcopy(artifact.model)
    torch.manual_seed(5)
    with torch.no_grad():
        for linear in tree.block_linears(model).values():
            linear.weight += amount * linear.weight.std() * torch.randn_like(linear.weight)
    return artifact.after(model=model)


# -- causal language models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3", "opt", "gpt2"])
def test_perplexity_is_the_sum_by_hand_and_transformers_own_loss(tiny: Tiny, kind: str) -> None:
    artifact, ids = tiny(kind), windows()
    found = evaluate(artifact, Rows(ids), "causal-lm", batch=4)
    by_hand, own = [], []
    for row in ids:
        with torch.no_grad():
            result = artifact.model(torch.tensor([row]), labels=torch.tensor([row]))
        chances = result.logits[0].double().softmax(-1)
        by_hand.append(-sum(math.log(chances[i, row[i + 1]]) for i in range(len(row) - 1)) / (len(row) - 1))
        own.append(float(result.loss))
    assert found.kind == "artifact"
    assert found.samples["loss"] == pytest.approx(by_hand, rel=1e-5)  # float32 logits
    assert found.samples["loss"] == pytest.approx(own, rel=1e-5)
    assert found.samples["tokens"] == [19] * 6
    assert found["perplexity"].value == pytest.approx(math.exp(sum(by_hand) / 6), rel=1e-5)
    assert found["nats_per_token"].value == pytest.approx(sum(by_hand) / 6, rel=1e-5)
    assert found["perplexity"].low < found["perplexity"].value < found["perplexity"].high


def test_batches_and_padding_change_nothing(tiny: Tiny) -> None:
    artifact = tiny("opt")
    ids = [row[: 8 + 3 * i] for i, row in enumerate(windows(5))]
    alone, together, chosen = (evaluate(artifact, Rows(ids), "causal-lm", batch=b) for b in (1, 5, None))
    assert together.samples["loss"] == pytest.approx(alone.samples["loss"], rel=1e-5)
    assert chosen.samples["loss"] == pytest.approx(alone.samples["loss"], rel=1e-5)
    assert together.samples["tokens"] == [7, 10, 13, 16, 19]


def test_first_window_goes_alone_to_learn_what_fits(tiny: Tiny) -> None:
    data = Rows(windows(9))
    evaluate(tiny("llama"), data, "causal-lm")
    assert data.asked == [[0], list(range(1, 9))]


def test_only_labelled_tokens_count_and_many_places_are_read_in_parts(tiny: Tiny) -> None:
    artifact, ids = tiny("llama"), windows(2, 300)
    artifact.model.config.max_position_embeddings = 512
    labels = [[-100] * 10 + row[10:] for row in ids]
    found = evaluate(artifact, Rows(ids, labels), "causal-lm")
    with torch.no_grad():
        own = [
            float(artifact.model(torch.tensor([i]), labels=torch.tensor([t])).loss)
            for i, t in zip(ids, labels, strict=True)
        ]
    assert found.samples["loss"] == pytest.approx(own, rel=1e-5)
    assert found.samples["tokens"] == [290, 290]


def test_bytes_give_bits_per_byte(tiny: Tiny) -> None:
    found = evaluate(tiny("llama"), Rows(windows(3), bytes=[60, 70, 80]), "causal-lm")
    expected = sum(19 * x for x in found.samples["loss"]) / 210 / math.log(2)
    assert found["bits_per_byte"].value == pytest.approx(expected)


def test_a_model_beside_itself(tiny: Tiny) -> None:
    artifact = tiny("gpt2")
    found = evaluate(artifact, Rows(windows()), "causal-lm", parent=artifact.model)
    assert found["kl"].value == found["kl"].high == 0
    assert found["agreement"].value == found["agreement"].low == 1
    assert {m.name: (m.value, m.low, m.high) for m in found.deltas} == {
        "perplexity": (0, 0, 0),
        "nats_per_token": (0, 0, 0),
    }
    assert found.parent is not None
    assert (found.parent.kind, "kl" in found.parent.samples) == ("model", False)


def test_divergence_goes_from_parent_to_child(tiny: Tiny) -> None:
    parent, ids = tiny("llama"), windows(3)
    child = disturbed(parent)
    found = evaluate(child, Rows(ids), "causal-lm", parent=parent)
    with torch.no_grad():
        p, q = (a.model(torch.tensor(ids)).logits[:, :-1].double().softmax(-1) for a in (parent, child))
    kl = (p * (p.log() - q.log())).sum(-1).mean(-1)
    assert found.samples["kl"] == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-7)
    same = (p.argmax(-1) == q.argmax(-1)).double().mean(-1)
    assert found.samples["agreement"] == pytest.approx(same.tolist())
    assert 0 < found["agreement"].value < 1
    assert found.parent is not None
    difference = found["perplexity"].value - found.parent["perplexity"].value
    assert next(m.value for m in found.deltas if m.name == "perplexity") == pytest.approx(difference)


def test_evaluating_leaves_the_model_in_its_mode(tiny: Tiny) -> None:
    artifact = tiny("opt")
    artifact.model.train()
    artifact.model.get_submodule("model.decoder.layers.0").eval()
    modes = [m.training for m in artifact.model.modules()]
    first, second = (evaluate(artifact, Rows(windows()), "causal-lm").samples for _ in range(2))
    assert first == second  # no dropout
    assert [m.training for m in artifact.model.modules()] == modes
    assert all(p.grad is None for p in artifact.model.parameters())


def test_progress_reaches_the_report(tiny: Tiny) -> None:
    class Counting(QuietReport):
        moved = 0
        total = 0

        def bar(self, what: str, total: int, done: int = 0) -> Any:
            self.total = total
            return self

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def advance(self, amount: int = 1) -> None:
            self.moved += amount

    report = Counting()
    evaluate(tiny("llama"), Rows(windows(5)), "causal-lm", report=report, batch=2)
    assert report.moved == report.total == 5


# -- engines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
def test_an_engine_is_measured_as_its_model(tiny: Tiny, kind: str) -> None:
    artifact = tiny(kind)
    ids = [row[: 10 + 2 * i] for i, row in enumerate(windows(5))]
    engine = evaluate(NumpyEngine(artifact.model), Rows(ids), "causal-lm", parent=artifact)
    model = evaluate(artifact, Rows(ids), "causal-lm")
    assert engine.kind == "engine"
    assert engine["perplexity"].value == pytest.approx(model["perplexity"].value, rel=1e-5)
    assert engine["kl"].value == pytest.approx(0, abs=1e-6)
    assert engine["agreement"].value == 1


def test_an_encoder_engine_gets_the_token_types(tiny: Tiny) -> None:
    artifact, ids = tiny("bert"), windows(8)
    types = [[0] * 10 + [1] * 10 for _ in ids]
    data = Rows(ids, [0, 1] * 4, token_type_ids=types)  # type: ignore[arg-type]
    untyped = evaluate(artifact, Rows(ids, [0, 1] * 4), "classification", parent=artifact)
    engine = evaluate(NumpyEngine(artifact.model), data, "classification", parent=artifact)
    assert engine["kl"].value == pytest.approx(0, abs=1e-9)
    assert untyped["kl"].value == 0
    both = [ModelScorer(artifact.model).outputs(d.batch([0]), pooled=False) for d in (data, Rows(ids, [0, 1] * 4))]
    assert not torch.allclose(both[0], both[1])


# -- labels, numbers, embeddings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_classification_counts_what_the_model_says(tiny: Tiny, kind: str) -> None:
    artifact = tiny(kind)
    ids = [row[: 6 + i] for i, row in enumerate(windows(12, 30))]
    with torch.no_grad():
        said = [int(artifact.model(torch.tensor([row])).logits.argmax()) for row in ids]
    labels = [x if i % 3 else 1 - x for i, x in enumerate(said)]  # 4 of 12 wrong
    found = evaluate(artifact, Rows(ids, labels), "classification")
    assert found.samples["predicted"] == said
    assert found["accuracy"].value == pytest.approx(8 / 12)
    assert [m.name for m in found.metrics] == ["accuracy", "f1", "mcc"]


def test_a_decoders_label_is_read_at_the_last_real_token(tiny: Tiny) -> None:
    artifact = tiny("llama", task="classification")
    ids = [[*row[: 6 + i], 1] for i, row in enumerate(windows(6))]  # ends with what also pads
    with torch.no_grad():
        alone = [artifact.model.score(artifact.model.model(torch.tensor([r])).last_hidden_state[0, -1]) for r in ids]  # type: ignore[operator]
    padded = ModelScorer(artifact.model).outputs(Rows(ids, [0] * 6).batch(list(range(6))), pooled=False)
    assert torch.allclose(padded, torch.stack(alone), atol=1e-6)


def test_regression_correlates(tiny: Tiny) -> None:
    artifact, ids = tiny("bert", task="regression"), windows(10)
    with torch.no_grad():
        said = [float(artifact.model(torch.tensor([row])).logits) for row in ids]
    found = evaluate(artifact, Rows(ids, [3 * x + 1 for x in said]), "regression")
    assert found["pearson"].value == pytest.approx(1, abs=1e-6)
    assert found["spearman"].value == pytest.approx(1)
    assert evaluate(artifact, Rows(ids, [-(x**3) for x in said]), "regression")["spearman"].value == pytest.approx(-1)


def test_embeddings_are_compared_by_cosine(tiny: Tiny) -> None:
    artifact = tiny("bert", task="embedding")
    data = Rows([row[: 5 + i] for i, row in enumerate(windows(6))], [0] * 6)
    assert evaluate(artifact, data, "embedding", artifact)["cosine"].value == pytest.approx(1)
    found = evaluate(disturbed(artifact), data, "embedding", artifact)
    assert 0 < found["cosine"].value < 1
    assert found.parent is None
    with torch.no_grad():
        mean = artifact.model(torch.tensor([data.ids[0]])).last_hidden_state.mean(1)
    assert torch.allclose(ModelScorer(artifact.model).outputs(data.batch([0, 5]), pooled=True)[:1], mean, atol=1e-6)
    with pytest.raises(BadData, match="give the parent"):
        evaluate(artifact, data, "embedding")


# -- faults ---------------------------------------------------------------------------------------------------------


def test_windows_beyond_the_positions_are_refused(tiny: Tiny) -> None:
    with pytest.raises(BadData, match="a window of 129 tokens, and the artifact takes at most 128"):
        evaluate(tiny("llama"), Rows(windows(2, 129)), "causal-lm")
    with pytest.raises(BadData, match="the engine takes at most 16"):
        evaluate(NumpyEngine(tiny("llama").model, 16), Rows(windows()), "causal-lm")
    evaluate(tiny("roberta"), Rows(windows(2, 128), [0, 1]), "classification")
    with pytest.raises(BadData, match="at most 128"):  # a table of 130 rows, two of them before the first position
        evaluate(tiny("roberta"), Rows(windows(2, 129), [0, 1]), "classification")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_nan_names_the_window(tiny: Tiny, kind: str) -> None:
    artifact = tiny(kind)
    task = artifact.task
    ids = windows(5)
    for i, row in enumerate(ids):
        ids[i] = [min(t, 382) for t in row]
    ids[3][4] = 383
    with torch.no_grad():
        artifact.model.get_input_embeddings().weight[383] = math.nan  # type: ignore[operator]
    data = Rows(ids, None if task == "causal-lm" else [0, 1, 0, 1, 0])
    with pytest.raises(BadModel, match="the artifact gives NaN in window 3"):
        evaluate(artifact, data, task)


def test_an_infinite_loss_names_the_window(tiny: Tiny) -> None:
    class Certain(NumpyEngine):
        def step(self, input_ids: np.ndarray, *rest: Any) -> tuple[np.ndarray, Past]:
            logits, past = super().step(input_ids, *rest)
            logits[..., 7] = np.where((input_ids == 9).any(1)[:, None], -np.inf, logits[..., 7])
            return logits, past

    ids = [[5, 7, 5], [5, 6, 8], [9, 7, 5]]
    with pytest.raises(BadModel, match=r"the engine's loss in window 2 .* is inf"):
        evaluate(Certain(tiny("llama").model), Rows(ids), "causal-lm")


def test_a_window_that_predicts_nothing_is_refused(tiny: Tiny) -> None:
    with pytest.raises(BadData, match=r"window 1 .* predicts no token"):
        evaluate(tiny("llama"), Rows([[5, 6], [7], [8, 9]]), "causal-lm")


def test_no_examples_are_refused(tiny: Tiny) -> None:
    with pytest.raises(BadData, match="0 examples"):
        evaluate(tiny("llama"), Rows([]), "causal-lm")


def test_a_parent_of_another_vocabulary_is_refused(tiny: Tiny) -> None:
    other = tiny("llama", seed=1)
    other.model.resize_token_embeddings(400, mean_resizing=False)
    with pytest.raises(BadModel, match="384 outputs cannot be compared with the parent's 400"):
        evaluate(tiny("llama"), Rows(windows()), "causal-lm", other)


def test_samples_are_plain_numbers(tiny: Tiny) -> None:
    found = evaluate(tiny("llama"), Rows(windows()), "causal-lm", tiny("llama", seed=3))

    def plain(value: object) -> bool:
        if isinstance(value, Mapping):
            return all(map(plain, value.values()))
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or type(value) in (str, int, float)

    assert plain(found.to_dict())
