"""Bits per byte on the held-out side of the built-in corpora: the demo model beside xz and n-gram models.

    python -m benchmarks.demo.compare            # all held-out text, some minutes on 2 cores
    python -m benchmarks.demo.compare --quick    # every fifth held-out document

Everything is charged for the same bytes, those of the documents; nobody pays for where a document ends.  The n-gram
models and the demo model start each document afresh; xz reads all documents in one stream and so may also copy from
other held-out documents, which only helps xz.  The goal is judged on each corpus: on `both`, every docstring stands
twice (in the documentation and in the source), and what xz saves there is the second copy.
"""

import argparse
import json
import lzma
import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.demo.ngram import KneserNey
from compress import loading
from compress.data import corpora

BYTE_ORDERS, TOKEN_ORDERS = (6, 8, 12), (3, 5)
GOAL = 0.20
QUICK = 5  # one document of so many


def read(corpus: str, split: corpora.Split, every: int = 1) -> list[str]:
    """Return every `every`-th document of one side of a corpus."""
    return [text for _, text in corpora.documents(corpus, split)][::every]


def xz(blob: bytes) -> int:
    """Return the size in bytes after `xz -9e`, its dictionary as large as the data needs, container left out."""
    size = max(1 << 20, 1 << math.ceil(math.log2(len(blob) + 1)))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size}]
    return len(lzma.compress(blob, format=lzma.FORMAT_RAW, filters=filters))


@torch.inference_mode()
def model_bits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, length: int, stride: int, rows: int = 8
) -> float:
    """Return the bits the model needs for a document: <s> in front, windows of `length`, new tokens `stride` apart.

    Every token after the first window sees at least `length - stride` tokens before it.
    """
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    row = torch.tensor(ids)
    starts = [0, *range(stride, max(1, len(row) - length + stride), stride)]
    total = 0.0
    for i in range(0, len(starts), rows):
        windows = [row[s : s + length] for s in starts[i : i + rows]]
        batch = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True, padding_value=-100)
        logits = model(input_ids=batch.clamp(min=0), use_cache=False).logits[:, :-1].float()  # right padding: causal
        goal = batch[:, 1:].clone()
        for j, start in enumerate(starts[i : i + rows]):
            if start:
                goal[j, : length - stride - 1] = -100  # the window before has paid for these
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), goal.flatten(), ignore_index=-100, reduction="sum"
        ).item()
    return total / math.log(2)


def as_bytes(texts: Sequence[str]) -> list[NDArray[np.int64]]:
    return [np.frombuffer(t.encode(), dtype=np.uint8).astype(np.int64) for t in texts]


def as_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[NDArray[np.int64]]:
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [np.array(ids, dtype=np.int64) for ids in encoded]


