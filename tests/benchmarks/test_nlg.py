"""The benchmark of sentences from data: its cells, its pairs, its loss, its texts, their metrics, its tables."""

from __future__ import annotations

import gzip
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks._ledger import Results, Row
from benchmarks._methods import SMALLER, Cell, best_rate, cells, middle
from benchmarks.nlg import measure, pairs, report, run, text
from benchmarks.nlg.cells import GRID, SPARSITIES, TASKS
from compress import loading, registry, tree
from compress.artifact import Artifact
from compress.contracts import Pass
from compress.data import encode_answer
from compress.errors import BadData, Diverged, Unavailable, UserFault


def test_every_cell_is_a_pass_with_settings_that_fit_the_demo_model() -> None:
    maker: Any = AutoModelForCausalLM
    with torch.device("meta"):
        facts = tree.facts(maker.from_config(AutoConfig.from_pretrained(loading.DEMO)), "causal-lm")
    seen = list(cells(tuple(TASKS), SPARSITIES, 2))
    assert len({c.key for c in seen}) == len(seen) == 2 * len(TASKS) * 5
    for cell in [c.at(lr=lr) for c in seen for lr in GRID[c.method]]:
        for each in (cell, *cell.prunings(SPARSITIES)):
            use, settings = each.settings(8, 4, 0.1)
            found = registry.load("passes", use, Pass)
            after = found(found.Settings(**settings)).plan(facts)
            assert {m.sparsity for m in after.masks.values()} == ({each.sparsity} if each.sparsity else set())
            assert (after.parameters < facts.parameters) == (each.method == SMALLER)
    assert middle(GRID)["full"] == GRID["full"][1:2]


def write(folder: Path, task: str, split: str, rows: list[Row]) -> None:
    (folder / task).mkdir(exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    name = f"{split}.jsonl" if task == "e2e" else f"{split}.jsonl.gz"
    (folder / task / name).write_bytes(content if task == "e2e" else gzip.compress(content))


def test_inputs_are_read_from_the_first_split_that_is_there(tmp_path: Path) -> None:
    write(tmp_path, "e2e", "dev", [{"mr": "name[The fox]", "refs": ["It is the fox. ", "The fox."]}])
    write(tmp_path, "webnlg", "train", [{"triples": ["A_B | is | C", "C | is | D"], "refs": ["So is A B."]}])
    path, found = pairs.read(tmp_path / "e2e", pairs.TRAINING)
    assert path.name == "dev.jsonl"
    assert found == [pairs.Meaning("name[The fox]\n", ("It is the fox.", "The fox."))]
    assert pairs.read(tmp_path / "webnlg", pairs.TRAINING)[1][0].prompt == "A B | is | C\nC | is | D\n"
    with pytest.raises(BadData, match=r"no test\.jsonl in it; --data names a folder with e2e and webnlg"):
        pairs.read(tmp_path / "e2e", pairs.EVALUATION)
    write(tmp_path, "e2e", "test", [{"mr": "name[The fox]", "refs": []}])
    with pytest.raises(BadData, match=r"test\.jsonl.*column 'refs' must hold text, got \[\]"):
        pairs.read(tmp_path / "e2e", pairs.EVALUATION)


def test_a_text_is_begun_where_training_began_it(tmp_path: Path) -> None:
    tokenizer = loading.read_tokenizer(loading.DEMO)
    said = pairs.Meaning("name[Blue Spice], area[riverside]\n", ("Blue Spice is by the river.", "It is there."))
    examples, owners = pairs.examples([said, said], tokenizer, 64, tmp_path / "pairs.jsonl", 1)
    assert owners == [0, 1]
    batch = examples.batch([0])
    learnt = batch["labels"][0] != -100
    begun = encode_answer(tokenizer, said.prompt, "")[0]
    assert batch["input_ids"][0][~learnt].tolist() == begun
    assert tokenizer.decode(batch["input_ids"][0][learnt]) == said.references[0] + tokenizer.eos_token
    long = pairs.Meaning(said.prompt * 2, ("It is there twice.",))
    with pytest.raises(BadData, match="1 pairs leave no room for a sentence in 30 tokens; raise --length"):
        pairs.examples([said, long], tokenizer, 30, tmp_path / "pairs.jsonl", 1)


@pytest.fixture
def bench(tiny: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> measure.Bench:
    """A bench of a tiny decoder, whose texts are counted without the library."""
    artifact = tiny("llama")
    for module in tree.block_linears(artifact.model).values():
        module.weight.data *= 8
    artifact.model.save_pretrained(tmp_path / "model")
    artifact.tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"mr": f"dog[{i}]", "refs": [f"the dog {i} is lazy", "a dog"]} for i in range(40)]
    write(tmp_path, "e2e", "dev", rows)
    write(tmp_path, "e2e", "test", rows[:3])
    monkeypatch.setattr(text, "counted", lambda texts, refs: {"bleu": [[1] * 10] * len(texts), "chrf": [1.0, 2.0, 3.0]})
    setup = measure.Setup(
        model=str(tmp_path / "model"), data=str(tmp_path), steps=2, batch=2, length=64, held_out=2, train=6, test=0,
        references=0, written=5,
    )  # fmt: skip
    return measure.Bench(setup, "e2e", tmp_path)


