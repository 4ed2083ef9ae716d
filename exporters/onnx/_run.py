"""Run this engine: python run.py "a prompt" --tokens 64.  Needs onnxruntime, tokenizers and numpy, nothing else."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


def write(session: ort.InferenceSession, engine: dict[str, Any], ids: list[int], count: int) -> Iterator[int]:
    """Yield the likeliest next token again and again; the graph reads each token once and keeps keys and values."""
    names, last = [o.name for o in session.get_outputs()], len(ids) + count
    given = {i["name"]: np.zeros([d if isinstance(d, int) else int(d == "batch") for d in i["shape"]], i["dtype"])
             for i in engine["inputs"]}  # fmt: skip
    new, total = ids, 0
    while total + len(new) < min(last, (engine["positions"] or last) + 1):
        total += len(new)
        given["input_ids"] = np.array([new], np.int64)
        given["attention_mask"] = np.ones((1, total), np.int64)
        given["position_ids"] = np.arange(total - len(new), total, dtype=np.int64)[None]
        logits, *present = session.run(None, given)
        given |= {n.replace("present", "past_key_values"): a for n, a in zip(names[1:], present, strict=True)}
        if (new := [int(logits[0, -1].argmax())])[0] in engine["stop"]:
            return
        yield new[0]


def main() -> None:
    """Print what the engine writes after the prompt, or the logits or embedding of a text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens at most")
    args, here = parser.parse_args(), Path(__file__).resolve().parent
    engine = json.loads((here / "engine.json").read_text(encoding="utf-8"))
    if engine["target"].get("huge_pages") and "hugetlb" not in os.environ.get("GLIBC_TUNABLES", ""):
        huge = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # read as a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], huge)
    options, device = ort.SessionOptions(), engine["target"]["device"].upper()
    options.intra_op_num_threads = engine["target"]["threads"]
    for name, value in engine.get("session", {}).items():
        options.add_session_config_entry(name, value)
    if device == "CUDA":
        ort.preload_dlls()
    session = ort.InferenceSession(str(here / engine["graph"]), options, [f"{device}ExecutionProvider"])
    text = (tokenizer := Tokenizer.from_file(str(here / "tokenizer.json"))).encode(args.prompt)
    if engine["task"] != "causal-lm":
        given = {"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}
        print(session.run(None, {i["name"]: np.array([given[i["name"]]]) for i in engine["inputs"]})[0][0].tolist())
        return
    ids = text.ids or [engine["begin"]]
    stream = DecodeStream(ids=ids, skip_special_tokens=True)
    for token in write(session, engine, ids, args.tokens):
        print(stream.step(tokenizer, token) or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
