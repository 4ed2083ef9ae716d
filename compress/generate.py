"""Write text with an engine: token after token with the KV cache, greedy or sampled, streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.errors import BadData, BadModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from compress.contracts import Engine, Target


def generate_path(
    folder: Path | str,
    prompt: str,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    target: Target | None = None,
) -> Iterator[str]:
    """Open an engine folder and yield what it writes, as `generate` does.

    Raises:
        BadModel: the folder is no engine that writes text.
        UserFault: as opening and `generate` say.
    """
    from compress.engines import Engines

    engine = Engines().open(Path(folder), target)
    try:
        tokenizer = tokenizer_of(Path(folder))
        yield from generate(
            engine, tokenizer, prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        )
    finally:
        engine.close()


def tokenizer_of(folder: Path) -> Tokenizer:
    """Return the tokenizer of an engine folder, which never pads or truncates."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the text that follows a prompt in pieces, each whole characters.

    Args:
        engine: of a causal model.
        tokenizer: of the engine's folder.
        prompt: what to continue; an empty one starts from the token that begins a text.
        max_new_tokens: at most; a stop token or the model's longest sequence ends the text before.
        temperature: logits are divided by it before drawing; 0 takes the likeliest token always.
        top_k: draw from the k likeliest tokens; 0 = from all.
        top_p: draw from the fewest likeliest tokens whose probabilities reach this sum.
        seed: of the draws.

    Raises:
        BadModel: the engine writes no text.
        BadData: the prompt is empty and no token begins a text, or it is longer than the model takes.
    """
    from tokenizers.decoders import DecodeStream

    ids = tokenizer.encode(prompt).ids or [i for i in [engine.manifest["begin"]] if i is not None]
    stream = DecodeStream(ids=ids, skip_special_tokens=True)
    for token in tokens(
        engine, ids, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    ):  # fmt: skip
        if piece := stream.step(tokenizer, token):
            yield piece


def tokens(
    engine: Engine,
    ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield the token ids that follow `ids`, as `generate` says; the stop token is not among them."""
    manifest = engine.manifest
    longest = manifest["positions"]
    if manifest["task"] != "causal-lm":
        raise BadModel(f"an engine for {manifest['task']} writes no text; give one for causal-lm")
    if not ids:
        raise BadData("the prompt is empty, and the tokenizer has no token that begins a text; give a prompt")
    if longest is not None and len(ids) > longest:
        raise BadData(f"the prompt has {len(ids)} tokens, and the model takes at most {longest}; shorten it")
    draw = np.random.default_rng(seed)
    past, new, total = engine.empty_past(1), list(ids), 0
    for _ in range(max_new_tokens):
        total += len(new)
        if longest is not None and total > longest:
            return
        positions = np.arange(total - len(new), total, dtype=np.int64)[None]
        mask = np.ones((1, total), np.int64)
        logits, past = engine.step(np.array([new], np.int64), mask, positions, past)
        token = choose(logits[0, -1], draw, temperature=temperature, top_k=top_k, top_p=top_p)
        if token in manifest["stop"]:
            return
        yield token
        new = [token]


def choose(
    logits: np.ndarray, draw: np.random.Generator, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0
) -> int:
    """Return one token by its logits `[vocabulary]`; the settings are those of `generate`."""
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    scaled = logits[order].astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled[0])
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities  # of all likelier tokens
    kept = probabilities * (before < top_p)
    return int(draw.choice(order, p=kept / kept.sum()))