def test_loss_and_texts_are_those_of_the_plain_model(bench: measure.Bench) -> None:
    model = bench.dense.model
    tokenizer: Any = bench.tokenizer
    assert bench.about["training"] == ["dev.jsonl", 6, 12]
    assert bench.about["test"] == ["test.jsonl", 3, 6]
    found, written = bench.paid(bench.dense), bench.texts(bench.dense)
    for place, said in enumerate(bench.test):
        nats, count = 0.0, 0
        for reference in said.references:
            ids, start = encode_answer(tokenizer, said.prompt, reference)
            ids.append(tokenizer.eos_token_id)
            with torch.no_grad():
                chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            nats -= sum(float(chances[at - 1, ids[at]]) for at in range(start, len(ids)))
            count += len(ids) - start
        assert found["tokens"][place] == count
        assert found["nats"][place] == pytest.approx(nats, abs=1e-3)
        ids = encode_answer(tokenizer, said.prompt, "")[0]
        start = len(ids)
        while len(ids) < start + 5:
            with torch.no_grad():
                token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
        assert written[place] == tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_a_cell_gives_its_row_and_those_of_its_prunings(bench: measure.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*given: Any) -> tuple[int, Artifact]:
        time.sleep(0.2)
        return through(*given)

    through = bench.through
    monkeypatch.setattr(bench, "texts", lambda artifact: ["a dog"] * 3)  # engines are another test's
    monkeypatch.setattr(bench, "through", slow)
    full, pruned = bench.run(Cell(task="e2e", method="full", lr=1e-3))
    assert (full["method"], full["zeros"], full["trainable"]) == ("full", 0, full["parameters"])
    assert (pruned["method"], pruned["zeros"]) == ("magnitude", 0.5)
    assert pruned["flops_kept"] < full["flops_kept"] == full["flops"] == pruned["flops"]
    assert min(full["seconds"], pruned["seconds"]) >= 0.2, "the pass is timed too"
    assert full["nats"] != pruned["nats"]
    assert full["nats"] != bench.paid(bench.dense)["nats"]

    def diverge(*_: Any) -> None:
        raise Diverged("the loss is NaN")

    monkeypatch.setattr(bench, "through", diverge)
    rows = list(bench.run(Cell(task="e2e", method="full", lr=1e-3)))
    assert [(r["method"], r["diverged"], r["tuning"]) for r in rows] == [
        (method, "the loss is NaN", -math.inf) for method in ("full", "magnitude")
    ]