def compare(source: str, every: int, stride: int) -> dict[str, dict[str, float]]:
    """Return bits per byte by method, then by corpus (and `both`)."""
    train = {c: read(c, "train") for c in corpora.NAMES}
    heldout = {c: read(c, "heldout", every) for c in corpora.NAMES}
    everything = [t for texts in train.values() for t in texts]
    wanted = [t for texts in heldout.values() for t in texts]
    sizes = {c: sum(len(t.encode()) for t in texts) for c, texts in heldout.items()}
    sizes["both"] = sum(sizes.values())
    print(f"training {sum(map(len, as_bytes(everything))):,} bytes, held out {sizes['both']:,} bytes", flush=True)
    groups = {**heldout, "both": wanted}
    bits: dict[str, dict[str, float]] = {}

    def note(method: str, values: dict[str, float], started: float) -> None:
        bits[method] = {c: v / sizes[c] for c, v in values.items()}
        row = ", ".join(f"{c} {v:.4f}" for c, v in bits[method].items())
        print(f"{method}: {row} ({time.monotonic() - started:.0f} s)", flush=True)

    started = time.monotonic()
    note("xz -9e, cold", {c: 8 * xz("".join(t).encode()) for c, t in groups.items()}, started)
    started, before = time.monotonic(), "".join(everything).encode()
    alone = xz(before)
    note("xz -9e, primed", {c: 8 * (xz(before + "".join(t).encode()) - alone) for c, t in groups.items()}, started)

    model, tokenizer = loading.open_source(source, "causal-lm")
    splits = np.cumsum([len(t) for t in heldout.values()])[:-1]

    def by_corpus(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
        parts = dict(zip(heldout, (float(p.sum()) for p in np.split(np.asarray(values), splits)), strict=True))
        return {**parts, "both": sum(parts.values())}

    def ngram(name: str, order: int, symbols: int, fit: list[NDArray[np.int64]], ask: list[NDArray[np.int64]]) -> None:
        began = time.monotonic()
        paid = KneserNey(order, symbols).fit(fit).bits(ask)
        ends = np.cumsum([len(a) for a in ask])
        note(f"Kneser-Ney, {order} {name}", by_corpus([p.sum() for p in np.split(paid, ends[:-1])]), began)

    for order in BYTE_ORDERS:
        ngram("bytes", order, 256, as_bytes(everything), as_bytes(wanted))
    for order in TOKEN_ORDERS:
        ngram("tokens", order, len(tokenizer), as_tokens(everything, tokenizer), as_tokens(wanted, tokenizer))

    started, length = time.monotonic(), int(model.config.max_position_embeddings)
    paid = [model_bits(model, tokenizer, t, length, min(stride, length - 1)) for t in wanted]
    note("demo model", by_corpus(paid), started)
    return bits


def table(bits: dict[str, dict[str, float]]) -> str:
    """Return the figures as a Markdown table; in brackets how many bits fewer the demo model needs."""
    ours = bits["demo model"]
    lines = ["| method | " + " | ".join(ours) + " |", "|---|" + "--:|" * len(ours)]
    for method, row in bits.items():
        figures = " | ".join(f"{v:.4f} ({100 * (1 - ours[c] / v):.1f} %)" for c, v in row.items())
        lines.append(f"| {method} | {figures} |")
    return "\n".join(lines)


def saved(bits: dict[str, dict[str, float]]) -> dict[str, dict[str, object]]:
    """Return, by corpus, the best other method and the share of its bits that the demo model saves."""
    found: dict[str, dict[str, object]] = {}
    for corpus, ours in bits["demo model"].items():
        value, method = min((b[corpus], m) for m, b in bits.items() if m != "demo model")
        found[corpus] = {"best_other": method, "saved": round(1 - ours / value, 4)}
    return found


def main() -> None:
    """Read the command line, compare, print the table and write `results.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a folder, or 'demo'")
    parser.add_argument("--quick", action="store_true", help=f"every {QUICK}th held-out document only")
    parser.add_argument("--stride", type=int, default=256, help="new tokens per window")
    parser.add_argument("--output", type=Path, help="default: results.json here (results-quick.json with --quick)")
    args = parser.parse_args()
    started = time.monotonic()
    bits = compare(args.model, QUICK if args.quick else 1, args.stride)
    shares = saved(bits)
    reached = all(float(str(shares[c]["saved"])) >= GOAL for c in corpora.NAMES)
    print(f"\n{table(bits)}\n")
    for corpus, share in shares.items():
        print(f"{corpus}: {share['saved']:.1%} fewer bits per byte than the best other, {share['best_other']}")
    print(f"goal {GOAL:.0%} on each corpus: {'reached' if reached else 'MISSED'}")
    report = {
        "bits_per_byte": {m: {c: round(v, 4) for c, v in b.items()} for m, b in bits.items()},
        "against_the_best_other": shares,
        "goal": GOAL,
        "reached": reached,
        "quick": args.quick,
        "stride": args.stride,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    output = args.output or Path(__file__).parent / ("results-quick.json" if args.quick else "results.json")
    output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
