"""Text from engines: what transformers writes, what run.py writes, whole characters, drawn tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress import generate
from compress.artifact import Artifact
from compress.contracts import Engine, Past
from compress.engines import Engines
from compress.errors import BadData, BadModel

Tiny = Callable[..., Artifact]
EngineOf = Callable[..., Path]


@pytest.fixture
def opened(engine_of: EngineOf) -> Iterator[Engine]:
    engine = Engines().open(engine_of("llama"))
    yield engine
    engine.close()


class Scripted(Engine):
    """An engine that says given tokens, whatever it reads."""

    def __init__(self, script: list[int], vocabulary: int, **manifest: Any) -> None:
        self.script, self.vocabulary = script, vocabulary
        self.manifest = {"task": "causal-lm", "positions": None, "begin": None, "stop": [1], **manifest}

    def step(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, position_ids: np.ndarray, past: Past
    ) -> tuple[np.ndarray, Past]:
        logits = np.zeros((1, input_ids.shape[1], self.vocabulary), np.float32)
        logits[0, -1, self.script.pop(0)] = 1
        return logits, past

    def encode(self, *_: Any) -> np.ndarray:
        raise AssertionError

    def empty_past(self, batch: int) -> Past:
        return []

    def providers(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None: ...


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_writes_what_transformers_writes(kind: str, tiny: Tiny, engine_of: EngineOf) -> None:
    model: Any = tiny(kind).model
    ids = [5, 80, 200, 33, 7]
    written = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=30, pad_token_id=1)[0, 5:].tolist()
    engine = Engines().open(engine_of(kind))
    assert list(generate.tokens(engine, ids, 30)) == [t for t in written if t != 1]
    assert len(set(written)) > 1
    # A stop token ends the text, unseen.
    stop = written[10]
    engine.manifest = {**engine.manifest, "stop": [stop]}
    assert list(generate.tokens(engine, ids, 30)) == written[: written.index(stop)]
    engine.close()


def test_the_script_in_the_folder_writes_the_same(engine_of: EngineOf, tmp_path: Path) -> None:
    folder = engine_of("llama")
    command = [sys.executable, str(folder / "run.py"), "the quick brown", "--tokens", "20"]
    said = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path).stdout.decode()
    pieces = list(generate.generate_path(folder, "the quick brown", 20))
    assert said == "".join(pieces) + "\n"
    assert len(pieces) > 5
    huge = shutil.copytree(folder, tmp_path / "huge")
    manifest = json.loads((huge / "engine.json").read_text(encoding="utf-8"))
    manifest["target"]["huge_pages"] = True
    (huge / "engine.json").write_text(json.dumps(manifest), encoding="utf-8")
    command[1] = str(huge / "run.py")
    assert subprocess.run(command, capture_output=True, check=True, cwd=tmp_path).stdout.decode() == said
    script = (folder / "run.py").read_text(encoding="utf-8")
    assert len(script.splitlines()) <= 65
    assert "compress" not in script


def test_the_script_of_an_encoder_prints_its_logits(engine_of: EngineOf, tmp_path: Path) -> None:
    folder = engine_of("bert")
    command = [sys.executable, str(folder / "run.py"), "the quick brown"]
    said = json.loads(subprocess.run(command, capture_output=True, check=True, cwd=tmp_path).stdout)
    ids = np.array([generate.tokenizer_of(folder).encode("the quick brown").ids])
    engine = Engines().open(folder)
    np.testing.assert_allclose(said, engine.encode(ids, np.ones_like(ids))[0], atol=1e-6)
    with pytest.raises(BadModel, match="an engine for classification writes no text"):
        next(generate.tokens(engine, [3], 4))
    engine.close()


def test_pieces_are_whole_characters(engine_of: EngineOf) -> None:
    tokenizer = generate.tokenizer_of(engine_of("llama"))
    text = " fox é 漢 🦊 dog"  # the tokenizer knows these characters only as bytes
    script = tokenizer.encode(text).ids
    pieces = list(generate.generate(Scripted([*script, 1], 384), tokenizer, "the", 64))
    assert "".join(pieces) == text
    assert len(pieces) < len(script)
    assert all("\ufffd" not in p for p in pieces)
    assert "🦊" in pieces


def test_the_end_of_the_positions_ends_the_text(opened: Engine) -> None:
    assert len(list(generate.tokens(opened, [5] * 120, 50))) == 9  # the last one is written and not read
    with pytest.raises(BadData, match="the prompt has 129 tokens, and the model takes at most 128"):
        next(generate.tokens(opened, [5] * 129, 1))


def test_an_empty_prompt_begins_a_text(opened: Engine, engine_of: EngineOf) -> None:
    tokenizer = generate.tokenizer_of(engine_of("llama"))
    begun = "".join(generate.generate(opened, tokenizer, "", 8))
    assert begun == "".join(generate.generate(opened, tokenizer, "<s>", 8))
    with pytest.raises(BadData, match="the prompt is empty, and the tokenizer has no token that begins a text"):
        next(generate.generate(Scripted([], 384), tokenizer, "", 8))


def test_drawing_is_seeded(opened: Engine) -> None:
    first, again, other = (list(generate.tokens(opened, [5, 6], 12, temperature=1.0, seed=s)) for s in (3, 3, 4))
    assert first == again != other
    greedy = list(generate.tokens(opened, [5, 6], 12))
    assert list(generate.tokens(opened, [5, 6], 12, temperature=2.0, top_k=1)) == greedy
    assert list(generate.tokens(opened, [5, 6], 12, temperature=1.0, top_p=1e-9)) == greedy


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),  # squares, normalised
        ({"temperature": 1.0, "top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.65}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_by_their_probabilities(settings: dict[str, Any], expected: list[float]) -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    draw = np.random.default_rng(0)
    counts = Counter(generate.choose(logits, draw, **settings) for _ in range(4000))
    found = np.array([counts[t] for t in (1, 3, 2, 0)]) / 4000
    np.testing.assert_allclose(found, expected, atol=0.03)  # four standard errors