def test_bleu_by_hand() -> None:
    #        hits 1..4    n-grams 1..4  length, reference's
    counts = np.array([[4, 3, 2, 1, 4, 3, 2, 1, 4, 4], [2, 0, 0, 0, 4, 3, 2, 1, 4, 8]], dtype=np.float64)
    alone, other, both = text.bleu(np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float64), counts)
    assert alone == pytest.approx(100)
    smoothed = (2 / 4) * (0.5 / 3) * (0.25 / 2) * (0.125 / 1)
    assert other == pytest.approx(100 * np.exp(1 - 8 / 4) * smoothed**0.25)
    assert both == pytest.approx(100 * np.exp(1 - 12 / 8) * (6 / 8 * 3 / 6 * 2 / 4 * 1 / 2) ** 0.25)
    assert text.bleu(np.ones((1, 1)), np.zeros((1, 10))) == [0]


def test_bleu_is_the_librarys() -> None:
    metrics = pytest.importorskip("sacrebleu.metrics")
    texts = ["the quick brown fox is lazy", "a dog", "", "one two three four five six"]
    said = [["the quick brown fox jumps", "it is a fox"], ["a dog jumps", "a lazy dog"], ["x"], ["one two four five"]]
    counts = np.asarray(text.counted(texts, said)["bleu"], float)
    for chosen in ([0, 1, 2, 3], [0, 0, 3], [1, 2], [0]):
        weights = np.bincount(chosen, minlength=4)[None].astype(float)
        most = max(len(said[i]) for i in chosen)
        streams = [[said[i][k] if k < len(said[i]) else None for i in chosen] for k in range(most)]
        expected = metrics.BLEU().corpus_score([texts[i] for i in chosen], streams).score
        assert text.bleu(weights, counts)[0] == pytest.approx(expected)


def test_without_the_library_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(Unavailable, match="pip install sacrebleu, for this benchmark only"):
        text.library()


def test_other_data_are_refused(tmp_path: Path) -> None:
    results = Results(tmp_path / "run.jsonl", {})
    run.keep(results, {"key": "data/e2e", "digest": "a"})
    run.keep(results, {"key": "data/e2e", "digest": "a"})
    assert len(results.rows) == 1
    with pytest.raises(UserFault, match="data/e2e were others"):
        run.keep(results, {"key": "data/e2e", "digest": "b"})


def test_tables_compare_the_tuned_cells_on_the_same_inputs() -> None:
    about = {"training": ["dev.jsonl", 9, 18], "test": ["test.jsonl", 20, 40]}
    rows: dict[str, Row] = {"data/e2e": {"key": "data/e2e", **about}}

    def add(cell: Cell, nats: float, tuning: float) -> None:
        named: dict[str, Any] = {f: getattr(cell, f) for f in Cell.__dataclass_fields__}
        counts = {"trainable": 10, "parameters": 100, "zeros": cell.sparsity, "flops": 10, "flops_kept": 5}
        each = {
            "nats": [nats * (1 + i % 2) for i in range(20)],
            "tokens": [2] * 20,
            "bleu": [[4, 3, 2, 1, 4, 3, 2, 1, 4, 4]] * 20,
            "chrf": [50.0 + nats] * 20,
        }
        rows[cell.key] = {**named, "key": cell.key, **counts, **each, "tuning": tuning, "seconds": 1}

    full = Cell(task="e2e", method="full", lr=1e-3)
    add(full, 2, -1)
    add(full.at(lr=3e-3), 9, -4)
    add(full.prunings(SPARSITIES)[0], 6, -3)
    pst = Cell(task="e2e", method="pst", sparsity=0.5)
    add(pst.at(lr=3e-3), 4, -2)
    assert best_rate(rows, full.at(lr=None)) == 1e-3
    table = report.Table(rows)
    assert table.value(pst, "nats a token") == "3.000"
    assert table.minus(pst, full.at(lr=None), "nats a token").startswith("+1.500 (+1.")
    assert table.minus(pst, pst.at(method="magnitude"), "nats a token").startswith("-1.500 (-1.")
    assert table.minus(pst, full.at(lr=None), "BLEU") == "+0.0 (+0.0 … +0.0)"
    shown = report.render({"steps": 2}, rows)
    assert "| pst, 50 % | 10.00% | 50% | 50% | 0.003 | 1 | 3.000 | +1.500 (" in shown
    assert "lora" not in shown  # not finished
