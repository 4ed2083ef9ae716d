"""What every method changes: a model with fixed calibration, evaluation and training ids, the same for all.

A case is a folder: `model/` (Hugging Face) and `ids.safetensors` with `calibration`, `evaluation` and `training`, int64
`[windows, length]` each.  Peers read the same folder in their own environments.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from compress import files, loading
from compress.data import DataSettings, Source

SEED = 20260823
LENGTH, CALIBRATION, EVALUATION, TRAINING = 128, 64, 96, 4096
FIXTURE_STEPS = 300
IDS = "ids.safetensors"


def add_arguments(parser: argparse.ArgumentParser, work: Path) -> None:
    """Add what chooses a case to a command line."""
    parser.add_argument("--case", default="fixture", help="fixture, demo, or a name of yours together with --model")
    parser.add_argument("--model", help="a folder; by default the demo model")
    parser.add_argument("--text", default="python-source", help="training text: a built-in corpus, or a file")
    parser.add_argument("--evaluation", help="evaluation text; by default the held-out side of a built-in --text")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens a window")
    parser.add_argument("--work", type=Path, default=work, help="where cases are kept")


def parsed(parser: argparse.ArgumentParser) -> Any:
    """Return the command line with the model that its case stands for."""
    given = parser.parse_args()
    given.model = given.model or ("demo" if given.case == "demo" else None)
    if given.case != "fixture" and given.model is None:
        parser.error("--case needs --model, a folder")
    return given


def of(given: Any) -> Path:
    """Return the folder of the case that a command line asks for, made when absent."""
    case: Path = given.work / given.case
    if not (case / IDS).exists():
        print(f"making {case} ...", flush=True)
        if given.case == "fixture":
            fixture(case)
        else:
            of_model(case, given.model, given.text, given.evaluation or given.text, given.length)
    return case


def setup(case: Path) -> dict[str, str]:
    """Return what a results file keeps of a case."""
    return {
        "case": case.name,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "ids": files.sha256(case / IDS)[:12],
        "weights": files.sha256(case / "model" / "model.safetensors")[:12],
    }


def ids_of(case: Path) -> dict[str, Tensor]:
    """Return the ids of a case by role."""
    return load_file(case / IDS)


def fixture(case: Path) -> None:
    """Train a byte-level Llama of 0.87 M parameters for 300 steps on the standard library's own source.

    Which bytes, windows and initial weights it sees follows from the seed and the Python version alone; its dense
    perplexity on the evaluation ids is 5.7433 with Python 3.11.7 and torch 2.13 on one thread.
    """
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # so that sums come out the same everywhere
    tokenizer = _byte_tokenizer()
    lines = _source().decode("utf-8", "ignore").splitlines(keepends=True)
    cut = int(len(lines) * 0.9)
    train, held_out = (_encode(tokenizer, part) for part in (lines[:cut], lines[cut:]))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    random = torch.Generator().manual_seed(SEED)
    _train_(model, train, random)
    stride = (len(held_out) - LENGTH) // EVALUATION
    evaluation = torch.stack([held_out[i * stride : i * stride + LENGTH] for i in range(EVALUATION)])
    calibration = _draw(train, CALIBRATION, random)
    _write(case, model, tokenizer, calibration, evaluation, _draw(train, TRAINING, random))


def of_model(case: Path, source: str, text: str, evaluation: str, length: int) -> None:
    """Make a case of a checkpoint and two texts (built-in corpora or files)."""
    model, tokenizer = loading.open_source(source, "causal-lm")
    found = {}
    for role, given in (("training", text), ("evaluation", evaluation)):
        settings = DataSettings(source=given, windows=0, length=length)
        found[role] = Source(settings, role, "causal-lm", 0, case / "cache").examples(tokenizer).windows  # type: ignore[arg-type]
    places = np.linspace(0, len(found["evaluation"]) - 1, EVALUATION).round().astype(int)
    order = torch.randperm(len(found["training"]), generator=torch.Generator().manual_seed(SEED))
    calibration, training = order[:CALIBRATION], order[CALIBRATION : CALIBRATION + TRAINING]
    windows = found["training"]
    _write(case, model, tokenizer, windows[calibration], found["evaluation"][places], windows[training])


def geometry(case: Path) -> None:
    """Make a Llama of 135 M random parameters (30 layers, hidden 576, FFN 1536, 9 heads, 3 of them for keys)."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    ids = torch.randint(0, 256, (CALIBRATION, LENGTH), generator=torch.Generator().manual_seed(SEED))
    _write(case, LlamaForCausalLM(config), _byte_tokenizer(), ids, ids[:1], ids[:1])


def _write(case: Path, model: Any, tokenizer: Any, calibration: Tensor, evaluation: Tensor, training: Tensor) -> None:
    with files.atomic_folder(case) as new:
        model.save_pretrained(new / "model")
        tokenizer.save_pretrained(new / "model")
        ids = {"calibration": calibration, "evaluation": evaluation, "training": training}
        save_file({role: windows.clone() for role, windows in ids.items()}, new / IDS)  # slices share memory


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "<pad>", "<s>", "</s>"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )


def _source() -> bytes:
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = [*sorted(library.glob("*.py")), *sorted((library / "asyncio").glob("*.py"))]
    return b"".join(path.read_bytes() for path in paths)


def _encode(tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> Tensor:
    """Line by line: on one long string the tokenizer takes quadratic time."""
    rows: Iterator[list[int]] = iter(tokenizer(lines)["input_ids"])
    return torch.tensor([i for row in rows for i in row])


def _draw(ids: Tensor, count: int, random: torch.Generator) -> Tensor:
    starts = torch.randint(0, len(ids) - LENGTH - 1, (count,), generator=random)
    return torch.stack([ids[start : start + LENGTH] for start in starts])


def _train_(model: LlamaForCausalLM, ids: Tensor, random: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=FIXTURE_STEPS, pct_start=0.1)
    model.train()
    for _ in range(FIXTURE_STEPS):
        batch = _draw(ids, 16, random)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
