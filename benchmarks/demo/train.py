"""Train the demo model from nothing: tokenizer and a Llama of 5.8 M parameters on the built-in corpora.

    python benchmarks/demo/train.py --work runs/demo-training            # resumes where it stopped
    python benchmarks/demo/train.py --work runs/demo-training --publish  # fp16 weights into compress/demo

Muon on the block matrices, AdamW on embeddings and norms, warm-up, constant, then linear decay to zero.  The decay
starts when `--steps` or `--minutes` says so, so that a run on a slow machine still ends annealed.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from compress.data import corpora

VOCABULARY, LENGTH, TOKENS, SEED = 4096, 512, 6144, 0  # TOKENS a step
DOCS_REPEATED = 2  # prose is 5 times rarer than code in the corpora, and calibration text is prose
PEAK, ADAM_PEAK, WARMUP, DECAY_SHARE = 0.02, 3e-3, 60, 0.35


def tokenizer(work: Path) -> PreTrainedTokenizerFast:
    """Train (or reload) the byte-level BPE tokenizer."""
    if not (work / "tokenizer.json").exists():
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        texts = (t for c in ("python-docs", "python-docs", "python-source") for _, t in corpora.documents(c, "train"))
        bpe.train_from_iterator(texts, trainer)
        fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", model_max_length=LENGTH)
        fast.save_pretrained(work)
    return PreTrainedTokenizerFast.from_pretrained(work)


def stream(tok: PreTrainedTokenizerFast, split: corpora.Split, repeat_docs: int) -> np.ndarray:
    """Return all documents, shuffled, each with <s> in front, as one row of token ids."""
    texts = [t for _, t in corpora.documents("python-docs", split)] * repeat_docs
    texts += [t for _, t in corpora.documents("python-source", split)]
    order = np.random.default_rng(SEED).permutation(len(texts))
    encoded = tok([texts[i] for i in order], add_special_tokens=False)["input_ids"]
    return np.concatenate([np.array([tok.bos_token_id, *ids], dtype=np.int32) for ids in encoded])


def batches(ids: np.ndarray, step: int) -> torch.Tensor:
    """Return batch `step`: epochs of shuffled rows of LENGTH whose offset differs per epoch.

    Three steps of four cut the rows in half: short windows are cheaper and the full length is still learnt.
    """
    rows = TOKENS // LENGTH
    epoch, index = divmod(step, (len(ids) - LENGTH) // TOKENS)
    rng = np.random.default_rng([SEED, epoch])
    offset = rng.integers(LENGTH)
    chosen = rng.permutation((len(ids) - offset) // LENGTH)[index * rows : (index + 1) * rows]
    batch = np.stack([ids[offset + r * LENGTH : offset + (r + 1) * LENGTH] for r in chosen]).astype(int)
    return torch.from_numpy(batch if step % 4 == 0 else batch.reshape(-1, LENGTH // 2))


def loss(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token loss in nats."""
    with torch.autocast("cuda" if ids.is_cuda else "cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def heldout_loss(model: torch.nn.Module, ids: np.ndarray, device: str, rows: int = 48) -> float:
    """Return the mean held-out loss in nats over evenly spaced windows."""
    model.eval()
    starts = np.linspace(0, len(ids) - LENGTH, rows).astype(int)
    windows = torch.from_numpy(np.stack([ids[s : s + LENGTH] for s in starts]).astype(int)).to(device)
    value = float(np.mean([loss(model, w).item() for w in windows.split(12)]))
    model.train()
    return value


def progress(step: int, started_share: float, steps: int, minutes: float) -> float:
    """Return how much of the run is done, in [0, 1], by steps or by the clock, whichever is further."""
    return min(1.0, max(step / steps, started_share / minutes if minutes else 0.0))


def rate(step: int, done: float) -> float:
    """Return the learning rate's factor."""
    return min(1.0, (step + 1) / WARMUP) * min(1.0, (1.0 - done) / DECAY_SHARE)


def train(work: Path, steps: int, minutes: float, device: str) -> None:
    """Train, writing a checkpoint every 50 steps and the curve as one JSON line each."""
    tok = tokenizer(work)
    ids, heldout = stream(tok, "train", DOCS_REPEATED), stream(tok, "heldout", 1)
    print(f"{len(ids):,} training tokens, {len(heldout):,} held out", flush=True)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=LENGTH, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=1, pad_token_id=None, rope_theta=10000.0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device).train()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=PEAK, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=ADAM_PEAK, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks, step, seconds = (PEAK, ADAM_PEAK), 0, 0.0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        for o, s in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(s)
        step, seconds = state["step"], state["seconds"]
    last = time.monotonic()
    while (done := progress(step, seconds / 60, steps, minutes)) < 1.0:
        for o, peak in zip(optimizers, peaks, strict=True):
            o.param_groups[0]["lr"] = peak * rate(step, done)
        value = loss(model, batches(ids, step).to(device))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        step += 1
        seconds, last = seconds + time.monotonic() - last, time.monotonic()
        if step % 50 == 0:
            row = {
                "step": step,
                "tokens": step * TOKENS,
                "minutes": round(seconds / 60, 1),
                "loss": round(value.item(), 4),
                "heldout": round(heldout_loss(model, heldout, device), 4),
            }
            print(row, flush=True)
            with (work / "curve.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                     "step": step, "seconds": seconds}  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    final = heldout_loss(model, heldout, device, rows=256)
    print(f"done: {step} steps, {seconds / 60:.0f} minutes, held-out {final:.4f} nats, ppl {math.exp(final):.2f}")
    model.save_pretrained(work / "model")
    tok.save_pretrained(work / "model")


def publish(work: Path, target: Path) -> None:
    """Write the trained model as fp16 safetensors, its tokenizer and its curve into the package."""
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float16)
    model.save_pretrained(target)
    PreTrainedTokenizerFast.from_pretrained(work / "model").save_pretrained(target)
    curve = Path(__file__).parent / "curve.jsonl"
    curve.write_text((work / "curve.jsonl").read_text())


def main() -> None:
    """Read the command line and train or publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=0, help="end (annealed) after this many minutes; 0: by steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--publish", action="store_true", help="copy the finished model into the package")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.publish:
        publish(args.work, Path(__file__).parents[2] / "compress" / "demo")
    else:
        train(args.work, args.steps, args.minutes, args.device)


if __name__ == "__main__":
    main()
